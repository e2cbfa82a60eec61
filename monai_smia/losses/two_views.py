# SPDX-License-Identifier: Apache-2.0
"""Losses of a clean and an adversarial prediction: TRADES, MART, consistency."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from monai.data import MetaTensor
from torch import nn

from monai_smia.attacks import checks
from monai_smia.attacks.heads import (
    ACTIVATIONS,
    LossFunction,
    activation_of,
    ignore_index,
    is_regression,
    kl_divergence,
    log_probabilities,
    main_output,
    mean_of_valid,
    true_class,
)
from monai_smia.attacks.losses import check_loss, per_sample
from monai_smia.attacks.nested import map_tensors
from monai_smia.attacks.smia import SoftDivergence

Divergence = Callable[[Any, Any, Any], torch.Tensor]
"""``divergence(prediction, adversarial_prediction, target) -> (B,)``, differentiable through both."""


class TwoViewsLoss(nn.Module, ABC):
    """A loss of both predictions: ``loss(prediction, adversarial_prediction, target) -> (B,)``, for `RobustTrainer`.

    Classifiers and dense outputs, softmax and sigmoid heads, in any rank. Every sample is judged on its own, as in the
    attacks, so that the trainer's mean is over samples.

    Args:
        loss_function: any MONAI or torch loss on (prediction, target).
        activation: the head that class probabilities come from, ``"softmax"``, ``"sigmoid"`` or ``"none"``
            (probabilities); ``"auto"`` reads it from the loss.

    Raises:
        TypeError, ValueError: at construction, naming the argument.
    """

    def __init__(self, loss_function: LossFunction, *, activation: str = "auto") -> None:
        super().__init__()
        check_loss(loss_function)
        self.loss_function = loss_function
        self.activation = checks.one_of("activation", activation, ("auto", *ACTIVATIONS))

    def forward(self, prediction: Any, adversarial_prediction: Any, target: Any) -> torch.Tensor:
        """The loss of each sample.

        Args:
            prediction: the network's output at the clean images, ``BC[HWD]`` or a sequence that starts with it.
            adversarial_prediction: its output at the adversarial ones.
            target: labels as MONAI's loaders give them: ``(B,)``, ``(B, 1, H, W[, D])`` or one-hot.

        Returns:
            ``(B,)``, differentiable through both predictions.
        """
        return self.value(*(map_tensors(x, _plain) for x in (prediction, adversarial_prediction, target)))

    @abstractmethod
    def value(self, prediction: Any, adversarial_prediction: Any, target: Any) -> torch.Tensor:
        """`forward`, on plain tensors."""

    def head(self, prediction: Any) -> str:
        """The activation between this prediction and probabilities."""
        return activation_of(self.activation, self.loss_function, main_output(prediction))

    def base(self, prediction: Any, target: Any) -> torch.Tensor:
        """The loss function, sample by sample, ``(B,)``."""
        return per_sample(self.loss_function, prediction, target, len(main_output(prediction)))

    def divergence(self, prediction: Any, other: Any, target: Any) -> torch.Tensor:
        """``KL(prediction || other)``, summed over classes, averaged over voxels, ``(B,)``."""
        return SoftDivergence(self.head(prediction), ignore_index(self.loss_function))(prediction, other, target)

    def _refuse_regression(self) -> None:
        if is_regression(self.loss_function):
            raise ValueError(
                f"loss_function: {type(self).__name__} compares class probabilities; expected a loss of classes, got "
                f"{self.loss_function!r}"
            )


class TRADESLoss(TwoViewsLoss):
    r"""TRADES: the loss at the clean image, and how far the adversarial prediction is from the clean one.

    .. math:: L = J(f(x), y) + \beta\, \mathrm{KL}(f(x)\,\|\,f(x'))

    The gradient passes through both predictions. Its own attack maximises the same divergence: `TPGD`.

    Args:
        loss_function, activation: as in `TwoViewsLoss`; the paper's J is the cross-entropy.
        beta: :math:`\beta \ge 0`, the paper's :math:`1 / \lambda`; 0 is training on clean images.

    Example:
        >>> import torch
        >>> loss = TRADESLoss(torch.nn.CrossEntropyLoss(), beta=2.0)
        >>> clean, attacked = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
        >>> loss(clean, attacked, torch.tensor([0]))  # ln 2 + 2 * KL((1/2, 1/2) || (0.731, 0.269))
        tensor([0.9334])

    Reference: Zhang et al., "Theoretically principled trade-off between robustness and accuracy", ICML 2019,
    https://arxiv.org/abs/1901.08573. Deviations: the published code predicts the clean image twice, once for each
    term; here one prediction serves both.
    """

    def __init__(self, loss_function: LossFunction, *, beta: float = 6.0, activation: str = "auto") -> None:
        super().__init__(loss_function, activation=activation)
        self.beta = _weight("beta", beta)
        self._refuse_regression()

    def value(self, prediction: Any, adversarial_prediction: Any, target: Any) -> torch.Tensor:
        return self.base(prediction, target) + self.beta * self.divergence(prediction, adversarial_prediction, target)


class MARTLoss(TwoViewsLoss):
    r"""MART: a boosted cross-entropy under attack, and a divergence that counts most where the clean image is wrong.

    .. math:: L = -\log p_y(x') - \log\big(1 - \max_{k \ne y} p_k(x')\big)
              + \beta\, \mathrm{KL}(p(x)\,\|\,p(x'))\, (1 - p_y(x))

    Each voxel is a decision of its own, and the mean is over voxels; for a sigmoid head over its binary channels too.
    Its attack is PGD on the cross-entropy.

    Args:
        loss_function: read for its head and its ignored label only; the terms are those above.
        beta: :math:`\beta \ge 0`, the paper's :math:`\lambda`.
        activation: as in `TwoViewsLoss`.

    Example:
        >>> import torch
        >>> loss = MARTLoss(torch.nn.CrossEntropyLoss(), beta=1.0)
        >>> prediction = torch.zeros(1, 2)
        >>> loss(prediction, prediction, torch.tensor([0]))  # 2 ln 2
        tensor([1.3863])

    Reference: Wang, Zou, Yi, Bailey, Ma, Gu, "Improving adversarial robustness requires revisiting misclassified
    examples", ICLR 2020, https://openreview.net/forum?id=rklOg6EFwS. Deviations: from log-probabilities, without the
    constants that the published code adds inside its logarithms.
    """

    def __init__(self, loss_function: LossFunction, *, beta: float = 6.0, activation: str = "auto") -> None:
        super().__init__(loss_function, activation=activation)
        self.beta = _weight("beta", beta)
        self._refuse_regression()

    def value(self, prediction: Any, adversarial_prediction: Any, target: Any) -> torch.Tensor:
        clean, attacked, activation = (
            main_output(prediction),
            main_output(adversarial_prediction),
            self.head(prediction),
        )
        multilabel = target.shape == clean.shape
        log_p, log_q = (log_probabilities(output, activation, multilabel) for output in (clean, attacked))
        index, valid = true_class(target, clean, activation, ignore_index(self.loss_function))
        index = index.unsqueeze(1)
        rival = log_q.scatter(1, index, -math.inf).max(1, keepdim=True).indices
        without_rival = log_q.scatter(1, rival, -math.inf).logsumexp(1)  # log(1 - p_rival)
        boosted = -log_q.gather(1, index).squeeze(1) - without_rival
        divergence = kl_divergence(log_p, log_q)
        doubt = 1 - log_p.gather(1, index).squeeze(1).exp()
        return mean_of_valid(boosted + self.beta * divergence * doubt, valid)


class ConsistencyLoss(TwoViewsLoss):
    r"""The loss at both images, and a distance between both predictions.

    .. math:: L = J(f(x), y) + J(f(x'), y) + w\, D(f(x), f(x'))

    Args:
        loss_function, activation: as in `TwoViewsLoss`; J may be a regression loss where D is a callable.
        weight: w, not negative; 0 trains on both images alike.
        divergence: D; ``"kl"``, averaged over voxels, or a callable
            ``(prediction, adversarial_prediction, target) -> (B,)``.

    Example:
        >>> import torch
        >>> loss = ConsistencyLoss(torch.nn.MSELoss(), weight=2.0, divergence=lambda p, q, y: (p - q).abs().mean(1))
        >>> loss(torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[0.0]]))
        tensor([3.])

    Reference: Hanif, Naseer, Khan, Shah, Khan, "Frequency domain adversarial training for robust volumetric medical
    segmentation" (VAFT), MICCAI 2023, https://arxiv.org/abs/2307.07269. Deviations: the paper's D compares both
    predictions in the frequency domain; give that as a callable.
    """

    def __init__(
        self,
        loss_function: LossFunction,
        *,
        weight: float = 1.0,
        divergence: str | Divergence = "kl",
        activation: str = "auto",
    ) -> None:
        super().__init__(loss_function, activation=activation)
        self.weight = _weight("weight", weight)
        self.distance = divergence
        if not callable(divergence):
            checks.one_of("divergence", divergence, ("kl",))
            self._refuse_regression()

    def value(self, prediction: Any, adversarial_prediction: Any, target: Any) -> torch.Tensor:
        distance = self.distance if callable(self.distance) else self.divergence
        both = self.base(prediction, target) + self.base(adversarial_prediction, target)
        return both + self.weight * distance(prediction, adversarial_prediction, target)


def _weight(name: str, value: float) -> float:
    number = checks.as_numbers(name, value, low=0.0)
    if not isinstance(number, float):
        raise TypeError(f"{name}: expected one number; got {value!r}")
    return number


def _plain(value: torch.Tensor) -> torch.Tensor:
    """A tensor without metadata, in single precision at least where it is floating."""
    value = value.as_tensor() if isinstance(value, MetaTensor) else value
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
