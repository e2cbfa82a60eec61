# SPDX-License-Identifier: Apache-2.0
"""`IntensityScale`: network input units to physical units and back, read from the bundle's own scaling transform."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from monai.transforms import (
    Compose,
    HistogramNormalize,
    NormalizeIntensity,
    ScaleIntensity,
    ScaleIntensityRange,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentiles,
    ThresholdIntensity,
)

from monai_smia.attacks.argument_kinds import check_kinds

Value = Any
"""A number or a tensor; what comes back is of the same kind."""

# Transforms after which one network unit is no longer a fixed number of physical ones.
_RESCALING = (
    NormalizeIntensity,
    ScaleIntensity,
    ScaleIntensityRangePercentiles,
    HistogramNormalize,
    ThresholdIntensity,
)


@dataclass(frozen=True)
class IntensityScale:
    r"""The affine map of a `ScaleIntensityRange` between physical intensities and the network's input.

    .. math:: x_{\text{network}} = (x_{\text{physical}} - a_{\min})
              \frac{b_{\max} - b_{\min}}{a_{\max} - a_{\min}} + b_{\min}

    Args:
        a_min, a_max: physical intensities, in `unit`.
        b_min, b_max: the network's input where the physical ones are these.
        clip: whether the network's input was clipped to ``[b_min, b_max]``.
        unit: name of the physical unit, for reports.

    Raises:
        ValueError: when a range is empty or reversed.

    Example:
        >>> scale = IntensityScale(a_min=-1000, a_max=400, b_min=0.0, b_max=1.0, clip=True)
        >>> round(scale.to_network(14.0), 6), round(scale.to_physical(0.01), 6), scale.bounds
        (0.01, 14.0, (0.0, 1.0))
    """

    a_min: float
    a_max: float
    b_min: float = 0.0
    b_max: float = 1.0
    clip: bool = False
    unit: str = "HU"

    def __post_init__(self) -> None:
        check_kinds(self)
        for low, high in (("a_min", "a_max"), ("b_min", "b_max")):
            if not getattr(self, low) < getattr(self, high):
                raise ValueError(
                    f"{low}, {high}: expected {low} < {high}; got {getattr(self, low)}, {getattr(self, high)}"
                )

    @classmethod
    def from_transforms(cls, transforms: Any, key: str = "image", unit: str = "HU") -> IntensityScale:
        """Read the scale from the preprocessing, where exactly one `ScaleIntensityRanged` acts on the image.

        Args:
            transforms: a transform, a `Compose`, or any nesting of them.
            key: the image's key.
            unit: the physical unit of the stored image; nothing in the transform names it.

        Raises:
            ValueError: when no such transform is found, when there are several, or when one of `NormalizeIntensity`,
                `ScaleIntensity` and the like takes the fixed unit away again.
        """
        found: list[ScaleIntensityRange] = []
        for transform in _flatten(transforms):
            if key not in getattr(transform, "keys", (key,)):
                continue
            inner = transform.scaler if isinstance(transform, ScaleIntensityRanged) else transform
            if isinstance(inner, ScaleIntensityRange):
                found.append(inner)
            elif isinstance(inner, _RESCALING) or type(transform).__name__.removesuffix("d") in _NAMES:
                raise ValueError(
                    f"transforms: {type(transform).__name__} scales every image by itself, so that the network's "
                    "input has no physical unit; expected ScaleIntensityRanged alone, or an eps relative to each image"
                )
        if len(found) != 1:
            raise ValueError(
                f"transforms: expected one ScaleIntensityRanged for the key {key!r}, to read the unit from; got "
                f"{len(found)}. Give an IntensityScale with its own numbers instead"
            )
        scaler = found[0]
        open_ended = scaler.b_min is None or scaler.b_max is None  # scaled to 0..1, and not clipped at that end
        low, high = (0.0, 1.0) if open_ended else (scaler.b_min, scaler.b_max)
        clip = bool(scaler.clip) and not open_ended
        return cls(float(scaler.a_min), float(scaler.a_max), float(low), float(high), clip, unit)

    @property
    def unit_size(self) -> float:
        """Physical units per network unit."""
        return (self.a_max - self.a_min) / (self.b_max - self.b_min)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The network's input range where it was clipped, to be given to an attack; else ``None``."""
        return (self.b_min, self.b_max) if self.clip else None

    def to_network(self, size: Value) -> Value:
        """A difference of intensities (an eps, a step) from physical to network units."""
        return size / self.unit_size

    def to_physical(self, size: Value) -> Value:
        """A difference of intensities from network to physical units."""
        return size * self.unit_size

    def value_to_network(self, value: Value) -> Value:
        """An intensity from physical to network units; not clipped."""
        return (value - self.a_min) / self.unit_size + self.b_min

    def value_to_physical(self, value: Value) -> Value:
        """An intensity from network to physical units."""
        return (value - self.b_min) * self.unit_size + self.a_min


_NAMES = {transform.__name__ for transform in _RESCALING}


def _flatten(transforms: Any) -> Iterator[Any]:
    if isinstance(transforms, Compose):
        transforms = transforms.transforms
    if isinstance(transforms, (tuple, list)):
        for transform in transforms:
            yield from _flatten(transform)
    elif transforms is not None:
        yield transforms
