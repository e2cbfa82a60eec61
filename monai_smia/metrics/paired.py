# SPDX-License-Identifier: Apache-2.0
"""`PairedMetric`: metrics of a clean prediction, the adversarial one and the target."""

from __future__ import annotations

from typing import Any

import torch

from monai_smia.metrics.reduced import ReducedMetric, plain

Predictions = Any
"""A batch-first tensor, or a list of channel-first ones."""


class PairedMetric(ReducedMetric):
    """Base of the metrics that are called with ``(clean_pred, adversarial_pred, target)``.

    `monai.handlers.IgniteMetricHandler` hands over two values: it takes ``((clean_pred, adversarial_pred), target)``
    from its output transform. Subclasses see the pair on axis 1: ``_compute_tensor(pairs (B, 2, C, ...), target)``.
    """

    def __call__(
        self, clean_pred: Predictions, adversarial_pred: Predictions, target: Any = None, **kwargs: Any
    ) -> Any:
        """Add the samples of a batch.

        Args:
            clean_pred, adversarial_pred: predictions, ``BC[HWD]`` or lists of ``C[HWD]``.
            target: labels, batch first or a list.
            kwargs: what the metric itself takes.

        Returns:
            The values of these samples, ``(B, C)``.

        Raises:
            ValueError: when the predictions are not a pair of one shape.
        """
        if target is None:
            (clean_pred, adversarial_pred), target = _pair(clean_pred), adversarial_pred
        if isinstance(clean_pred, torch.Tensor):
            pairs: Any = _stacked(clean_pred, adversarial_pred, 1)
        elif len(clean_pred) == len(adversarial_pred):
            pairs = [_stacked(*pair, 0) for pair in zip(clean_pred, adversarial_pred, strict=True)]
        else:
            raise ValueError(
                f"adversarial_pred: expected {len(clean_pred)} samples, as clean_pred has; got {len(adversarial_pred)}"
            )
        if len(target) != len(pairs):
            raise ValueError(f"target: expected {len(pairs)} samples, as clean_pred has; got {len(target)}")
        return super().__call__(pairs, target, **kwargs)


def _pair(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(
            "clean_pred: expected (clean_pred, adversarial_pred, target), or the first two as a pair; "
            f"got two arguments, the first a {type(value).__name__}"
        )
    return value[0], value[1]


def _stacked(clean: torch.Tensor, adversarial: torch.Tensor, axis: int) -> torch.Tensor:
    if not isinstance(adversarial, torch.Tensor) or clean.shape != adversarial.shape:
        came = tuple(adversarial.shape) if isinstance(adversarial, torch.Tensor) else type(adversarial).__name__
        raise ValueError(f"adversarial_pred: expected clean_pred's shape {tuple(clean.shape)}; got {came}")
    return torch.stack((plain(clean), plain(adversarial)), axis)
