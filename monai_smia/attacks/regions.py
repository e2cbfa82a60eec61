# SPDX-License-Identifier: Apache-2.0
"""Regions of an image: a ball of so many millimetres, or a mask."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks.spacing import Spacing, as_rows, as_spacing, known_spacing, per_sample_rows, spacing_of


@dataclass(frozen=True)
class Ball:
    r"""The voxels whose centre lies within a radius of a point.

    .. math:: \{i : \textstyle\sum_a s_a^2 (i_a - c_a)^2 \le r^2\}

    In 2-D a disc. It also serves as the `mask` of an attack: ``mask=ball(image)``.

    Args:
        at: c, in voxel indices along each axis, fractions allowed; or a row of them for each sample.
        radius_mm: r, in millimetres, above 0.
        spacing: s, millimetres per voxel along each axis, ``(sx, sy[, sz])``, or a row for each sample, or a batched
            `MetaTensor` to read it from. ``None`` takes that of the image, where it carries an affine.

    Raises:
        TypeError, ValueError: at construction, naming the argument; at the call where the ball holds no voxel, or the
            image has no spacing.

    Example:
        >>> ball = Ball(at=(1, 2), radius_mm=2.0, spacing=(2.0, 1.0))
        >>> ball(torch.zeros(1, 1, 3, 5))[0, 0].int()
        tensor([[0, 0, 1, 0, 0],
                [1, 1, 1, 1, 1],
                [0, 0, 1, 0, 0]], dtype=torch.int32)
    """

    at: Any
    radius_mm: float
    spacing: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", as_rows("at", self.at))
        if self.spacing is not None:
            object.__setattr__(self, "spacing", as_spacing(self.spacing))
            if self.rank != self.spacing.rank:
                raise ValueError(f"at: expected {self.spacing.rank} indices, as spacing has axes; got {self.at}")
        if not (isinstance(self.radius_mm, (int, float)) and math.isfinite(self.radius_mm) and self.radius_mm > 0):
            raise ValueError(f"radius_mm: expected millimetres > 0; got {self.radius_mm!r}")

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.at[0])

    def located(self, spacing: Spacing | None) -> Ball:
        """The ball on a grid of this spacing, unless it has one already."""
        return self if self.spacing is not None or spacing is None else dataclasses.replace(self, spacing=spacing)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """The ball on the grid of `image`, ``BCHW[D]``, as a mask ``(B, 1, H, W[, D])``, bool."""
        batch, shape = len(image), image.shape[2:]
        if len(shape) != self.rank:
            raise ValueError(f"at: {self.rank} indices for an image of shape {tuple(image.shape)}")
        rows = known_spacing(self.located(spacing_of(image)).spacing).rows
        points, spacings = per_sample_rows("at", self.at, batch), per_sample_rows("spacing", rows, batch)
        masks = torch.stack([self._inside(shape, at, size) for at, size in zip(points, spacings, strict=True)])
        empty = ~masks.flatten(1).any(1)
        if bool(empty.any()):
            raise ValueError(f"at: the ball holds no voxel of sample {int(empty.nonzero()[0])}; got {self!r}")
        return masks.unsqueeze(1).to(image.device)

    def _inside(self, shape: Sequence[int], at: Sequence[float], spacing: Sequence[float]) -> torch.Tensor:
        axes = [
            ((torch.arange(n, dtype=torch.float64) - c) * s).square()
            for n, c, s in zip(shape, at, spacing, strict=True)
        ]
        distance = sum(torch.meshgrid(*axes, indexing="ij"), torch.zeros((), dtype=torch.float64))
        return distance <= self.radius_mm**2 * (1 + 1e-9)  # a voxel on the surface counts, rounding or not


Region = Ball | torch.Tensor
"""A ball, or a mask of zeros and ones ``(B | 1, 1, H, W[, D])``."""


def check_region(name: str, region: Any) -> None:
    """A `Ball` or a tensor."""
    if not isinstance(region, (Ball, torch.Tensor)):
        raise TypeError(f"{name}: expected a Ball, or a mask (B, 1, H, W[, D]); got {type(region).__name__}")


def inside(name: str, region: Region, image: torch.Tensor) -> torch.Tensor:
    """The region on the grid of `image`, ``BCHW[D]``, as ``(B, H, W[, D])``, bool.

    Raises:
        ValueError: when a mask does not fit, or is empty in a sample.
    """
    if isinstance(region, Ball):
        return region(image)[:, 0]
    shape = (len(image), 1, *image.shape[2:])
    if region.ndim != image.ndim or region.shape[1:] != shape[1:] or len(region) not in (1, shape[0]):
        raise ValueError(f"{name}: expected a mask of shape {shape}; got {tuple(region.shape)}")
    where = torch.as_tensor(region > 0.5, device=image.device).expand(shape)[:, 0]
    if not bool(where.flatten(1).any(1).all()):
        raise ValueError(f"{name}: expected a voxel in every sample; the mask is empty in one")
    return where
