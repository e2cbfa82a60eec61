# SPDX-License-Identifier: Apache-2.0
"""`MetricDrop`: how much of a metric an attack takes away."""

from __future__ import annotations

import copy
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric
from monai.utils import MetricReduction

from monai_smia.metrics.paired import PairedMetric


class MetricDrop(PairedMetric):
    r"""A metric's clean value minus its adversarial value.

    .. math:: \Delta = A(m(p_1, y_1), \dots) - A(m(p'_1, y_1), \dots)

    with the metric m, its own aggregation A, clean predictions p and adversarial ones p'. Called with ``(clean_pred,
    adversarial_pred, target)``, see `PairedMetric` for use in a handler.

    Args:
        metric: any of MONAI's cumulative metrics; copied twice, the one given is left alone.

    Raises:
        TypeError: when `metric` is something else.

    Note:
        The values of the samples are ``(B, C)`` where the metric's are, NaN where the clean or the adversarial one is
        not defined. They are NaN where the metric has no value per sample, as an area under a curve.

    Example:
        >>> from monai.metrics import DiceMetric
        >>> drop = MetricDrop(DiceMetric())
        >>> label = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
        >>> half = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
        >>> round(drop(label, half, label).item(), 4), round(drop.aggregate().item(), 4)  # Dice 1, then 2/3
        (0.3333, 0.3333)
    """

    def __init__(self, metric: CumulativeIterationMetric) -> None:
        if not isinstance(metric, CumulativeIterationMetric):
            raise TypeError(f"metric: expected one of MONAI's cumulative metrics; got {type(metric).__name__}")
        self.clean, self.adversarial = copy.deepcopy(metric), copy.deepcopy(metric)
        super().__init__()

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self.clean.reset()
        self.adversarial.reset()

    def aggregate(self, reduction: MetricReduction | str | None = None) -> Any:
        """The difference of the two aggregates.

        Args:
            reduction: handed on to the metric's own ``aggregate`` where given.

        Returns:
            What the metric's ``aggregate`` returns: a tensor, a number, or a list, of which each entry is subtracted.
        """
        words = {} if reduction is None else {"reduction": reduction}
        return _minus(self.clean.aggregate(**words), self.adversarial.aggregate(**words))

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        clean_pred, adversarial_pred = y_pred.unbind(1)
        clean, adversarial = self.clean(clean_pred, y, **kwargs), self.adversarial(adversarial_pred, y, **kwargs)
        if isinstance(clean, torch.Tensor) and isinstance(adversarial, torch.Tensor):
            return clean - adversarial
        return torch.full((len(y_pred), 1), torch.nan, device=y_pred.device)


def _minus(clean: Any, adversarial: Any) -> Any:
    if isinstance(clean, (tuple, list)):
        return type(clean)(_minus(one, other) for one, other in zip(clean, adversarial, strict=True))
    return clean - adversarial
