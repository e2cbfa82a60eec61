# SPDX-License-Identifier: Apache-2.0
"""Arguments that the chosen way of evaluating cannot follow are refused: none that was given is passed over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def refuse_ignored(reason: str, **given: Any) -> None:
    """Refuse every argument that was given, that is not ``None`` and not empty.

    Args:
        reason: why it would have no effect, and what would help.
        given: the arguments by name.

    Raises:
        ValueError: naming them.

    Example:
        >>> refuse_ignored("there are no budgets", eps=None, unit="HU")
        Traceback (most recent call last):
        ...
        ValueError: unit: would have no effect: there are no budgets
    """
    names = [name for name, value in given.items() if value is not None and not _is_empty(value)]
    if names:
        raise ValueError(f"{', '.join(names)}: would have no effect: {reason}")


def refuse_unused(given: Mapping[str, Any], attacks: Collection[str], known: Mapping[str, Collection[str]]) -> None:
    """Refuse an argument that none of the chosen attacks has.

    Args:
        given: arguments by name; ``None`` is not given.
        attacks: names of those chosen; what is wrong with a name is for others to say.
        known: name to the arguments of the attack.

    Raises:
        TypeError: naming the argument.
    """
    if not all(name in known for name in attacks):
        return
    for argument, value in given.items():
        if value is not None and not any(argument in known[name] for name in attacks):
            raise TypeError(
                f"{argument}: would have no effect: expected an attack that has it; got {', '.join(attacks)}"
            )


def _is_empty(value: Any) -> bool:
    return isinstance(value, (Mapping, tuple, list, str)) and not value
