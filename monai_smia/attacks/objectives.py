# SPDX-License-Identifier: Apache-2.0
"""Objectives: what an attack increases, one value per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks.heads import LossFunction
from monai_smia.attacks.losses import per_sample
from monai_smia.attacks.trial import Trial

Differentiate = Callable[..., torch.Tensor]
"""``differentiate(values, retain_graph=False)``: gradient of ``values.sum()`` with respect to the image, counted."""


class Objective(ABC):
    """What is increased: ``objective(prediction, target, trial) -> (B,)``, always maximised."""

    @abstractmethod
    def __call__(self, prediction: Any, target: Any, trial: Trial) -> torch.Tensor:
        """The value of each sample, ``(B,)``, differentiable."""

    def prepare(self, trial: Trial) -> Trial:
        """Ask the network what is needed besides the iterate's prediction, while no graph of that is in memory yet."""
        return trial

    def beside(self, trial: Trial) -> torch.Tensor | None:
        """An image to be predicted without a gradient beside the iterate; `trial.asked` is then its prediction.

        An inferer that can, predicts both in one pass; otherwise this image comes first.
        """
        return None

    def gradient(self, prediction: Any, target: Any, trial: Trial, differentiate: Differentiate) -> torch.Tensor:
        """Gradient of each sample's value, ``BCHW[D]``; overridden where terms are combined after it."""
        return differentiate(self(prediction, target, trial))


@dataclass(frozen=True)
class Deviation(Objective):
    """``J(f(x), y)``, or ``-J(f(x), y)`` towards the target of a targeted attack.

    Args:
        loss_function: the loss J, any MONAI or torch loss on (prediction, target).
        targeted: whether `target` is to be reached instead of left.
    """

    loss_function: LossFunction
    targeted: bool = False

    def __call__(self, prediction: Any, target: Any, trial: Trial) -> torch.Tensor:
        loss = per_sample(self.loss_function, prediction, target, len(trial.image))
        return -loss if self.targeted else loss
