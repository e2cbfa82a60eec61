# SPDX-License-Identifier: Apache-2.0
"""Criteria: what counts as success, one boolean per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks.heads import (
    LossFunction,
    activation_of,
    counted,
    decisions,
    ignore_index,
    is_regression,
    labels,
    main_output,
)


class Criterion(ABC):
    """What counts as success: ``criterion(prediction, target) -> bool (B,)``."""

    @abstractmethod
    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        """Whether each sample meets the criterion, ``(B,)``."""


def _canonical(
    prediction: Any, target: torch.Tensor, activation: str, ignored: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predicted and expected labels, and which of them count."""
    output = main_output(prediction, _ADVICE)
    predicted = decisions(output, activation, target.shape == output.shape)
    expected, valid = labels(target, output, activation, ignored), counted(target, output, activation, ignored)
    return predicted, expected, valid.reshape(predicted.shape)


_ADVICE = "Give a `criterion` that reads such a prediction, or wrap the network so that it returns the tensor"


@dataclass(frozen=True)
class Misclassification(Criterion):
    """Any decision of the sample is wrong: its class, or one of its labels.

    Args:
        activation: the head, ``"softmax"``, ``"sigmoid"`` or ``"none"`` (probabilities).
        ignore_index: label value that is not judged, as in torch's cross-entropy.
    """

    activation: str = "softmax"
    ignore_index: int | None = None

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        predicted, expected, valid = _canonical(prediction, target, self.activation, self.ignore_index)
        wrong = (predicted != expected) & valid
        return wrong.flatten(1).any(1) if wrong.ndim > 1 else wrong


@dataclass(frozen=True)
class DiceBelow(Criterion):
    r"""The mean Dice of the sample's structures is under a threshold.

    .. math:: \frac{1}{|K|} \sum_{k \in K} \frac{2 |P_k \cap Y_k|}{|P_k| + |Y_k|} < \tau

    K are the structures that the label or the prediction holds: one that vanished, or appeared from nothing, has Dice
    0. Where both hold none the Dice is 1.

    Args:
        threshold: :math:`\tau`, in [0, 1].
        activation: the head, ``"softmax"``, ``"sigmoid"`` or ``"none"`` (probabilities).
        include_background: whether class 0 of a softmax head is a structure. Channels of a sigmoid head all are.
        ignore_index: label value left out of both masks, as in torch's cross-entropy; of labels with a value for each
            channel by MONAI's rule, see `monai.losses.DiceLoss`.
    """

    threshold: float = 0.5
    activation: str = "softmax"
    include_background: bool = False
    ignore_index: int | None = None

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        return self.dice(prediction, target) < self.threshold

    def dice(self, prediction: Any, target: Any) -> torch.Tensor:
        """The mean Dice that is compared, ``(B,)``."""
        predicted, expected, valid = _canonical(prediction, target, self.activation, self.ignore_index)
        classes = main_output(prediction).shape[1]
        scores, present = [], []
        for k in range(0 if self.include_background or predicted.dtype == torch.bool else 1, classes):
            if predicted.dtype == torch.bool:
                p, y, counts = predicted[:, k], expected[:, k], valid[:, k]
            else:
                p, y, counts = predicted == k, expected == k, valid
            p, y = (p & counts).flatten(1), (y & counts).flatten(1)
            size = p.sum(1) + y.sum(1)
            scores.append(2 * (p & y).sum(1) / size.clamp_min(1))
            present.append(size > 0)
        score, there = torch.stack(scores, 1), torch.stack(present, 1)
        mean = (score * there).sum(1) / there.sum(1).clamp_min(1)
        return torch.where(there.any(1), mean, torch.ones_like(mean))


@dataclass(frozen=True)
class Not(Criterion):
    """The opposite of another criterion; ``Not(Misclassification())`` is success for a targeted attack."""

    criterion: Criterion

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        return ~self.criterion(prediction, target)


def default_criterion(
    loss_function: LossFunction, prediction: Any, targeted: bool, activation: str = "auto"
) -> Criterion:
    """The criterion where none is given: a wrong decision for classifiers, mean Dice under 0.5 for dense outputs.

    A targeted attack succeeds on the opposite, with respect to its own target.

    Raises:
        ValueError: for a regression loss, whose success only its user can define.
        TypeError: when the prediction holds no tensor to read classes from.
    """
    if is_regression(loss_function):
        raise ValueError("criterion: success of a regression is for you to define; expected a Criterion, got None")
    output = main_output(prediction, _ADVICE)
    activation = activation_of(activation, loss_function, output)
    ignored = ignore_index(loss_function)
    criterion: Criterion = Misclassification(activation, ignored)
    if output.ndim > 2:
        criterion = DiceBelow(activation=activation, ignore_index=ignored)
    return Not(criterion) if targeted else criterion
