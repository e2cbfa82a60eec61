# SPDX-License-Identifier: Apache-2.0
"""`Padding`: what MONAI puts around an image that is smaller than a window, and takes off the outputs again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.utils import PytorchPadMode, look_up_option
from torch.nn import functional as F


@dataclass(frozen=True)
class Padding:
    """Padding of images of one spatial shape to at least a window.

    Args:
        shape: spatial shape of the image.
        window: spatial shape of the window.
        mode: as in `SlidingWindowInferer`'s ``padding_mode``.
        value: fill of the mode ``"constant"``.
    """

    shape: Sequence[int]
    window: Sequence[int]
    mode: str
    value: float

    @property
    def pads(self) -> list[int]:
        """Voxels before and after, for each axis from the last to the first."""
        missing = [max(size - have, 0) for size, have in zip(self.window, self.shape, strict=True)]
        return [part for total in reversed(missing) for part in (total // 2, total - total // 2)]

    def put(self, image: torch.Tensor) -> torch.Tensor:
        """The padded image, differentiable; the image itself where nothing is missing."""
        if not any(self.pads):
            return image
        return F.pad(image, self.pads, mode=look_up_option(self.mode, PytorchPadMode), value=self.value)

    def take_off(self, output: torch.Tensor) -> torch.Tensor:
        """An output of any resolution without what comes from the padding, rounded as MONAI rounds."""
        pads = self.pads
        if not any(pads):
            return output
        index = [slice(None), slice(None)]
        for axis, (have, size) in enumerate(zip(self.shape, self.window, strict=True)):
            zoom = output.shape[2 + axis] / size
            before = pads[2 * (len(self.shape) - axis - 1)]
            index.append(slice(round(before * zoom), round((before + have) * zoom)))
        return output[tuple(index)]
