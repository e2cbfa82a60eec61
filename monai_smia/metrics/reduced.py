# SPDX-License-Identifier: Apache-2.0
"""`ReducedMetric`: values per sample, aggregated by MONAI's reductions, undefined where nothing is defined."""

from __future__ import annotations

import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric, do_metric_reduction
from monai.utils import MetricReduction, look_up_option

_SUMS = (MetricReduction.SUM, MetricReduction.SUM_BATCH, MetricReduction.SUM_CHANNEL)


def plain(value: torch.Tensor) -> torch.Tensor:
    """The tensor without its metadata, which arithmetic on many of them would carry along."""
    return value.as_tensor() if isinstance(value, MetaTensor) else value


def reduce(values: torch.Tensor, reduction: MetricReduction | str) -> torch.Tensor:
    """MONAI's reduction over what is defined; a mean of nothing is NaN, where MONAI gives 0, which reads as perfect.

    Args:
        values: ``(B, C)``, NaN where a value is not defined.
        reduction: one of `monai.utils.MetricReduction`.

    Example:
        >>> reduce(torch.tensor([[1.0, float("nan")], [3.0, float("nan")]]), "mean_batch")
        tensor([2., nan])
    """
    reduced, defined = do_metric_reduction(values.clone(), reduction)
    if look_up_option(reduction, MetricReduction) in _SUMS:
        return reduced
    return torch.where(defined > 0, reduced, torch.nan)


class ReducedMetric(CumulativeIterationMetric):
    """Base of the metrics here: subclasses give values ``(B, C)`` in `_compute_tensor`.

    Args:
        reduction: one of `monai.utils.MetricReduction`, applied to what is defined.

    Raises:
        ValueError: when there is no such reduction.
    """

    def __init__(self, reduction: MetricReduction | str = MetricReduction.MEAN) -> None:
        super().__init__()
        self.reduction = look_up_option(reduction, MetricReduction)

    def aggregate(self, reduction: MetricReduction | str | None = None) -> torch.Tensor:
        """The reduction over all samples since the last reset, of all processes.

        Raises:
            ValueError: before the first sample.
        """
        values = self.get_buffer()
        if not isinstance(values, torch.Tensor):
            raise ValueError(f"{type(self).__name__}: expected at least one sample before aggregate(); got none")
        return reduce(values, reduction or self.reduction)
