# SPDX-License-Identifier: Apache-2.0
"""`PerturbationNorm`: how much an adversarial image differs from the clean one."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.utils import MetricReduction

from monai_smia.intensity import IntensityScale
from monai_smia.metrics.reduced import ReducedMetric, plain

NORMS = (math.inf, 2.0, 1.0, 0.0)


def compute_perturbation_norm(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    norm: float | str = math.inf,
    intensity: IntensityScale | None = None,
) -> torch.Tensor:
    r"""The Lp norm of each sample's perturbation, over channels and voxels, in double precision.

    .. math:: \|\delta\|_\infty = \max_j |\delta_j|, \quad \|\delta\|_2 = \Big(\sum_j \delta_j^2\Big)^{1/2}, \quad
              \|\delta\|_1 = \sum_j |\delta_j|, \quad
              \|\delta\|_0 = \#\{v : \delta_{cv} \ne 0 \text{ for a channel } c\}

    Args:
        clean, adversarial: images ``BCHW[D]``, in the network's input units.
        norm: ``inf`` (in JSON ``"inf"``), 2, 1, or 0 for the number of voxels of which any channel changed.
        intensity: gives the norm in its physical unit; ``None`` in network units. A count has no unit: 0 ignores it.

    Returns:
        ``(B,)``, float64.

    Raises:
        ValueError: for another norm, or images of different shapes.

    Example:
        >>> image = torch.zeros(1, 1, 2, 2)
        >>> other = torch.tensor([[[[0.3, 0.0], [0.0, -0.4]]]])
        >>> [round(float(compute_perturbation_norm(image, other, norm)), 4) for norm in ("inf", 2, 1, 0)]
        [0.4, 0.5, 0.7, 2.0]
    """
    norm = _as_norm(norm)
    if clean.shape != adversarial.shape or clean.ndim < 3:
        raise ValueError(
            f"adversarial: expected an image BCHW[D] of the clean one's shape {tuple(clean.shape)}; "
            f"got {tuple(adversarial.shape)}"
        )
    change = plain(adversarial).double() - plain(clean).to(adversarial.device).double()
    if norm == 0:
        return (change != 0).any(1).flatten(1).sum(1).double()
    size = torch.linalg.vector_norm(change.flatten(1), ord=norm, dim=1)
    return size if intensity is None else torch.as_tensor(intensity.to_physical(size))


class PerturbationNorm(ReducedMetric):
    """The Lp norm of the perturbation, see `compute_perturbation_norm`; called with (clean, adversarial).

    Under an `AttackHandler` both images are in the batch. A post-processing ``CopyItemsd("image_clean",
    names="clean_image")`` puts the clean one into the engine's output, from where ``from_engine(["clean_image",
    "image"])`` gives both to `monai.handlers.IgniteMetricHandler`.

    Args:
        norm: ``inf`` (in JSON ``"inf"``), 2, 1 or 0.
        intensity: physical unit of the norm; ``None`` reports network units.
        reduction: as in MONAI's metrics.

    Raises:
        ValueError: for another norm or reduction.

    Example:
        >>> from monai_smia.intensity import IntensityScale
        >>> metric = PerturbationNorm("inf", intensity=IntensityScale(-1000, 400))
        >>> _ = metric(torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.01))
        >>> round(metric.aggregate().item(), 3)  # HU
        14.0
    """

    def __init__(
        self,
        norm: float | str = math.inf,
        intensity: IntensityScale | None = None,
        reduction: MetricReduction | str = MetricReduction.MEAN,
    ) -> None:
        super().__init__(reduction)
        self.norm = _as_norm(norm)
        self.intensity = intensity

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        if y is None:
            raise ValueError("y: expected the adversarial image beside the clean one; got None")
        return compute_perturbation_norm(y_pred, y, self.norm, self.intensity).unsqueeze(1)


def _as_norm(norm: float | str) -> float:
    value = float(norm) if isinstance(norm, (int, float)) or norm == "inf" else math.nan
    if value not in NORMS:
        raise ValueError(f"norm: expected inf, 2, 1 or 0; got {norm!r}")
    return value
