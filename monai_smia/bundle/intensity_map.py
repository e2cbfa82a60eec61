# SPDX-License-Identifier: Apache-2.0
"""`IntensityMap`: what a preprocessing does to intensities, as one line through two points with limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_smia.intensity import IntensityScale

Values = Any
"""A float64 array, ``()`` for all channels alike or ``(C,)``."""

STORED, PERCENT, DEVIATION, LOST = "stored", "%", "SD", ""
"""What the line starts from: stored intensities, percent of each image's range, its standard deviations, unknown."""


@dataclass(frozen=True, eq=False)
class IntensityMap:
    r"""The map from base intensities to the network's input, per channel.

    .. math:: x_{\text{network}} = n_0 + (x_{\text{base}} - p_0) \frac{n_1 - n_0}{p_1 - p_0}

    clipped to ``[low, high]``. Two points are carried through every transform by its own formula, so that the ends of a
    range keep their exact numbers, which a slope and an intercept would round.

    Attributes:
        base: one of `STORED`, `PERCENT`, `DEVIATION`, `LOST`.
        points: ``(p0, p1)``, in base units.
        images: ``(n0, n1)``, what they have become; ``()`` or ``(C,)`` each.
        limits: ``(low, high)``, infinite where nothing clips.
        named: whether `points` are the ends of a range that a transform names, and not just 0 and 1.
        steps: what changed the intensities, one phrase each, since the base began.
        notes: what else a person should know.
        lost: name of the transform after which the base is unknown.

    Example:
        >>> window = IntensityMap().through(lambda x: (x + 1000) / 1400, "scaled").clipped(0, 1)
        >>> window.channel(0, "HU").bounds, round(window.channel(0, "HU").to_network(14), 6)
        ((0.0, 1.0), 0.01)
    """

    base: str = STORED
    points: tuple[float, float] = (0.0, 1.0)
    images: tuple[Values, Values] = (np.float64(0.0), np.float64(1.0))
    limits: tuple[Values, Values] = (np.float64(-np.inf), np.float64(np.inf))
    named: bool = False
    steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lost: str = ""

    def through(self, function: Callable[[Values], Values], step: str, who: str = "it") -> IntensityMap:
        """After an affine function of the intensities; `LOST` where it turns them around or makes them equal."""
        with np.errstate(invalid="ignore"):
            images = (function(self.images[0]), function(self.images[1]))
            ends = (function(self.limits[0]), function(self.limits[1]))
        limits = (np.minimum(*ends), np.maximum(*ends))
        if not bool(np.all(images[0] < images[1])):
            return dataclasses.replace(self.without_base(who), limits=limits)
        return dataclasses.replace(self, images=images, limits=limits, steps=(*self.steps, step))

    def clipped(self, low: float | None, high: float | None) -> IntensityMap:
        """After a clip; ``None`` leaves an end open."""
        low, high = -np.inf if low is None else low, np.inf if high is None else high
        return dataclasses.replace(self, limits=tuple(np.clip(end, low, high) for end in self.limits))

    def unlimited(self) -> IntensityMap:
        """After a shift that is another one in every image."""
        return dataclasses.replace(self, limits=(np.float64(-np.inf), np.float64(np.inf)))

    def reaching(self, value: float) -> IntensityMap:
        """After a transform that leaves some voxels at this value, inside the limits or not."""
        low, high = self.limits
        return dataclasses.replace(self, limits=(np.minimum(low, value), np.maximum(high, value)))

    def naming(self, low: float, high: float) -> IntensityMap:
        """With the points that have become `low` and `high`, unless a range has been named before."""
        if self.named or self.base != STORED or np.ndim(self.images[0]) or not low < high:
            return self
        points = (low, high) if self.images == self.points else (self._back(low), self._back(high))
        return dataclasses.replace(self, points=points, images=(np.float64(low), np.float64(high)), named=True)

    def noting(self, note: str) -> IntensityMap:
        """With a note."""
        return dataclasses.replace(self, notes=(*self.notes, note))

    def without_base(self, who: str) -> IntensityMap:
        """After a transform that cannot be read."""
        return IntensityMap(LOST, lost=self.lost or who)

    def bounds(self) -> tuple[Values, Values] | None:
        """The limits where both are there and apart in every channel."""
        low, high = self.limits
        return self.limits if bool(np.all(np.isfinite(low) & np.isfinite(high) & (low < high))) else None

    def channels(self) -> int:
        """How many channels differ; 1 when all are alike."""
        together = np.broadcast_arrays(*self.images, *self.limits)
        alike = all(np.all(values == values.flat[0]) for values in together)
        return 1 if alike else int(together[0].size)

    def channel(self, index: int, unit: str) -> IntensityScale:
        """One channel's map as an `IntensityScale`: over its bounds where it has them, else over its points."""
        n0, n1, low, high = (np.ravel(ends)[index if np.ndim(ends) else 0] for ends in (*self.images, *self.limits))
        points, clip = self.points, self.bounds() is not None
        if clip and (n0, n1) != (low, high):
            slope = (points[1] - points[0]) / (n1 - n0)
            points = (points[0] + (low - n0) * slope, points[0] + (high - n0) * slope)
        ends = (low, high) if clip else (n0, n1)
        return IntensityScale(float(points[0]), float(points[1]), float(ends[0]), float(ends[1]), clip, unit)

    def _back(self, value: float) -> float:
        (p0, p1), (n0, n1) = self.points, self.images
        return float(p0 + (value - n0) * (p1 - p0) / (n1 - n0))
