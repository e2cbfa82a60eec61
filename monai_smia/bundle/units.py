# SPDX-License-Identifier: Apache-2.0
"""`read_intensity`: in which units an eps may be given for a bundle, and its bounds, from its own preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_smia.bundle.intensity_map import DEVIATION, LOST, PERCENT, IntensityMap
from monai_smia.bundle.intensity_walk import intensity_map
from monai_smia.intensity import IntensityScale

Bounds = tuple[float | tuple[float, ...], float | tuple[float, ...]]
"""``(low, high)``, numbers or one per channel, as attacks take them."""

NETWORK = "net"
"""The unit of the network's input, which every bundle has."""

GREY = (0.0, 255.0)
CT_LOWEST, CT_HIGHEST, CT_WINDOW = -2048.0, 4096.0, 150.0  # 12-bit CT, and no narrower than windows that cross air


@dataclass(frozen=True)
class IntensityReading:
    """How the network's input relates to physical intensities.

    Attributes:
        scale: the affine map from `default_unit` to the network's input, for reports and conversions; ``None`` where
            there is none, or where it differs from channel to channel.
        bounds: of the network's input, for an attack; ``None`` where it has none.
        units: in which an eps may be given, the best first.
        default_unit: the first.
        said: one sentence for a person: what was found, and in which transform.
        missing: what the user must give, where the preprocessing cannot be read.
        channels: a scale for each channel, where they differ.
    """

    scale: IntensityScale | None
    bounds: Bounds | None
    units: tuple[str, ...]
    default_unit: str
    said: str
    missing: str | None
    channels: tuple[IntensityScale, ...] = ()

    @classmethod
    def unknown(cls) -> IntensityReading:
        """A reading of nothing: eps in network units, or in percent of each image's own range."""
        return cls(None, None, (NETWORK, PERCENT), NETWORK, "", "give --eps in network units, such as 0.03net")


def read_intensity(
    transforms: Any, key: str = "image", *, modality: str | None = None, value_range: Sequence[float] | None = None
) -> IntensityReading:
    """Read units and bounds from a preprocessing, transform by transform.

    Affine transforms (`ScaleIntensityRange`, `NormalizeIntensity` with a fixed divisor, `ScaleIntensity` with a factor,
    `ShiftIntensity`, and their dictionary versions) are composed exactly. Where an image is scaled by itself, the unit
    is percent of its own range (``%``) or its standard deviation (``SD``). What moves, cuts, pads, loads or casts is
    passed over, and everything else makes the unit unknown, until an image is scaled by itself again.

    =================  ===========================================================================================
    unit               one of it is
    =================  ===========================================================================================
    ``grey``           a stored grey level, where a transform names the range 0..255, or nothing scales and the
                       metadata says 0..255
    ``HU``             a Hounsfield unit, where the modality is CT, or no modality is given and the range is a CT window
    ``intensity``      any other stored intensity
    ``%``              a hundredth of each image's own range: as scaled by the preprocessing; where it does not, as the
                       network is given it
    ``SD``             a standard deviation of each image, as its z-score takes it
    ``net``            a unit of the network's input; every bundle has it
    =================  ===========================================================================================

    Bounds come from clipping, from an image's own range, from the ends of 8-bit grey levels, or at last from
    `value_range`. That is not used for images that are scaled by themselves without a clip, nor where it leaves out a
    part of the range that the transforms name: both are common errors of metadata.

    Args:
        transforms: of the validation data: a transform, a `Compose`, or any nesting of them.
        key: the image's key.
        modality: what ``metadata.json`` says, such as ``"CT"``.
        value_range: ``network_data_format.inputs.image.value_range`` of ``metadata.json``.

    Example:
        >>> from monai.transforms import ScaleIntensityRanged
        >>> reading = read_intensity(ScaleIntensityRanged("image", -57, 164, 0, 1, clip=True), modality="CT")
        >>> reading.units, reading.bounds
        (('HU', 'net'), (0.0, 1.0))
        >>> print(reading.said)
        ScaleIntensityRanged maps -57..164 to 0..1 and clips: 1 HU is 0.00452489 of the network's input, bounds 0..1.
    """
    state = intensity_map(transforms, key)
    declared = _two_numbers(value_range)
    unit = _unit(state, modality, declared)
    bounds, source = _bounds(state, unit, declared)
    scales = () if state.base == LOST else tuple(state.channel(index, unit) for index in range(state.channels()))
    per_image = (PERCENT,) if unit in ("SD", "intensity", NETWORK) else ()
    return IntensityReading(
        scale=scales[0] if len(scales) == 1 else None,
        bounds=bounds,
        units=(unit, *per_image, *([] if unit == NETWORK else [NETWORK])),
        default_unit=unit,
        said=_sentence(state, unit, scales, bounds, source),
        missing=_missing(state, bounds),
        channels=scales if len(scales) > 1 else (),
    )


