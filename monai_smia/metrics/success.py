# SPDX-License-Identifier: Apache-2.0
"""`AttackSuccess`: the share of what was right before the attack and is wrong after it."""

from __future__ import annotations

from typing import Any

import torch
from monai.utils import MetricReduction

from monai_smia.attacks import Criterion, Misclassification
from monai_smia.metrics.paired import PairedMetric


def compute_attack_success(
    clean_pred: torch.Tensor,
    adversarial_pred: torch.Tensor,
    target: torch.Tensor,
    criterion: Criterion,
    per_voxel: bool = False,
) -> torch.Tensor:
    r"""Success of an attack on each sample, among what was right without it.

    .. math:: s_i = \frac{\sum_v (1 - w_{iv}) \, w'_{iv}}{\sum_v (1 - w_{iv})}

    :math:`w_{iv}` and :math:`w'_{iv}` are 1 where the criterion calls the clean and the adversarial prediction wrong.
    By sample there is one v: s is 1 where a right sample fell and 0 where it held. By voxel the criterion judges every
    voxel as a sample of its own.

    Args:
        clean_pred, adversarial_pred: ``BC[HWD]``, raw outputs, probabilities or one-hot, as the criterion reads them.
        target: labels ``(B,)``, ``(B, 1, H, W[, D])``, ``(B, H, W[, D])`` or one-hot.
        criterion: what is wrong.
        per_voxel: judge voxels instead of samples.

    Returns:
        ``(B,)`` in [0, 1]; NaN where nothing was right before, so that nothing could fall.

    Example:
        >>> before = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> after = torch.tensor([[0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
        >>> compute_attack_success(before, after, torch.tensor([0, 0, 0]), Misclassification())
        tensor([1., 0., nan])
    """
    batch = len(clean_pred)
    labels = _voxels(target, target.ndim >= clean_pred.ndim) if per_voxel else target
    wrong, fallen = (
        criterion(_voxels(prediction, True) if per_voxel else prediction, labels).reshape(batch, -1)
        for prediction in (clean_pred, adversarial_pred)
    )
    return (~wrong & fallen).sum(1) / (~wrong).sum(1)  # 0 / 0 is NaN


class AttackSuccess(PairedMetric):
    """The attack success rate among the samples, or voxels, that were right without the attack.

    Called with ``(clean_pred, adversarial_pred, target)``, see `PairedMetric` for use in a handler. Its mean is the
    number of samples that fell over the number that were right; by voxel it is the mean of the samples' shares. See
    `compute_attack_success` for the equation. Samples that were wrong all along are NaN in the details.

    Args:
        criterion: what is wrong; ``None`` is ``Misclassification()``, for softmax heads and one-hot predictions.
        per_voxel: judge voxels instead of samples.
        reduction: as in MONAI's metrics.

    Raises:
        TypeError: when the criterion is none.

    Example:
        >>> metric = AttackSuccess(per_voxel=True)
        >>> before = torch.tensor([[[3.0, 0.0, 3.0, 0.0]], [[0.0, 3.0, 0.0, 3.0]]]).movedim(0, 1)  # classes 0 1 0 1
        >>> _ = metric(before, torch.zeros(1, 2, 4), torch.tensor([[[0, 1, 1, 1]]]))  # after: 0 0 0 0
        >>> round(metric.aggregate().item(), 4)  # of three voxels that were right two fell
        0.6667
    """

    def __init__(
        self,
        criterion: Criterion | None = None,
        per_voxel: bool = False,
        reduction: MetricReduction | str = MetricReduction.MEAN,
    ) -> None:
        super().__init__(reduction)
        if not (criterion is None or isinstance(criterion, Criterion)):
            raise TypeError(f"criterion: expected a Criterion or None; got {type(criterion).__name__}")
        self.criterion = Misclassification() if criterion is None else criterion
        self.per_voxel = per_voxel

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        if y is None:
            raise ValueError("target: expected labels; got None")
        clean, adversarial = y_pred.unbind(1)
        return compute_attack_success(clean, adversarial, y, self.criterion, self.per_voxel).unsqueeze(1)


def _voxels(value: torch.Tensor, channels: bool) -> torch.Tensor:
    """``(B, C, *spatial)`` as ``(B * voxels, C)``, and ``(B, *spatial)`` as ``(B * voxels,)``."""
    return value.movedim(1, -1).flatten(0, -2) if channels else value.flatten()
