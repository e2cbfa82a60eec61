# SPDX-License-Identifier: Apache-2.0
"""`structural_similarity`: SSIM with a small box window, for any rank, differentiable, one value per sample."""

from __future__ import annotations

import torch
from monai.networks.layers import separable_filtering

from monai_smia.attacks.threat_models import Size


def structural_similarity(image: torch.Tensor, other: torch.Tensor, data_range: Size, window: int = 3) -> torch.Tensor:
    r"""Mean structural similarity of two images.

    .. math:: \frac{(2 \mu_x \mu_y + c_1)(2 \sigma_{xy} + c_2)}
                   {(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)}, \qquad
              c_1 = (0.01 R)^2, \quad c_2 = (0.03 R)^2

    averaged over voxels and channels; moments over a box around each voxel, border values repeated outside.

    Args:
        image, other: ``BCHW[D]``, one to three spatial axes.
        data_range: R, a number or a tensor that broadcasts against the image, positive.
        window: width of the box in voxels, odd.

    Returns:
        ``(B,)``, at most 1, which equal images reach.

    Example:
        >>> x = torch.rand(1, 1, 6, 6)
        >>> structural_similarity(x, x, 1.0)
        tensor([1.])

    Reference: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural
    similarity", IEEE Transactions on Image Processing, 2004, https://doi.org/10.1109/TIP.2003.819861.
    """
    box = torch.full((window,), 1 / window, dtype=image.dtype)

    def mean(x: torch.Tensor) -> torch.Tensor:
        return separable_filtering(x, [box] * (image.ndim - 2), mode="replicate")

    mean_x, mean_y = mean(image), mean(other)
    variance_x, variance_y = mean(image * image) - mean_x**2, mean(other * other) - mean_y**2
    covariance = mean(image * other) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)).flatten(1).mean(1)