def _unit(state: IntensityMap, modality: str | None, declared: tuple[float, float] | None) -> str:
    if state.base == LOST:
        return NETWORK
    if state.base in (PERCENT, DEVIATION):
        return state.base
    kind = (modality or "").strip().upper()
    if (state.points if state.steps else declared) == GREY:
        return "grey"
    if kind in ("CT", "COMPUTED TOMOGRAPHY"):
        return "HU"
    low, high = state.points
    window = CT_LOWEST <= low < 0 < high <= CT_HIGHEST and high - low >= CT_WINDOW and low <= -CT_WINDOW / 3
    return "HU" if window and state.named and kind in ("", "NONE", "UNKNOWN") else "intensity"


def _bounds(state: IntensityMap, unit: str, declared: tuple[float, float] | None) -> tuple[Bounds | None, str]:
    """The bounds, and where they come from unless it is a clip, or why there are none."""
    found = state.bounds()
    if found is not None:
        return (_plain(found[0]), _plain(found[1])), ""
    if unit == "grey" and state.points == GREY:
        return (_plain(state.images[0]), _plain(state.images[1])), ", where 8-bit grey levels end"
    if declared is None:
        return None, ""
    said = f"metadata's value_range {declared[0]:g}..{declared[1]:g}"
    if state.base in (DEVIATION, PERCENT):
        return None, f"; {said} is not that of images scaled by themselves without a clip, and is not used"
    covered = declared[0] <= np.min(state.images[0]) and np.max(state.images[1]) <= declared[1]
    if state.base != LOST and state.named and not covered:
        return None, f"; {said} leaves out a part of what the transforms name, and is not used"
    return declared, ", as metadata's value_range says"


def _plain(values: Any) -> float | tuple[float, ...]:
    each = [float(value) for value in np.ravel(values)]
    return each[0] if len(set(each)) == 1 else tuple(each)


def _two_numbers(value_range: Any) -> tuple[float, float] | None:
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError):  # many bundles leave it empty
        return None
    return (low, high) if -np.inf < low < high < np.inf else None


def _sentence(
    state: IntensityMap, unit: str, scales: Sequence[IntensityScale], bounds: Bounds | None, source: str
) -> str:
    if state.lost and state.base == LOST:
        found = f"{state.lost} changes intensities in a way that cannot be read: eps is in network units (net)"
    else:
        did = ", ".join(state.steps) or "nothing scales the intensities"
        sizes = ", ".join(f"{scale.to_network(1.0):g}" for scale in scales)
        found = f"{did}: 1 {unit} is {sizes} of the network's input{' (by channel)' if len(scales) > 1 else ''}"
    ends = "no bounds" if bounds is None else f"bounds {_say(bounds[0])}..{_say(bounds[1])}"
    return "; ".join((f"{found}, {ends}{source}", *state.notes)) + "."


def _say(value: float | tuple[float, ...]) -> str:
    return f"({', '.join(f'{each:g}' for each in value)})" if isinstance(value, tuple) else f"{value:g}"


def _missing(state: IntensityMap, bounds: Bounds | None) -> str | None:
    if state.base != LOST:
        return None
    also = "" if bounds is not None else ", and --bounds LOW,HIGH if the input has any"
    return (
        f"give --eps in network units, such as 0.03net, or in percent of each image's own range, such as 1%{also}: "
        f"{state.lost} changes intensities in a way that cannot be read"
    )
