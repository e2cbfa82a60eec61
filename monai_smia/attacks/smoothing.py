# SPDX-License-Identifier: Apache-2.0
"""`Gaussian`: a symmetric, separable filter for any rank, any number of channels and anisotropic voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.networks.layers import gaussian_1d, separable_filtering

from monai_smia.attacks.argument_kinds import check_kinds


@dataclass(frozen=True)
class Gaussian:
    r"""Depthwise Gaussian filter of the same size in and out.

    Along each spatial axis, with n the distance in taps and d the dilation,

    .. math:: (W * x)_i = \sum_{n=-r}^{r} w_n\, x_{i + d n},
              \qquad w_n \propto e^{-n^2 / 2 \sigma^2}, \qquad \sum_n w_n = 1

    Args:
        sigma: standard deviation, in voxels, or in millimetres where `spacing` is given; 0 leaves the image as it is.
        kernel_size: taps along each axis, odd; ``None`` takes 3 where sigma is in voxels, and three standard
            deviations on each side of every axis where it is in millimetres.
        dilation: distance between taps, in voxels.
        spacing: millimetres per voxel, one row for each sample or a single row, ``((sx, sy[, sz]), ...)``.
        padding: ``"replicate"`` for images, ``"zeros"`` for gradients.

    Example:
        >>> Gaussian(sigma=1.0, kernel_size=3)(torch.tensor([[[0.0, 1.0, 0.0]]]))
        tensor([[[0.2741, 0.4519, 0.2741]]])
    """

    sigma: float
    kernel_size: int | None = None
    dilation: int = 1
    spacing: Sequence[Sequence[float]] | None = None
    padding: str = "replicate"

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.sigma < 0:
            raise ValueError(f"sigma: expected a finite number >= 0; got {self.sigma!r}")
        if self.kernel_size is not None and (self.kernel_size < 1 or self.kernel_size % 2 == 0):
            raise ValueError(f"kernel_size: expected an odd number of taps, or None; got {self.kernel_size!r}")
        if self.dilation < 1:
            raise ValueError(f"dilation: expected at least 1; got {self.dilation!r}")

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """`image` filtered, ``BCHW[D]``."""
        return self.on(image)(image)

    def on(self, image: torch.Tensor) -> PlacedFilter:
        """This filter for images like `image`, its taps beside them: for a loop, which then waits for none."""
        if self.spacing is None:
            rows = [[self._taps(self.sigma)] * (image.ndim - 2)]
        else:
            rows = [[self._taps(self.sigma / size) for size in row] for row in self.spacing]
        return PlacedFilter(tuple(tuple(taps.to(image) for taps in row) for row in rows), self.padding)

    def _taps(self, sigma: float) -> torch.Tensor:
        size = self.kernel_size
        if size is None:
            size = 3 if self.spacing is None else 2 * math.ceil(3 * sigma) + 1
        if sigma == 0 or size == 1:
            return torch.ones(1)
        taps = gaussian_1d(torch.tensor(sigma), truncated=(size // 2) / sigma, approx="sampled", normalize=True)
        spread = torch.zeros(self.dilation * (len(taps) - 1) + 1)
        spread[:: self.dilation] = taps
        return spread


@dataclass(frozen=True, eq=False)
class PlacedFilter:
    """A separable filter whose taps are where the images are.

    Args:
        rows: taps along each axis, a row for each sample or a single row.
        padding: as in `Gaussian`.
    """

    rows: tuple[tuple[torch.Tensor, ...], ...]
    padding: str

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """`image` filtered, ``BCHW[D]``."""
        rows = [list(row) for row in self.rows]
        if len(rows) == 1:
            return separable_filtering(image, rows[0], mode=self.padding)
        filtered = [separable_filtering(image[i : i + 1], row, mode=self.padding) for i, row in enumerate(rows)]
        return torch.cat(filtered)
