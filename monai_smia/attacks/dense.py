# SPDX-License-Identifier: Apache-2.0
"""SegPGD and CosPGD: attacks on dense predictions that weight every voxel's cross-entropy."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from monai_smia.attacks import checks
from monai_smia.attacks.attack import GradientAttack
from monai_smia.attacks.heads import (
    ACTIVATIONS,
    LossFunction,
    activation_of,
    ignore_index,
    log_probabilities,
    main_output,
    true_class,
)
from monai_smia.attacks.hunt import Setting
from monai_smia.attacks.loop import Recipe
from monai_smia.attacks.objectives import Objective
from monai_smia.attacks.steps import Chain, Scale, steepest
from monai_smia.attacks.trial import Trial


@dataclass(frozen=True)
class WeightedVoxels(Objective):
    r"""Mean over voxels of weight times cross-entropy, the weight detached.

    .. math:: \frac{1}{N} \sum_i w_i\, \mathrm{CE}(p_i, y_i)

    For a sigmoid head every channel of a voxel is a binary decision of its own. Voxels of the loss's ``ignore_index``
    count 0.

    Args:
        loss_function: read for its head only; the cross-entropy is ours.
        targeted: whether `target` is to be reached.
        activation: the head; ``"auto"`` reads it from the loss.
    """

    loss_function: LossFunction
    targeted: bool
    activation: str

    @abstractmethod
    def weight(self, log_p: torch.Tensor, index: torch.Tensor, trial: Trial) -> torch.Tensor:
        """Weight of each decision, ``(B, C', *spatial)``, from log-probabilities ``(B, K, C', *spatial)``."""

    def __call__(self, prediction: Any, target: Any, trial: Trial) -> torch.Tensor:
        output = main_output(prediction)
        activation = activation_of(self.activation, self.loss_function, output)
        index, valid = true_class(target, output, activation, ignore_index(self.loss_function))
        log_p = log_probabilities(output, activation, target.shape == output.shape)
        entropy = -log_p.gather(1, index.unsqueeze(1)).squeeze(1)
        weight = self.weight(log_p.detach(), index, trial)
        counts = valid & (weight != 0)  # an entropy may be infinite where its weight is 0
        value = torch.where(counts, weight * torch.where(counts, entropy, 0.0), 0.0).flatten(1).mean(1)
        return -value if self.targeted else value


@dataclass(frozen=True)
class SegPGDObjective(WeightedVoxels):
    """Weight ``1 - l_t`` on voxels that still hold out and ``l_t`` on those that fell, with ``l_t = t / 2T``."""

    def weight(self, log_p: torch.Tensor, index: torch.Tensor, trial: Trial) -> torch.Tensor:
        reached = log_p.max(1).indices == index
        fallen = reached if self.targeted else ~reached
        share = trial.progress / 2
        return torch.where(fallen, share, 1 - share)


@dataclass(frozen=True)
class CosPGDObjective(WeightedVoxels):
    """Weight: the cosine between each voxel's probabilities and its one-hot label; one minus it where targeted."""

    def weight(self, log_p: torch.Tensor, index: torch.Tensor, trial: Trial) -> torch.Tensor:
        p = log_p.exp()
        one_hot = torch.zeros_like(p).scatter_(1, index.unsqueeze(1), 1.0)  # F.one_hot looks for the largest index
        cosine = F.cosine_similarity(p, one_hot, dim=1)
        return 1 - cosine if self.targeted else cosine


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class _DenseAttack(GradientAttack):
    random_start: bool = True
    activation: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("activation", self.activation, ("auto", *ACTIVATIONS))

    @abstractmethod
    def objective(self) -> Objective:
        """What is increased."""

    def compose(self, setting: Setting) -> Recipe:
        step = Chain([steepest(setting.threat.norm, setting.threat.per_channel), Scale(self.stride(setting))])
        return Recipe(self.objective(), step, self.steps)


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class SegPGD(_DenseAttack):
    r"""PGD on voxels, first those still correct, later all alike.

    .. math:: L_t = \frac{1}{N} \Big[ (1 - \lambda_t) \sum_{i \text{ correct}} \mathrm{CE}_i +
              \lambda_t \sum_{i \text{ wrong}} \mathrm{CE}_i \Big], \qquad \lambda_t = \frac{t}{2T}

    `loss_function` is read for the head and reported; what is increased is the cross-entropy above. A classifier is
    one voxel.

    Args:
        activation: the head: ``"softmax"``, ``"sigmoid"``, ``"none"`` (probabilities); ``"auto"`` reads it from the
            loss.

    Reference: Gu, Zhao, Tresp, Torr, "SegPGD: an effective and efficient adversarial attack for evaluating and boosting
    segmentation robustness", ECCV 2022, https://arxiv.org/abs/2207.12391. Deviations: sigmoid heads by binary
    cross-entropy; targeted mode weights by whether the target is reached.
    """

    def objective(self) -> Objective:
        return SegPGDObjective(self.loss_function, self.targeted, self.activation)


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class CosPGD(_DenseAttack):
    r"""PGD on voxels weighted by how well each still agrees with its label.

    .. math:: L = \frac{1}{N} \sum_i \cos\big(p_i, \mathrm{onehot}(y_i)\big)\, \mathrm{CE}_i

    The cosine is taken per voxel and carries no gradient. `loss_function` is read for the head and reported.

    Args:
        activation: the head: ``"softmax"``, ``"sigmoid"``, ``"none"`` (probabilities); ``"auto"`` reads it from the
            loss.

    Reference: Agnihotri, Jung, Keuper, "CosPGD: an efficient white-box adversarial attack for pixel-wise prediction
    tasks", ICML 2024, https://arxiv.org/abs/2302.02213. Deviations: sigmoid heads compare (p, 1 - p) with (y, 1 - y)
    in each channel.
    """

    def objective(self) -> Objective:
        return CosPGDObjective(self.loss_function, self.targeted, self.activation)
