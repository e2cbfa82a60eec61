# SPDX-License-Identifier: Apache-2.0
"""`check_kinds`: every argument of a dataclass is of the kind that its annotation names."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

LARGEST = 1e15
"""Of a number: its square, added up over every voxel of a volume, is still one in single precision."""


def as_flag(name: str, value: Any) -> bool:
    """``True`` or ``False``, nothing that Python would take for one of them."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False; got {value!r}")
    return value


def as_whole(name: str, value: Any) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number; got {value!r}")
    if abs(value) >= 2**63:
        raise ValueError(f"{name}: expected a whole number of 64 bits; got {value!r}")
    return value


def as_finite(name: str, value: Any) -> float:
    """A number that is finite, and small enough to be computed with."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number; got {value!r}")
    if not abs(value) <= LARGEST:  # NaN, too
        raise ValueError(f"{name}: expected a finite number, at most {LARGEST:g} in magnitude; got {value!r}")
    return value


def as_text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string; got {value!r}")
    return value


KINDS: dict[str, Callable[[str, Any], Any]] = {"bool": as_flag, "int": as_whole, "float": as_finite, "str": as_text}


def check_kinds(arguments: Any) -> None:
    """Refuse what is not of the kind that a field's annotation names: ``bool``, ``int``, ``float``, ``str``, or None.

    Ranges, choices, and fields of any other annotation are the class's own to check.

    Args:
        arguments: an instance of a dataclass whose annotations are strings.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> @dataclasses.dataclass
        ... class Step:
        ...     size: float | None
        ...     random: bool = False
        >>> check_kinds(Step(0.1))
        >>> check_kinds(Step(0.1, random="maybe"))
        Traceback (most recent call last):
        TypeError: random: expected True or False; got 'maybe'
    """
    for item in dataclasses.fields(arguments):
        names = [part.strip() for part in item.type.split("|")] if isinstance(item.type, str) else []
        kinds = [name for name in names if name != "None"]
        if item.name == "norm":  # may be infinite, and has a check of its own
            continue
        if not item.init or len(kinds) != 1 or kinds[0] not in KINDS:
            continue
        value = getattr(arguments, item.name)
        if value is not None or "None" not in names:
            KINDS[kinds[0]](item.name, value)


OTHER_NAMES = {
    "alpha": "step_size",
    "eps_step": "step_size",
    "eps_iter": "step_size",
    "epsilon": "eps",
    "num_steps": "steps",
    "nb_iter": "steps",
    "max_iter": "steps",
    "num_iter": "steps",
    "ord": "norm",
}
"""What other libraries call an argument."""


def check_names(kind: type, given: Iterable[str]) -> None:
    """Refuse keywords that a dataclass has no argument of, with the name that was probably meant.

    Raises:
        TypeError: naming it.
    """
    known = [item.name for item in dataclasses.fields(kind) if item.init]
    for name in given:
        if name not in known:
            meant = OTHER_NAMES.get(name)
            raise TypeError(f"{name}: {kind.__name__} has no such argument{did_you_mean(name, known, meant)}")


def did_you_mean(name: Any, known: Iterable[str], meant: str | None = None) -> str:
    """``"; did you mean 'PGD'?"``, or all names where none is near.

    Example:
        >>> did_you_mean("PDG", ["BIM", "PGD"]), did_you_mean("x", ["BIM", "PGD"])
        ("; did you mean 'PGD'?", "; expected one of 'BIM', 'PGD'")
    """
    known = list(known)
    upper = {item.upper(): item for item in known}
    near = [meant] if meant in known else difflib.get_close_matches(str(name).upper(), upper, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {upper[str(near[0]).upper()]!r}?"
    return f"; expected one of {', '.join(map(repr, known))}"


def in_range(name: str, value: float, low: float, high: float = math.inf, above: bool = False) -> float:
    """A number in [`low`, `high`], or in (`low`, `high`] where `above`."""
    value = as_finite(name, value)
    if not (low < value <= high if above else low <= value <= high):
        bracket, end = "(" if above else "[", "" if math.isinf(high) else f"{high:g}"
        wanted = f"in {bracket}{low:g}, {end}]" if end else f"{'>' if above else '>='} {low:g}"
        raise ValueError(f"{name}: expected a number {wanted}; got {value!r}")
    return value
