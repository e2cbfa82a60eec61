# SPDX-License-Identifier: Apache-2.0
"""Which of a configuration's handlers load its weights, read from the text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from monai_smia.bundle.ids import Ids
from monai_smia.bundle.text import class_name, get, reached_components, references


def loaders_in(config: Mapping[str, Any], start: str | None) -> dict[str, dict[str, Any]]:
    """The loaders of checkpoints at and behind an id."""
    every = reached_components(config, start) if start is not None else {}
    return {name: item for name, item in every.items() if class_name(item) == "CheckpointLoader"}


def steps(config: Mapping[str, Any], name: str) -> list[str]:
    """The ids of the steps of ``initialize`` or ``finalize``."""
    found = get(config, name)
    return [f"{name}#{i}" for i in range(len(found))] if isinstance(found, list) else [name] if found else []


def running_loaders(config: Mapping[str, Any], ids: Ids, is_off: Callable[[str], bool]) -> list[str]:
    """Loaders that run: of the evaluator's handlers, else those that ``initialize`` calls.

    Args:
        config: macros resolved.
        ids: of the evaluator.
        is_off: whether the value at an id, a loader's ``_disabled_``, is true.
    """
    found = loaders_in(config, ids.handlers)
    if not found:
        for name in steps(config, "initialize"):
            called = references(get(config, name))
            found |= {n: item for n, item in loaders_in(config, name).items() if n in called}
    return [name for name in found if not is_off(f"{name}#_disabled_")]
