"""A class ruled out by a logit of minus infinity: 0 times infinity is 0, in values and in slopes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import (
    APGD,
    PGD,
    SMIA,
    TPGD,
    Attack,
    CosPGD,
    CrossEntropy,
    JensenShannon,
    Margin,
    MaskedCrossEntropy,
    SegPGD,
)
from monai_smia.attacks.border_margin import BorderMargin
from monai_smia.attacks.decision_margin import decision_margin
from monai_smia.attacks.heads import kl_divergence
from monai_smia.losses import ConsistencyLoss, MARTLoss, TRADESLoss

CE = nn.CrossEntropyLoss()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def without(logits: torch.Tensor) -> torch.Tensor:
    """The last class ruled out."""
    dead = torch.zeros_like(logits, dtype=torch.bool)
    dead[:, -1] = True
    return logits.masked_fill(dead, -math.inf)


VALUES: dict[str, Any] = {
    "trades": lambda p, q, y: TRADESLoss(CE)(p, q, y),
    "mart": lambda p, q, y: MARTLoss(CE)(p, q, y),
    "consistency": lambda p, q, y: ConsistencyLoss(CE)(p, q, y),
    "ce": lambda p, q, y: CrossEntropy(CE).value(p, y),
    "js": lambda p, q, y: JensenShannon(CE).value(p, y),
    "masked": lambda p, q, y: MaskedCrossEntropy(CE).value(p, y),
    "margin": lambda p, q, y: Margin(CE).value(p, y),
    "border": lambda p, q, y: BorderMargin(CE).value(p, y),
    "decision": lambda p, q, y: decision_margin(p, y, "softmax"),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("shape", [(5, 4), (2, 4, 3, 2)], ids=str)
def test_a_class_ruled_out_is_as_good_as_absent(name: str, shape: tuple[int, ...]) -> None:
    """Value and slope are those of the network without that class."""
    label = draw(*shape, seed=2)[:, :-1].argmax(1)
    results = []
    for change in (without, lambda logits: logits[:, :-1]):
        leaves = [draw(*shape, seed=seed).requires_grad_() for seed in (0, 1)]
        value = VALUES[name](*(change(leaf) for leaf in leaves), label)
        slopes = torch.autograd.grad(value.sum(), leaves, allow_unused=True, materialize_grads=True)
        results.append([value, *slopes])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", [SMIA, TPGD, PGD, APGD, CosPGD, SegPGD], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dense", [False, True])
def test_attacks_are_those_without_the_class(kind: type[Attack], dense: bool) -> None:
    convolution = nn.Conv2d(1, 4, 3, padding=1).double()
    nn.init.normal_(convolution.weight, generator=torch.Generator().manual_seed(1))
    image, label = draw(2, 1, 5, 4).sigmoid(), draw(2, 3, 5, 4, seed=2).argmax(1)
    label = label if dense else label[:, 0, 0]

    def network(x: torch.Tensor) -> torch.Tensor:
        output = convolution(x)
        return output if dense else output.mean((2, 3))

    attack = kind(CE, eps=0.05, bounds=(0.0, 1.0), steps=3)
    result, expected = (
        attack(lambda x: without(network(x)), image, label),
        attack(lambda x: network(x)[:, :3], image, label),
    )
    assert result.nonfinite_gradients.tolist() == [0, 0]
    torch.testing.assert_close(result.adversarial, expected.adversarial)
    torch.testing.assert_close(result.loss, expected.loss)


def test_a_sure_sigmoid_has_no_divergence_from_itself() -> None:
    logits = torch.tensor([[-math.inf, math.inf, 0.5]], requires_grad=True)
    log_p = torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits)), 1)
    value = kl_divergence(log_p, log_p.detach())
    assert value.tolist() == [[0.0, 0.0, 0.0]]
    (slope,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(slope, torch.zeros(1, 3), rtol=0, atol=1e-7)


def test_the_divergence_is_torchs_where_nothing_is_infinite() -> None:
    log_p, log_q = draw(3, 4, 1, 5).log_softmax(1), draw(3, 4, 1, 5, seed=1).log_softmax(1)
    expected = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(kl_divergence(log_p, log_q), expected)
