# SPDX-License-Identifier: Apache-2.0
"""`intensity_map`: MONAI's transforms, in their order, as one `IntensityMap`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from monai.transforms import (
    Compose,
    ConcatItemsd,
    CopyItemsd,
    Lambdad,
    NormalizeIntensity,
    NormalizeIntensityd,
    OneOf,
    RandomOrder,
    ScaleIntensity,
    ScaleIntensityd,
    ScaleIntensityRange,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentiles,
    ScaleIntensityRangePercentilesd,
    ShiftIntensity,
    ShiftIntensityd,
    SomeOf,
)
from monai.utils import ensure_tuple

from monai_smia.bundle.harmless import adds_channels, is_harmless
from monai_smia.bundle.intensity_map import DEVIATION, PERCENT, IntensityMap


class Unread:
    """A transform of which nothing is known but a name: only running the bundle would tell what it does.

    Args:
        name: what a person sees.
        keys: of the items that its text says it acts on; None where it says nothing.
    """

    def __init__(self, name: str, keys: tuple[str, ...] | None = None) -> None:
        self.name = name
        if keys is not None:
            self.keys = keys


_INNER = {
    ScaleIntensityRanged: "scaler",
    ScaleIntensityd: "scaler",
    ScaleIntensityRangePercentilesd: "scaler",
    NormalizeIntensityd: "normalizer",
    ShiftIntensityd: "shifter",
}
"""Where MONAI's dictionary versions keep their array version."""


def intensity_map(transforms: Any, key: str) -> IntensityMap:
    """The map of a transform, a `Compose` or any nesting of them on the image of this key.

    Only MONAI's own classes are read, not what is derived from them; array versions act on every image.

    Example:
        >>> from monai.transforms import Compose, Flipd, ScaleIntensityRanged
        >>> window = intensity_map(Compose([ScaleIntensityRanged("image", 0, 255, 0, 1), Flipd("image")]), "image")
        >>> window.points, window.steps
        ((0.0, 255.0), ('ScaleIntensityRanged maps 0..255 to 0..1',))
    """
    state = IntensityMap()
    for transform in in_order(transforms):
        if acts_on(transform, key):
            state = _after(state, transform, key)
        elif isinstance(transform, Unread):
            state = state.noting(f"{transform.name} was not run, and by its keys leaves the {key} alone")
    return state


def in_order(transforms: Any) -> Iterator[Any]:
    """The transforms of a `Compose` or a list, however nested, one by one; those that choose stay one."""
    if isinstance(transforms, Compose) and not isinstance(transforms, (OneOf, RandomOrder, SomeOf)):
        transforms = transforms.transforms
    if isinstance(transforms, (tuple, list)):
        for transform in transforms:
            yield from in_order(transform)
    elif transforms is not None:
        yield transforms


def acts_on(transform: Any, key: str) -> bool:
    """Whether a transform may change the image of this key."""
    keys = ensure_tuple(getattr(transform, "keys", key))
    if type(transform) in (ConcatItemsd, CopyItemsd):
        return key in ensure_tuple(transform.name if type(transform) is ConcatItemsd else transform.names)
    if type(transform) is Lambdad:  # overwrite: yes, no, or the key to write to
        return any((name if to is True else to) == key for name, to in zip(keys, transform.overwrite, strict=True))
    return key in keys


def _after(state: IntensityMap, transform: Any, key: str) -> IntensityMap:
    if isinstance(transform, Unread):
        return state.without_base(transform.name)
    who = type(transform).__name__
    if is_harmless(transform):
        return state
    if adds_channels(transform):
        return state.noting(f"{who} appends channels that are no image")
    if isinstance(transform, (OneOf, RandomOrder, SomeOf)):
        inner = [part for part in in_order(list(transform.transforms)) if acts_on(part, key)]
        return state if all(is_harmless(part) for part in inner) else state.without_base(who)
    if isinstance(transform, ShiftIntensityd) and any(
        factor is not None for name, factor in zip(transform.keys, transform.factor_key, strict=True) if name == key
    ):
        return state.without_base(who)
    inner = getattr(transform, _INNER[type(transform)]) if type(transform) in _INNER else transform
    read = _READERS.get(type(inner))
    return state.without_base(who) if read is None else read(state, inner, who)


def _range(state: IntensityMap, scaler: ScaleIntensityRange, who: str) -> IntensityMap:
    a_min, a_max, b_min, b_max = scaler.a_min, scaler.a_max, scaler.b_min, scaler.b_max
    if a_min == a_max:  # MONAI warns, and shifts without clipping
        shift = a_min - (b_min or 0.0)
        return state.through(lambda x: x - shift, f"{who} subtracts {shift:g}", who)
    both = b_min is not None and b_max is not None
    to_low, to_high = (b_min, b_max) if both else (0.0, 1.0)

    def scale(x: Any) -> Any:
        unit = (x - a_min) / (a_max - a_min)
        return unit * (b_max - b_min) + b_min if both else unit

    ends = " and clips" if scaler.clip and (b_min is not None or b_max is not None) else ""
    step = f"{who} maps {a_min:g}..{a_max:g} to {to_low:g}..{to_high:g}{ends}"
    state = state.naming(float(a_min), float(a_max)).through(scale, step, who)
    return state.clipped(b_min, b_max) if ends else state


