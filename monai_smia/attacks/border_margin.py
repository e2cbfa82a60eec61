# SPDX-License-Identifier: Apache-2.0
"""`BorderMargin`: how far a prediction is from the decision that an attack wants, positive once it is there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks.criteria import Criterion, Misclassification, Not
from monai_smia.attacks.heads import LossFunction, main_output, mean_of_valid
from monai_smia.attacks.margins import Decisions
from monai_smia.attacks.objectives import Objective
from monai_smia.attacks.trial import Trial


@dataclass(frozen=True)
class BorderMargin(Objective):
    r"""The best other class's score minus the label's, of each decision; then one value per sample.

    .. math:: m_i = \max_{k \ne y_i} z_{ik} - z_{iy_i}, \qquad
              f = \max_i m_i \;\text{ or }\; \frac{1}{N} \sum_i \min(m_i, 0)

    A decision is a classifier's class, one of its labels, or a voxel; z are log-odds, see `heads.scores`: a sigmoid
    channel compares z with 0, a probability counts as log p, of a binary head against log(1 - p). The maximum is for
    classifiers and for `Misclassification` (one wrong decision is enough), and positive exactly where the decision is
    wrong. The mean is for every other criterion of more than one decision: a voxel that fell no longer counts. Towards
    a target the sign of every :math:`m_i` turns, and the maximum becomes the minimum. Voxels of the loss's
    ``ignore_index`` are left out.

    Args:
        loss_function: read for its head only.
        targeted: whether `target` is to be reached instead of left.
        activation: the head; ``"auto"`` reads it from the loss.
        criterion: the attack's; ``None`` for the default one.

    Example:
        >>> margin = BorderMargin(torch.nn.CrossEntropyLoss())
        >>> margin.value(torch.tensor([[2.0, 5.0, 1.0]]), torch.tensor([1]))
        tensor([-3.])
    """

    loss_function: LossFunction
    targeted: bool = False
    activation: str = "auto"
    criterion: Criterion | None = None

    def __call__(self, prediction: Any, target: Any, trial: Trial) -> torch.Tensor:
        return self.value(prediction, target)

    def value(self, prediction: Any, target: Any) -> torch.Tensor:
        """The value of each sample, ``(B,)``, without a trial."""
        gaps, valid = self._gaps(prediction, target)
        margins, valid = gaps.max(1).values.flatten(1), valid.flatten(1)
        if self._one_suffices(prediction, margins.shape[1]):
            worst = margins.masked_fill(~valid, -math.inf).max(1).values
            return -worst if self.targeted else worst
        return mean_of_valid((-margins if self.targeted else margins).clamp_max(0.0), valid)

    def nearest(self, prediction: Any, target: Any, count: int) -> torch.Tensor:
        """Up to `count` values of which one positive is success, the highest first, ``(B, D)``.

        They are the classes other than the label, or the labels of a multi-label classifier; D is 1 where success is no
        single class's doing: towards a target, and for a mean over voxels. An entry that is no candidate is ``-inf``.
        """
        gaps, valid = self._gaps(prediction, target)
        if self.targeted or not self._one_suffices(prediction, valid.flatten(1).shape[1]):
            return self.value(prediction, target).unsqueeze(1)
        flat = gaps.masked_fill(~valid.unsqueeze(1), -math.inf).flatten(1)
        borders = flat.shape[1] - flat.shape[1] // gaps.shape[1]  # without the labels themselves
        return flat.topk(min(count, borders), dim=1).values

    def voxels(self, prediction: Any) -> int:
        """How many voxels the value is a mean of; 1 where it is a maximum."""
        count = main_output(prediction)[0, 0].numel()
        return 1 if self._one_suffices(prediction, count) else count

    def _gaps(self, prediction: Any, target: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Every class's score minus the label's, ``(B, K, C', *spatial)``, ``-inf`` at the label; what counts."""
        decided = Decisions.read(prediction, target, self.loss_function, self.activation)
        return decided.gaps(), decided.valid

    def _one_suffices(self, prediction: Any, decisions: int) -> bool:
        criterion = self.criterion.criterion if isinstance(self.criterion, Not) else self.criterion
        if criterion is None:
            return main_output(prediction).ndim == 2
        return decisions == 1 or isinstance(criterion, Misclassification)
