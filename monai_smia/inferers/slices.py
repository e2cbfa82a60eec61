# SPDX-License-Identifier: Apache-2.0
"""`GradientSliceInferer`: a 2-D network on the slices of a volume, differentiable at constant memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai_smia.inferers.gradient import GradientSlidingWindowInferer


class GradientSliceInferer(GradientSlidingWindowInferer):
    """MONAI's `SliceInferer`, a 2-D network on the slices of a volume, with an exact gradient at constant memory.

    Args:
        spatial_dim: axis that the slices are stacked along: 0, 1 or 2.
        roi_size: window inside a slice, two sizes.
        args, kwargs: as in `GradientSlidingWindowInferer`; not ``with_coord``.

    Example:
        >>> import torch
        >>> volume = torch.rand(1, 1, 24, 20, 4)
        >>> inferer = GradientSliceInferer(spatial_dim=2, roi_size=(16, 16), sw_batch_size=2)
        >>> inferer(volume, torch.nn.Conv2d(1, 3, 3, padding=1)).shape
        torch.Size([1, 3, 24, 20, 4])
    """

    def __init__(self, spatial_dim: int = 0, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if spatial_dim not in (0, 1, 2):
            raise ValueError(f"spatial_dim: expected 0, 1 or 2; got {spatial_dim!r}")
        if not isinstance(self.roi_size, Sequence) or len(self.roi_size) != 2:
            raise ValueError(f"roi_size: expected two sizes, those of a window in a slice; got {self.roi_size!r}")
        if self.with_coord:
            raise ValueError("with_coord: a network of slices is given no coordinates; expected False")
        self.spatial_dim = self._flat = spatial_dim

    def _window(self, rank: int) -> Any:
        if rank != 3:
            raise ValueError(f"inputs: expected BCHWD, whose slices a 2-D network sees; got {rank} spatial axes")
        window = list(self.roi_size)
        window.insert(self.spatial_dim, 1)
        return window