def _normalize(state: IntensityMap, normalizer: NormalizeIntensity, who: str) -> IntensityMap:
    zeros = ", zeros left alone" if normalizer.nonzero else ""
    if normalizer.divisor is None:
        each = "each channel of each image" if normalizer.channel_wise else "each image"
        return _begin(DEVIATION, (0.0, 1.0), (0.0, 1.0), f"{who} divides {each} by its standard deviation{zeros}")
    try:
        subtrahend = _by_channel(normalizer.subtrahend, normalizer.channel_wise)
        divisor = _by_channel(normalizer.divisor, normalizer.channel_wise)
    except ValueError:
        return state.without_base(who)
    divisor = np.where(divisor == 0, 1.0, divisor)
    mean = _said(subtrahend) if normalizer.subtrahend is not None else "each image's own mean"
    step = f"{who} subtracts {mean} and divides by {_said(divisor)}{zeros}"
    state = state.through(lambda x: (x - subtrahend) / divisor, step, who)
    if normalizer.subtrahend is None:
        state = state.unlimited()
    return state.reaching(0.0) if normalizer.nonzero else state


def _scale(state: IntensityMap, scaler: ScaleIntensity, who: str) -> IntensityMap:
    low, high = scaler.minv, scaler.maxv
    if low is None and high is None:
        factor = 1.0 + (scaler.factor or 0.0)
        return state if factor == 1 else state.through(lambda x: x * factor, f"{who} multiplies by {factor:g}", who)
    low, high = (0.0, 1.0) if low is None or high is None else (low, high)
    each = "each channel of each image" if scaler.channel_wise else "each image"
    step = f"{who} maps {each} from its own range to {low:g}..{high:g}"
    if not low < high:
        return state.without_base(who).clipped(min(low, high), max(low, high))
    return _begin(PERCENT, (0.0, 100.0), (low, high), step).clipped(low, high)


def _percentiles(state: IntensityMap, scaler: ScaleIntensityRangePercentiles, who: str) -> IntensityMap:
    both = scaler.b_min is not None and scaler.b_max is not None
    low, high = (scaler.b_min, scaler.b_max) if both else (0.0, 1.0)
    if scaler.relative and both:
        width = high - low
        low, high = width * (scaler.lower / 100.0) + low, width * (scaler.upper / 100.0) + low
    whole = (scaler.lower, scaler.upper) == (0, 100)
    if not low < high:
        return state.without_base(who)
    each = "each channel of each image" if scaler.channel_wise else "each image"
    part = "its own range" if whole else f"its percentiles {scaler.lower:g} and {scaler.upper:g}, 0 % and 100 % here,"
    ends = " and clips" if scaler.clip and (scaler.b_min is not None or scaler.b_max is not None) else ""
    step = f"{who} maps {each} from {part} to {low:g}..{high:g}{ends}"
    state = _begin(PERCENT, (0.0, 100.0), (low, high), step)
    if whole or (ends and both):
        return state.clipped(low, high)
    return state.clipped(scaler.b_min, scaler.b_max) if ends else state


def _shift(state: IntensityMap, shifter: ShiftIntensity, who: str) -> IntensityMap:
    return state.through(lambda x: x + shifter.offset, f"{who} adds {shifter.offset:g}", who)


_READERS: dict[type, Callable[[IntensityMap, Any, str], IntensityMap]] = {
    ScaleIntensityRange: _range,
    NormalizeIntensity: _normalize,
    ScaleIntensity: _scale,
    ScaleIntensityRangePercentiles: _percentiles,
    ShiftIntensity: _shift,
}

READ = (*_READERS, *_INNER)
"""Classes whose formula is read from an object's attributes."""


def _begin(base: str, points: tuple[float, float], images: tuple[float, float], step: str) -> IntensityMap:
    """Each image is scaled by itself: whatever came before has no say in the unit."""
    return IntensityMap(base, points, (np.float64(images[0]), np.float64(images[1])), named=True, steps=(step,))


def _by_channel(values: Any, channel_wise: bool) -> Any:
    """A fixed subtrahend or divisor, ``()`` or ``(C,)``; `None` is nothing to subtract.

    Raises:
        ValueError: when it differs from voxel to voxel.
    """
    array = np.asarray(0.0 if values is None else values, dtype=np.float64)
    if array.ndim == 0 or (array.size == 1 and not channel_wise):
        return array.reshape(())
    if array.size != len(array) or (array.ndim == 1 and not channel_wise):  # which MONAI lays along the last axis
        raise ValueError("expected one value, or one per channel")
    return array.reshape(-1)


def _said(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in np.ravel(values))
