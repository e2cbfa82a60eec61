# SPDX-License-Identifier: Apache-2.0
"""`following`: which keys of a preprocessing depend on the image's content, and which of them the network needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from monai_smia.export.replay_step import stand_in

Item = dict[Hashable, Any]
FAILED = (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What a transform may raise at an image that it was not made for, or without a key that it needs."""

SLIGHT = 0.01
"""Share of the image's range that the slight one of the two other images differs by."""


@dataclass(frozen=True)
class Followed:
    """A transform with what it makes of the image's content.

    Attributes:
        transform: as it is, or a copy that does without the keys that are missing.
        inputs: keys that depend on the image and that `outputs` need.
        outputs: keys that the network, or a later transform on the way to it, needs.
        fixed: what else the transform needs.
        before, after: the whole item.
    """

    transform: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fixed: Item
    before: Item
    after: Item


@dataclass(frozen=True)
class _Run:
    """One transform on the clean item."""

    transform: Any
    before: Item
    after: Item
    passed: frozenset[Hashable]  # keys that the transform did not touch


def following(
    transforms: Sequence[Any], start: Item, live: set[str], key: str, reaches: Callable[[Item, set[str]], set[str]]
) -> tuple[list[Followed], Item, dict[str, str]]:
    """The transforms on the way from the image to the network, each on the keys that carry the image's content.

    What depends on the image is found by running the transforms on another image: keys whose value differs depend on
    it, be it a second window, a mask, a box or a mean. What needs what is found from the end to the beginning.

    Args:
        transforms: after the loading.
        start: the item after the loading.
        live: keys of `start` that depend on the image.
        key: of the image.
        reaches: of the last item and the keys of it that depend on the image, those that the network needs.

    Returns:
        The transforms that matter, the last item, and the keys of it that depend on the image, each with the class of
        the transform that made it so.
    """
    runs, state = [], start
    for transform in transforms:
        runs.append(_run(transform, state))
        state = runs[-1].after
    after_each = _dependent(runs, start, live, key)
    last = after_each[-1] if runs else live
    needed = reaches(state, last)
    found: list[Followed] = []
    for i in reversed(range(len(runs))):
        whole = not hasattr(runs[i].transform, "keys")  # such a transform may do anything, at another image
        outputs = {name for name in needed if whole or name not in runs[i].passed}
        if outputs:
            before = after_each[i - 1] if i else live
            found.append(_narrowed(runs[i], outputs, before))
            needed = (needed - outputs) | set(found[-1].inputs)
    return found[::-1], state, {name: _maker(name, runs, after_each) for name in sorted(last)}


def _maker(name: str, runs: Sequence[_Run], after_each: Sequence[set[str]]) -> str:
    """Class of the transform after which a key depends on the image."""
    return next((type(run.transform).__name__ for run, live in zip(runs, after_each, strict=True) if name in live), "")


def another(value: Any, slight: bool = False) -> Any:
    """Another value of the same kind: an image turned from dark to bright, or slightly noisy."""
    if isinstance(value, np.ndarray):
        return np.asarray(another(torch.from_numpy(value.copy()), slight)).astype(value.dtype)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float, np.generic)):
        return type(value)(float(value) + 1)
    if not isinstance(value, torch.Tensor):
        return value
    other = value.detach().clone()
    plain = other.as_subclass(torch.Tensor)
    if plain.dtype == torch.bool:
        plain.logical_not_()
    elif plain.numel():
        low, high = plain.min(), plain.max()
        if slight:
            generator = torch.Generator().manual_seed(0)
            noise = torch.rand(plain.shape, generator=generator) - 0.5
            plain += (noise * max(float(high - low), 1e-3) * SLIGHT).to(plain)
        else:
            turned = low + high - plain + (1 if bool(low == high) else 0)
            plain.copy_(turned.roll(1, -1) if plain.ndim else turned)
    return other


def same(one: Any, other: Any) -> bool:
    """Whether two values of an item are equal; NaN equals NaN."""
    if isinstance(one, (torch.Tensor, np.ndarray)) and isinstance(other, (torch.Tensor, np.ndarray)):
        a, b = (torch.as_tensor(value).detach().as_subclass(torch.Tensor) for value in (one, other))
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, (torch.Tensor, np.ndarray)) or isinstance(other, (torch.Tensor, np.ndarray)):
        return False
    return one is other or bool(one == other)


def _fresh(value: Any) -> Any:
    """A copy, because some transforms write into what they are given."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    return value.copy() if isinstance(value, np.ndarray) else copy.copy(value)


def _run(transform: Any, before: Item) -> _Run:
    given = {name: _fresh(value) for name, value in before.items()}
    after = dict(transform(dict(given)))
    named = set(getattr(transform, "keys", ()))
    passed = {
        name
        for name, value in after.items()
        if name in given and name not in named and value is given[name] and same(value, before[name])
    }
    kept = {name: before[name] if name in passed else value for name, value in after.items()}
    return _Run(transform, before, kept, frozenset(passed))


def _dependent(runs: Sequence[_Run], start: Item, live: set[str], key: str) -> list[set[str]]:
    """Keys that depend on the image after each transform."""
    for slight in (False, True):
        changed = another(start[key], slight)
        state = dict(start)
        state.update({name: _fresh(changed) for name in live})
        found: list[set[str]] = []
        try:
            for run in runs:
                state = dict(run.transform({name: _fresh(value) for name, value in state.items()}))
                # what depends on the image goes on doing so, also where a clip hides all of it at both images
                kept = (found[-1] if found else live) & run.after.keys()
                found.append(kept | {str(name) for name in run.after if not same(run.after[name], state.get(name))})
            return found
        except FAILED:  # an image that this preprocessing was not made for
            continue
    return [{str(name) for name in run.after} for run in runs]


def _narrowed(run: _Run, outputs: set[str], live: set[str]) -> Followed:
    """The transform on as few keys as give the same."""
    named = sorted(outputs & live)
    if named and hasattr(run.transform, "keys"):
        alone = copy.copy(run.transform)
        alone.allow_missing_keys = True
        few: Item = {name: value for name, value in run.before.items() if name in named}
        if _gives(alone, few, run.after, outputs):
            return Followed(alone, tuple(named), tuple(sorted(outputs)), {}, run.before, run.after)
    others = [
        name
        for name in sorted(live - set(named))
        if not _gives(run.transform, {**run.before, name: another(run.before[name])}, run.after, outputs)
    ]
    inputs = (*named, *others)
    fixed = {name: value for name, value in run.before.items() if name not in inputs}
    return Followed(run.transform, inputs, tuple(sorted(outputs)), fixed, run.before, run.after)


def _gives(transform: Any, item: Item, wanted: Item, outputs: set[str]) -> bool:
    """Whether a transform gives the same outputs for another item."""
    try:
        made = stand_in(transform)({name: _fresh(value) for name, value in item.items()})
        return all(same(made[name], wanted[name]) for name in outputs)
    except FAILED:
        return False
