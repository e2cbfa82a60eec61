# SPDX-License-Identifier: Apache-2.0
"""`DAG`: every voxel that is still correct is driven to a wrong class of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.attack import GradientAttack
from monai_smia.attacks.heads import (
    ACTIVATIONS,
    LossFunction,
    activation_of,
    ignore_index,
    infer_activation,
    is_regression,
    log_probabilities,
    main_output,
    true_class,
)
from monai_smia.attacks.hunt import Setting
from monai_smia.attacks.loop import Recipe
from monai_smia.attacks.objectives import Objective
from monai_smia.attacks.steps import Chain, Normalize, Scale
from monai_smia.attacks.trial import Trial


@dataclass(frozen=True)
class DenseAdversary(Objective):
    r"""Sum over the voxels that hold out of how far the wrong class is ahead of the true one; made for one run.

    .. math:: \sum_{i \in T} \big[ f_{l'_i}(i) - f_{l_i}(i) \big], \qquad T = \{i : \arg\max_c f_c(i) = l_i\}

    f are logits (their differences are those of the log-probabilities). Voxels of the loss's ``ignore_index`` are
    never in T. For a sigmoid head every channel of a voxel is a decision of its own, whose wrong class is the other.

    Args:
        loss_function: read for its head only.
        targeted: whether `target` is to be reached; T are then the voxels that have not, and each voxel's rival is the
            likeliest other class of the moment.
        activation: the head; ``"auto"`` reads it from the loss.
        wrong_class: ``"random"`` or ``"likeliest"``, see `DAG`.
        generator: source of the random classes.
        chosen: every voxel's wrong class, chosen at the first prediction.
    """

    loss_function: LossFunction
    targeted: bool
    activation: str
    wrong_class: str
    generator: torch.Generator
    chosen: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, prediction: Any, target: Any, trial: Trial) -> torch.Tensor:
        output = main_output(prediction)
        activation = activation_of(self.activation, self.loss_function, output)
        index, valid = true_class(target, output, activation, ignore_index(self.loss_function))
        scores = log_probabilities(output, activation, target.shape == output.shape)
        reached = scores.detach().max(1).indices == index
        if self.targeted:
            rival, active = self._likeliest_other(scores, index), valid & ~reached
        else:
            rival, active = self._wrong(scores, index), valid & reached
        ahead = _score(scores, rival) - _score(scores, index)
        ahead = torch.where(active, -ahead if self.targeted else ahead, 0.0)
        return ahead.flatten(1).sum(1)

    def _wrong(self, scores: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The class that each voxel is driven to, the same one at every step."""
        if not self.chosen:
            classes = scores.shape[1]
            if classes == 2:
                self.chosen.append(1 - index)
            elif self.wrong_class == "likeliest":
                self.chosen.append(self._likeliest_other(scores, index))
            else:
                source = self.generator
                offset = torch.randint(1, max(classes, 2), index.shape, generator=source, device=source.device)
                self.chosen.append((index + offset.to(index.device)) % classes)
        return self.chosen[0]

    @staticmethod
    def _likeliest_other(scores: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return scores.detach().scatter(1, index.unsqueeze(1), -torch.inf).max(1).indices


def _score(scores: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return scores.gather(1, index.unsqueeze(1)).squeeze(1)


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class DAG(GradientAttack):
    r"""Dense adversary generation: steps along the gradient of the voxels that are still correct, to a class each.

    .. math:: r_t = \nabla_{x_t} \sum_{i \in T_t} \big[ f_{l'_i}(x_t, i) - f_{l_i}(x_t, i) \big], \qquad
              x_{t+1} = \Pi\Big(x_t + \frac{\gamma}{\|r_t\|_\infty}\, r_t\Big), \qquad
              T_t = \{i : \arg\max_c f_c(x_t, i) = l_i\}

    :math:`l_i` is the label of voxel i and :math:`l'_i` the wrong class it is driven to. The step is not a sign: voxels
    with small gradients move little. A sample without a correct voxel stays where it is, so a classifier's image that
    is misclassified from the start comes back unchanged. `loss_function` is read for the head and reported; a
    classifier is one voxel.

    Args:
        steps: most iterations; the paper takes 200.
        step_size: :math:`\gamma`, in the network's input units (the paper's is 0.5 grey levels); ``None`` is
            ``2.5 * eps / steps``.
        wrong_class: :math:`l'`: ``"random"``, drawn uniformly for every voxel from the classes that its label is not
            (the paper); ``"likeliest"``, the one that the first prediction ranks highest. It is kept over all steps.
        activation: the head: ``"softmax"``, ``"sigmoid"``, ``"none"`` (probabilities); ``"auto"`` reads it from the
            loss.

    Raises:
        ValueError: at construction, for a regression loss (there are no classes).

    Example:
        >>> import torch
        >>> attack = DAG(torch.nn.CrossEntropyLoss(), eps=0.2, steps=1, step_size=0.2, wrong_class="likeliest")
        >>> image = torch.tensor([[[0.1, -0.3]]])  # a voxel of class 0 and one of class 1
        >>> network = lambda x: torch.cat((x, -x), 1)
        >>> attack(network, image, torch.tensor([[[0, 0]]])).adversarial  # the second is wrong already
        tensor([[[-0.1000, -0.3000]]])

    Reference: Xie, Wang, Zhang, Zhou, Xie, Yuille, "Adversarial examples for semantic segmentation and object
    detection", ICCV 2017, https://arxiv.org/abs/1703.08603. Deviations: each iterate is projected to the budget, which
    the paper has none of; L2 and L1 budgets normalise by their own norm; a targeted attack knows the wrong class only,
    so its voxels leave the likeliest other class; sigmoid heads by each channel's two classes.
    """

    steps: int = 20
    wrong_class: str = "random"
    activation: str = "auto"

    def __post_init__(self) -> None:
        checks.one_of("wrong_class", self.wrong_class, ("random", "likeliest"))
        checks.one_of("activation", self.activation, ("auto", *ACTIVATIONS))
        super().__post_init__()
        if is_regression(self.loss_function):
            raise ValueError(f"loss_function: DAG compares classes; got the regression loss {self.loss_function!r}")

    @property
    def is_random(self) -> bool:
        return self.random_start or (self.wrong_class == "random" and not self.targeted and not self._binary)

    @property
    def _binary(self) -> bool:
        """Whether the loss tells that each decision has one wrong class only, however many channels there are."""
        head = infer_activation(self.loss_function, 2) if self.activation == "auto" else self.activation
        return head == "sigmoid"

    def compose(self, setting: Setting) -> Recipe:
        objective = DenseAdversary(
            self.loss_function, self.targeted, self.activation, self.wrong_class, setting.generator
        )
        unit = Normalize(setting.threat.norm, per_channel=setting.threat.per_channel)
        return Recipe(objective, Chain([unit, Scale(self.stride(setting))]), self.steps)
