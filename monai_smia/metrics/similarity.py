# SPDX-License-Identifier: Apache-2.0
"""`similarity_metrics`: MONAI's PSNR and SSIM with the data range of the network's input."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai.metrics import CumulativeIterationMetric, PSNRMetric, SSIMMetric
from monai.utils import MetricReduction

from monai_smia.intensity import IntensityScale


def similarity_metrics(
    spatial_dims: int,
    *,
    bounds: Sequence[float] | None = None,
    intensity: IntensityScale | None = None,
    win_size: int = 11,
    reduction: MetricReduction | str = MetricReduction.MEAN,
) -> dict[str, CumulativeIterationMetric]:
    r"""`PSNRMetric` and `SSIMMetric` for (clean, adversarial) images in network units, one value per image.

    .. math:: \text{PSNR} = 20 \log_{10} R - 10 \log_{10} \frac{1}{d} \sum_j \delta_j^2, \quad R = \text{high} -
              \text{low}

    Args:
        spatial_dims: 2 or 3, the images' rank.
        bounds: ``(low, high)`` of the network's input, numbers.
        intensity: its network range ``b_max - b_min`` is taken instead; exactly one of both is given.
        win_size: side of SSIM's window in voxels; at most the smallest side of the images.
        reduction: as in MONAI's metrics.

    Returns:
        ``{"psnr": PSNRMetric, "ssim": SSIMMetric}``. The PSNR of an image that did not change is infinite.
        SSIM's luminance term is made for intensities that are not negative.

    Raises:
        ValueError: when none or both of `bounds` and `intensity` are given, or the range is not one positive number.

    Example:
        >>> import torch
        >>> metrics = similarity_metrics(2, bounds=(0.0, 1.0))
        >>> psnr = metrics["psnr"](torch.full((1, 1, 16, 16), 0.5), torch.full((1, 1, 16, 16), 0.51))
        >>> round(psnr.item(), 2)
        40.0
    """
    if (bounds is None) == (intensity is None):
        raise ValueError(f"bounds, intensity: expected exactly one; got bounds={bounds!r}, intensity={intensity!r}")
    low, high = (intensity.b_min, intensity.b_max) if intensity is not None else _numbers(bounds)
    return {
        "psnr": PSNRMetric(max_val=high - low, reduction=reduction),
        "ssim": SSIMMetric(spatial_dims, data_range=high - low, win_size=win_size, reduction=reduction),
    }


def _numbers(bounds: Sequence[float] | None) -> tuple[float, float]:
    numbers = tuple(bounds or ())
    if len(numbers) != 2 or not all(isinstance(value, (int, float)) for value in numbers):
        raise ValueError(f"bounds: expected two numbers (low, high), one range for all channels; got {bounds!r}")
    low, high = numbers
    if not 0 < high - low < math.inf:
        raise ValueError(f"bounds: expected low < high; got {bounds!r}")
    return float(low), float(high)
