# SPDX-License-Identifier: Apache-2.0
"""`RandomResize`: the input diversity of DI-FGSM in 2-D and 3-D, undone on dense predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from monai_smia.attacks.nested import map_tensors
from monai_smia.attacks.threat_models import Size


@dataclass(frozen=True)
class View:
    """One draw: each sample shrunk by its factor and put somewhere in a frame of the image's size.

    Args:
        scale: ``(B,)``, in (0, 1]; 1 leaves the sample as it is.
        offset: ``(B, spatial)``, in [-1, 1], where in the free room of the frame the shrunk image goes.
        fill: value of the frame, broadcasts against ``BCHW[D]``.
    """

    scale: torch.Tensor
    offset: torch.Tensor
    fill: Size

    def apply(self, image: torch.Tensor) -> torch.Tensor:
        """The view of `image`, ``BCHW[D]``, linearly interpolated; differentiable."""
        shift = self.offset * (1 - self.scale)[:, None]
        moved = _affine(image - self.fill, 1 / self.scale, -shift / self.scale[:, None]) + self.fill
        return torch.where(self._untouched(image), image, moved)

    def undo(self, prediction: Any) -> Any:
        """A dense prediction on the grid of the image that was viewed; a prediction without spatial axes as it is."""
        return map_tensors(prediction, self._undo)

    def _undo(self, prediction: torch.Tensor) -> torch.Tensor:
        if prediction.ndim != self.offset.shape[1] + 2:
            return prediction
        back = _affine(prediction, self.scale, self.offset * (1 - self.scale)[:, None])
        return torch.where(self._untouched(prediction), prediction, back)

    def _untouched(self, image: torch.Tensor) -> torch.Tensor:
        return (self.scale == 1).reshape(-1, *[1] * (image.ndim - 1))


def _affine(image: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Sample `image` at ``scale * u + shift``, u in [-1, 1] along each axis of its shape; zeros outside."""
    spatial = image.ndim - 2
    theta = torch.zeros(len(image), spatial, spatial + 1, dtype=image.dtype, device=image.device)
    theta[:, :, :spatial] = torch.eye(spatial, dtype=image.dtype, device=image.device) * scale[:, None, None]
    theta[:, :, spatial] = shift.flip(1)  # affine_grid counts axes from the last
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@dataclass(frozen=True)
class RandomResize:
    """Draws a `View` for each sample: a shrink by a factor in [`rate`, 1) to a random place, or none.

    Args:
        rate: smallest factor, in (0, 1].
        probability: in [0, 1].
        fill: value around the shrunk image: the darkest of the intensity range.
    """

    rate: float
    probability: float
    fill: Size

    def draw(self, image: torch.Tensor, generator: torch.Generator) -> View:
        """A view for the samples of `image`, ``BCHW[D]``."""
        numbers = torch.rand(len(image), image.ndim, generator=generator, dtype=image.dtype, device=generator.device)
        numbers = numbers.to(image.device)
        shrunk = self.rate + (1 - self.rate) * numbers[:, 0]
        scale = torch.where(numbers[:, 1] < self.probability, shrunk, torch.ones_like(shrunk))
        return View(scale, 2 * numbers[:, 2:] - 1, self.fill)
