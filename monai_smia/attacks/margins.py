# SPDX-License-Identifier: Apache-2.0
"""Objectives read from the head instead of the user's loss: cross-entropies, margins, Jensen-Shannon divergence.

Each is a value for every decision, ``(B, C', *spatial)``: one per sample of a classifier (C' = 1), one per label of a
multi-label head, one per voxel of a dense softmax head and one per voxel and channel of a dense sigmoid head. Decisions
of the loss's ``ignore_index`` do not count.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks.heads import (
    LossFunction,
    activation_of,
    ignore_index,
    log_probabilities,
    main_output,
    mean_of_valid,
    scores,
    true_class,
)
from monai_smia.attacks.objectives import Deviation, Objective
from monai_smia.attacks.trial import Trial

OBJECTIVES = ("loss", "ce", "dlr", "margin", "mask-ce", "mask-ce-balanced", "js")


@dataclass(frozen=True)
class Decisions:
    """A prediction and its labels, decision by decision.

    Attributes:
        output: the tensor that is judged, ``BC[HWD]``.
        activation: the head, ``"softmax"``, ``"sigmoid"`` or ``"none"`` (probabilities).
        multilabel: whether the label has a value for each channel.
        index: the class of the label, ``(B, C', *spatial)``; of a binary decision 0 is "yes" and 1 is "no".
        valid: which decisions count, ``(B, C', *spatial)`` bool.
    """

    output: torch.Tensor
    activation: str
    multilabel: bool
    index: torch.Tensor
    valid: torch.Tensor

    @classmethod
    def read(cls, prediction: Any, target: torch.Tensor, loss_function: LossFunction, activation: str) -> Decisions:
        output = main_output(prediction)
        activation = activation_of(activation, loss_function, output)
        index, valid = true_class(target, output, activation, ignore_index(loss_function))
        return cls(output, activation, target.shape == output.shape, index, valid)

    def log_probabilities(self) -> torch.Tensor:
        """``(B, K, C', *spatial)``."""
        return log_probabilities(self.output, self.activation, self.multilabel)

    def scores(self) -> torch.Tensor:
        """Log-odds up to a constant for each decision, ``(B, K, C', *spatial)``; see `heads.scores`."""
        return scores(self.output, self.activation, self.multilabel)

    def gaps(self) -> torch.Tensor:
        """Every class's score minus the label's, ``(B, K, C', *spatial)``; minus infinity at the label."""
        all_scores = self.scores()
        label = all_scores.gather(1, self.index.unsqueeze(1))
        rivals = self.rivals(all_scores)
        return torch.where(rivals == -torch.inf, rivals, rivals - label)  # minus infinity less itself is no number

    def of_label(self, values: torch.Tensor) -> torch.Tensor:
        """The label's entry of ``(B, K, C', *spatial)``, as ``(B, C', *spatial)``."""
        return _pick(values, self.index)

    def rivals(self, values: torch.Tensor) -> torch.Tensor:
        """The scores with minus infinity for the label."""
        return values.scatter(1, self.index.unsqueeze(1), -torch.inf)

    def runner_up(self, rank: int) -> torch.Tensor:
        """The `rank`-th most likely of the wrong classes, 1 for the likeliest, ``(B, C', *spatial)``.

        Raises:
            ValueError: when there are not as many.
        """
        ranked = self.scores().detach()
        if rank >= ranked.shape[1]:
            raise ValueError(
                f"runner_up: expected at most {ranked.shape[1] - 1}, the number of wrong classes; got {rank}"
            )
        return self.rivals(ranked).topk(rank, 1).indices[:, rank - 1]


def _pick(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return values.gather(1, index.unsqueeze(1)).squeeze(1)


@dataclass(frozen=True)
class HeadObjective(Objective):
    """The mean over a sample's decisions, or its negative towards the target of a targeted attack.

    Args:
        loss_function: read for its head and its ignored label only.
        targeted: whether `target` is to be reached instead of left.
        activation: the head, ``"softmax"``, ``"sigmoid"`` or ``"none"`` (probabilities; where one is 0 or 1 exactly it
            has no slope); ``"auto"`` reads it from the loss.
    """

    loss_function: LossFunction
    targeted: bool = False
    activation: str = "auto"

    @abstractmethod
    def each(self, decisions: Decisions) -> torch.Tensor:
        """The value of each decision, the larger the further from its label, ``(B, C', *spatial)``."""

    def pool(self, values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """One value per sample, ``(B,)``."""
        return mean_of_valid(values, valid)

    def value(self, prediction: Any, target: torch.Tensor) -> torch.Tensor:
        """What is increased, ``(B,)``; it depends on nothing else."""
        decisions = Decisions.read(prediction, target, self.loss_function, self.activation)
        value = self.pool(self.each(decisions), decisions.valid)
        return -value if self.targeted else value

    def __call__(self, prediction: Any, target: Any, trial: Trial) -> torch.Tensor:
        return self.value(prediction, target)


@dataclass(frozen=True)
class CrossEntropy(HeadObjective):
    r"""Cross-entropy of the head, :math:`-\log p_y`, whatever the user's loss is.

    Example:
        >>> ce = CrossEntropy(torch.nn.MultiMarginLoss())
        >>> [round(value, 4) for value in ce.value(torch.zeros(1, 4), torch.tensor([2])).tolist()]
        [1.3863]
    """

    def each(self, decisions: Decisions) -> torch.Tensor:
        return -decisions.of_label(decisions.log_probabilities())


@dataclass(frozen=True)
class Margin(HeadObjective):
    r"""How far the strongest wrong class is above the label, in logits: positive exactly where the decision is wrong.

    .. math:: \max_{i \ne y} z_i - z_y; \qquad (1 - 2y)\, z \text{ for a sigmoid head}

    A multi-label classifier's value is the largest of its labels' margins, since one wrong label is a wrong decision;
    a dense output's is the mean. Probabilities p count as logits ``log p``, of a binary head ``log p - log(1 - p)``, as
    for every margin here.

    Args:
        towards: class whose logit takes the place of the strongest wrong one, ``(B, C', *spatial)``.

    Raises:
        ValueError: for a softmax head of one class, which is never wrong.

    Example:
        >>> margin = Margin(torch.nn.CrossEntropyLoss())
        >>> margin.value(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-1.])
    """

    towards: torch.Tensor | None = None

    def each(self, decisions: Decisions) -> torch.Tensor:
        return self.margins(decisions)

    def margins(self, decisions: Decisions) -> torch.Tensor:
        """The wrong class's score less the label's, ``(B, C', *spatial)``."""
        gaps = decisions.gaps()
        if gaps.shape[1] < 2:
            raise ValueError("objective: a margin needs at least 2 classes; got a softmax head of 1")
        return gaps.max(1).values if self.towards is None else _pick(gaps, self.towards)

    def pool(self, values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        if values.ndim > 2:
            return super().pool(values, valid)
        worst = values.masked_fill(~valid, -torch.inf).max(1).values
        return torch.where(valid.any(1), worst, 0.0)


@dataclass(frozen=True)
class DLR(Margin):
    r"""Difference of logits ratio: the margin, made independent of the logits' shift and scale.

    .. math:: \frac{\max_{i \ne y} z_i - z_y}{z_{\pi_1} - z_{\pi_3}}, \qquad
              \frac{z_t - z_y}{z_{\pi_1} - (z_{\pi_3} + z_{\pi_4}) / 2} \text{ towards } t

    :math:`\pi` sorts the logits downwards. Towards a target of the user's (`targeted`), of which the true class is not
    known, :math:`z_y` is the strongest logit beside the target's.

    Raises:
        ValueError: for fewer than 3 classes, 4 towards one; all sigmoid heads have 2. `Margin` serves them.

    Example:
        >>> dlr = DLR(torch.nn.CrossEntropyLoss())
        >>> dlr.value(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-0.5000])

    Reference: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML 2020, https://arxiv.org/abs/2003.01690. Deviations: the mean over voxels of dense
    outputs; probabilities count as logits ``log p``; `targeted` as above.
    """

    def each(self, decisions: Decisions) -> torch.Tensor:
        top = decisions.scores()
        needed = 4 if self.targeted or self.towards is not None else 3
        if top.shape[1] < needed:
            raise ValueError(
                f"objective: DLR {'towards a class ' if needed == 4 else ''}needs at least {needed} classes; got "
                f'{top.shape[1]}. "margin" is defined for any number'
            )
        top = top.topk(needed, 1).values
        least = top[:, 2] if needed == 3 else (top[:, 2] + top[:, 3]) / 2
        return self.margins(decisions) / (top[:, 0] - least + 1e-12)


@dataclass(frozen=True)
class MaskedCrossEntropy(HeadObjective):
    r"""Cross-entropy of the voxels that are still correct; those that fell have weight 0.

    .. math:: \frac{1}{N} \sum_i w_{y_i} [\hat y_i = y_i] (-\log p_{i, y_i}), \qquad
              w_k = \frac{N}{|K|\, N_k} \text{ if balanced, else } 1

    :math:`N_k` of the sample's N voxels have label k, and K are the labels that it has; each channel of a sigmoid head
    counts its own "yes" and "no". Targeted: the voxels that the target is not reached in.

    Args:
        balanced: every label of the sample weighs alike, however few voxels it has.

    Example:
        >>> masked = MaskedCrossEntropy(torch.nn.CrossEntropyLoss())
        >>> logits = torch.tensor([[[2.0, 2.0], [0.0, 0.0]]])  # two voxels, both taken for class 0
        >>> masked.value(logits, torch.tensor([[0, 1]]))  # log(1 + exp(-2)) / 2: the second one fell
        tensor([0.0635])

    Reference: Croce, Singh, Hein, "Towards reliable evaluation and fast training of robust semantic segmentation
    models", ECCV 2024, https://arxiv.org/abs/2306.12941. Deviations: labels are counted in the sample, not in the data
    set; sigmoid heads.
    """

    balanced: bool = False

    def each(self, decisions: Decisions) -> torch.Tensor:
        log_p = decisions.log_probabilities()
        reached = log_p.detach().max(1).indices == decisions.index
        entropy = torch.where(~reached if self.targeted else reached, -decisions.of_label(log_p), 0.0)
        return entropy * self.weights(decisions, log_p) if self.balanced else entropy

    def weights(self, decisions: Decisions, log_p: torch.Tensor) -> torch.Tensor:
        """``N / (|K| N_k)`` of each decision's label, ``(B, C', *spatial)``."""
        index = decisions.index.masked_fill(~decisions.valid, -1)
        flat = index.reshape(*index.shape[:2], -1)
        count = torch.stack([(flat == k).sum(2) for k in range(log_p.shape[1])], 1).to(log_p)
        share = count * (count > 0).sum(1, keepdim=True) / count.sum(1, keepdim=True).clamp_min(1)
        weight = 1 / share.clamp_min(torch.finfo(share.dtype).tiny)
        weight = weight.reshape(*count.shape, *[1] * (index.ndim - 2)).expand(*count.shape, *index.shape[2:])
        return decisions.of_label(weight) * decisions.valid


@dataclass(frozen=True)
class JensenShannon(HeadObjective):
    r"""Jensen-Shannon divergence between the probabilities and the one-hot label, in nats, in [0, log 2].

    .. math:: \tfrac12 \mathrm{KL}(p \| m) + \tfrac12 \mathrm{KL}(e_y \| m)
              = \log 2 + \tfrac12 \big(p_y \log p_y - (1 + p_y) \log(1 + p_y)\big), \qquad m = \tfrac12 (p + e_y)

    Its slope vanishes for voxels that fell, so that the attack spends its budget on the others.

    Example:
        >>> js = JensenShannon(torch.nn.CrossEntropyLoss())
        >>> js.value(torch.tensor([[0.0, 1000.0], [1000.0, 0.0]]), torch.tensor([0, 0]))
        tensor([0.6931, 0.0000])

    Reference: Croce, Singh, Hein, ECCV 2024, https://arxiv.org/abs/2306.12941. Deviations: sigmoid heads.
    """

    def each(self, decisions: Decisions) -> torch.Tensor:
        log_p = decisions.of_label(decisions.log_probabilities())
        p = log_p.exp()
        own = p * torch.where(p > 0, log_p, 0.0)  # 0 log 0 is 0
        return torch.log(torch.full_like(p, 2.0)) + (own - (1 + p) * p.log1p()) / 2


def named_objective(
    name: str,
    loss_function: LossFunction,
    targeted: bool = False,
    activation: str = "auto",
    towards: torch.Tensor | None = None,
) -> Objective:
    """The objective of one of the names in `OBJECTIVES`; `towards` is for ``"dlr"`` and ``"margin"``."""
    if name == "loss":
        return Deviation(loss_function, targeted)
    if name in ("dlr", "margin"):
        return (DLR if name == "dlr" else Margin)(loss_function, targeted, activation, towards)
    if name.startswith("mask-ce"):
        return MaskedCrossEntropy(loss_function, targeted, activation, balanced=name == "mask-ce-balanced")
    return (JensenShannon if name == "js" else CrossEntropy)(loss_function, targeted, activation)
