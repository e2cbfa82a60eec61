# SPDX-License-Identifier: Apache-2.0
"""Volume of a predicted structure: its voxels, their soft count, and the loss towards a wanted number of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from monai_smia.attacks.heads import decisions, is_binary, log_probabilities, main_output
from monai_smia.attacks.regions import inside


def output_of(prediction: Any, structure: int, activation: str) -> torch.Tensor:
    """The dense output that is judged, ``(B, C, *spatial)``.

    Raises:
        ValueError: when it has no spatial axes, or no such structure.
    """
    output = main_output(prediction)
    if output.ndim < 3:
        raise ValueError(f"prediction: expected (B, C, *spatial) to read a structure from; got {tuple(output.shape)}")
    channels = output.shape[1]
    if structure >= channels or (channels == 1 and activation == "softmax"):
        raise ValueError(
            f"structure: expected an index under the channels of the prediction, of which softmax needs two; "
            f"got structure {structure}, activation {activation!r} and a prediction {tuple(output.shape)}"
        )
    return output


def head_of(activation: str, output: torch.Tensor) -> str:
    """The head: as given, or for ``"auto"`` a sigmoid of one channel and a softmax of several."""
    return activation if activation != "auto" else "sigmoid" if output.shape[1] == 1 else "softmax"


def decided(prediction: Any, structure: int, activation: str) -> torch.Tensor:
    """Where the network decides for `structure`, ``(B, *spatial)``, bool."""
    output = output_of(prediction, structure, activation)
    labels = decisions(output, head_of(activation, output), False)
    return labels[:, structure] if labels.dtype == torch.bool else labels == structure


def log_odds(prediction: Any, structure: int, activation: str) -> torch.Tensor:
    """``log(p / (1 - p))`` of `structure`, ``(B, *spatial)``; it has a slope also where a probability rounds to 1."""
    output = output_of(prediction, structure, activation)
    activation = head_of(activation, output)
    log_p = log_probabilities(output, activation, False)
    if is_binary(activation, output.shape[1], False):
        return log_p[:, 0, structure] - log_p[:, 1, structure]
    others = torch.cat((log_p[:, :structure], log_p[:, structure + 1 :]), 1)
    return log_p[:, structure, 0] - others.logsumexp(1)[:, 0]


def soft_count(prediction: Any, structure: int, activation: str) -> torch.Tensor:
    """Sum of the probabilities of `structure`, in voxels, ``(B,)``, differentiable.

    In single precision its slope vanishes at log-odds beyond 100; that of a sigmoid or a softmax beyond 17.
    """
    return F.logsigmoid(log_odds(prediction, structure, activation)).exp().flatten(1).sum(1)


@dataclass(frozen=True)
class VolumeLoss:
    r"""Squared volume that is missing to the wanted one, in ml² (2-D: mm⁴).

    .. math:: J = \big(v \max(0,\; s\,(n^* - n))\big)^2

    with n the predicted number of voxels, n* the wanted one, v the size of a voxel and s = 1 to grow, -1 to shrink. It
    is 0 once the wanted volume is reached. The decided n has no slope; its gradient is that of the sum of the
    probabilities (straight through), so that J is 0 exactly where the attack succeeds. With ``soft=True`` n is that
    sum itself, which attacks without gradients need: it may be reached by probabilities that change no decision.

    Args:
        structure: class of a softmax head, channel of a sigmoid head.
        grow: whether the volume is to grow.
        activation: the head, ``"softmax"``, ``"sigmoid"``, ``"none"`` (probabilities; of several channels they
            exclude each other), or ``"auto"``: a sigmoid of one channel, a softmax of several.
        soft: count probabilities, not decisions.

    Reference for the gradient: Bengio, Léonard, Courville, "Estimating or propagating gradients through stochastic
    neurons for conditional computation", 2013, https://arxiv.org/abs/1308.3432.

    Example:
        >>> loss = VolumeLoss(0, grow=False, activation="sigmoid")
        >>> logits = torch.tensor([[[[3.0, 2.0, 1.0, -1.0]]]])
        >>> loss(logits, torch.tensor([[1.0, 0.5]]))  # 3 voxels of 0.5, wanted 1
        tensor([1.])
    """

    structure: int
    grow: bool
    activation: str = "softmax"
    soft: bool = False

    def __call__(self, prediction: Any, target: torch.Tensor) -> torch.Tensor:
        """The loss of each sample, ``(B,)``; `target` is ``(B, 2)``: wanted number of voxels, size of one."""
        count = soft_count(prediction, self.structure, self.activation)
        if not self.soft:
            hard = decided(prediction, self.structure, self.activation).flatten(1).sum(1)
            count = hard + (count - count.detach())
        wanted, size = target.to(count).unbind(1)
        missing = wanted - count if self.grow else count - wanted
        return (missing.clamp_min(0) * size).square()


@dataclass(frozen=True, eq=False)
class PresenceLoss:
    r"""Cross-entropy of a structure where it is wanted; the rest of the image has no say.

    .. math:: J = -\frac{1}{|R|} \sum_{i \in R} \log p_i(\text{structure})

    Args:
        structure: class of a softmax head, channel of a sigmoid head.
        region: R, where the structure is wanted: a mask ``(B | 1, 1, H, W[, D])``, or a function of the output that
            gives one.
        activation: as for `VolumeLoss`.

    Example:
        >>> region = torch.tensor([[[[1, 0]]]], dtype=torch.bool)
        >>> loss = PresenceLoss(0, region, activation="sigmoid")
        >>> loss(torch.tensor([[[[0.0, 9.0]]]]))
        tensor([0.6931])
    """

    structure: int
    region: Any
    activation: str = "auto"

    def __call__(self, prediction: Any, target: Any = None) -> torch.Tensor:
        """The loss of each sample, ``(B,)``; the target is not read."""
        odds = log_odds(prediction, self.structure, self.activation).flatten(1)
        where = inside("region", self.region, main_output(prediction)).flatten(1).expand(odds.shape)
        return (-F.logsigmoid(odds) * where).sum(1) / where.sum(1)
