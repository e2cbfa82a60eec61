# SPDX-License-Identifier: Apache-2.0
"""What may happen to an image after an attack: smoothing, JPEG, resampling; in 2-D and 3-D."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from monai_smia.attacks.smoothing import Gaussian

QUALITY = 75
VIEWS = ("smoothed", "jpeg", "resampled")


def smoothed(image: torch.Tensor, bounds: tuple[float, float]) -> torch.Tensor:
    """A Gaussian of one voxel, five taps."""
    return Gaussian(1.0, 5)(image)


def resampled(image: torch.Tensor, bounds: tuple[float, float]) -> torch.Tensor:
    """Half the size and back, linearly."""
    mode = "bilinear" if image.ndim == 4 else "trilinear"
    half = interpolate(image, scale_factor=0.5, mode=mode, antialias=image.ndim == 4)
    return interpolate(half, size=image.shape[2:], mode=mode)


def jpeg(image: torch.Tensor, bounds: tuple[float, float]) -> torch.Tensor:
    """Eight bits between the bounds, JPEG, and back; a volume slice by slice along its last axis."""
    low, high = bounds
    grey = ((image - low) / (high - low) * 255).round().clamp(0, 255).byte()
    slices = grey.unsqueeze(-1) if image.ndim == 4 else grey
    out = torch.empty_like(slices)
    for i in range(len(slices)):
        for k in range(slices.shape[-1]):
            out[i, ..., k] = _through_jpeg(slices[i, ..., k])
    return out.reshape(grey.shape).to(image.dtype) / 255 * (high - low) + low


def _through_jpeg(image: torch.Tensor) -> torch.Tensor:
    """``(C, H, W)`` of bytes, one or three channels."""
    array = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    back = np.array(Image.open(buffer)).reshape(array.shape)
    return torch.from_numpy(back).permute(2, 0, 1)


APPLY = {"smoothed": smoothed, "jpeg": jpeg, "resampled": resampled}
