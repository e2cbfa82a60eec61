# SPDX-License-Identifier: Apache-2.0
"""Windows of an image, the weights that MONAI blends their predictions with, and the transpose of that blending."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

Index = tuple[slice, ...]
"""One window of one image: ``(image, channels, *spatial)``, all slices."""

_WHOLE = (slice(None), slice(None))


def gather(image: torch.Tensor, windows: Sequence[Index]) -> torch.Tensor:
    """The windows as a batch, ``(N, C, *window)``, in memory of their own."""
    return torch.cat([image[index] for index in windows]) if len(windows) > 1 else image[windows[0]].clone()


def scatter(image: torch.Tensor, windows: Sequence[Index], values: torch.Tensor) -> None:
    """Add a batch of windows to `image`, the transpose of `gather`."""
    for index, value in zip(windows, values.to(image), strict=True):
        image[index] += value


@dataclass(frozen=True)
class Blending:
    r"""How MONAI puts one output together: ``y = sum_i w p_i / sum_i w`` over the windows i that cover a voxel.

    Args:
        scale: output voxels per image voxel along each axis; ``None`` where they are the same grid.
        count: the denominator, ``(1, 1, *spatial)``, on the output's grid.
    """

    scale: tuple[float, ...] | None
    count: torch.Tensor

    def cut(self, blended: torch.Tensor, index: Index) -> torch.Tensor:
        """The part of an image on the output's grid that a window of the input covers."""
        if self.scale is None:
            return blended[index]
        scaled = [slice(int(i.start * s), int(i.stop * s)) for i, s in zip(index[2:], self.scale, strict=True)]
        return blended[index[:2] + tuple(scaled)]

    def transpose(self, gradient: torch.Tensor, windows: Sequence[Index], weight: torch.Tensor) -> torch.Tensor:
        """From the gradient of y to those of the windows' predictions: ``w * g / sum_i w``, ``(N, K, *window)``."""
        cuts = [self.cut(gradient, index) / self.cut(self.count, _WHOLE + index[2:]) for index in windows]
        batch = torch.cat(cuts) if len(cuts) > 1 else cuts[0]
        return batch.to(weight.device) * weight


def scale_of(output: Sequence[int], window: Sequence[int]) -> tuple[float, ...] | None:
    """Output voxels per input voxel along each axis; ``None`` where an output is as large as its window."""
    if list(output) == list(window):
        return None
    return tuple(out / float(size) for out, size in zip(output, window, strict=True))


def resized(weight: torch.Tensor, shapes: Sequence[Sequence[int]], window: Sequence[int]) -> list[torch.Tensor]:
    """The weight for each output; as in MONAI each is resized from the one before it."""
    weight = weight if weight.ndim > len(window) else weight[None, None]
    weights = []
    for shape in shapes:
        if list(shape) != list(window):
            weight = F.interpolate(weight, list(shape), mode="nearest-exact")
        weights.append(weight)
    return weights


def blending(
    gradient: torch.Tensor, windows: Iterable[Index], weight: torch.Tensor, scale: tuple[float, ...] | None
) -> Blending:
    """The blending of the output that `gradient` belongs to, over the windows of one image."""
    count = torch.zeros((1, 1, *gradient.shape[2:]), dtype=gradient.dtype, device=gradient.device)
    found = Blending(scale, count)
    weight = weight.to(count)
    for index in windows:
        part = found.cut(count, _WHOLE + index[2:])
        part += weight
    return found
