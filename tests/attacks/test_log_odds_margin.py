"""One margin in log-odds: a network that ends in its sigmoid or softmax is attacked as the one that ends in logits."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from monai_smia.attacks import APGD, BIM, CW, DDN, DLR, FMN, Attack, DeepFool, Margin, Square
from monai_smia.attacks.border_margin import BorderMargin
from monai_smia.attacks.decision_margin import decision_margin
from monai_smia.attacks.heads import scores
from monai_smia.attacks.margins import Decisions
from monai_smia.attacks.minimum_norm import size_of
from monai_smia.attacks.saturation import saturated

CE, BCE, SHARES = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss(), nn.BCELoss()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


HEADS: dict[str, tuple[Any, ...]] = {  # logits, probabilities, label, loss of the logits, loss of the probabilities
    "one": (4 * draw(40, 1), lambda z: z.sigmoid(), (draw(40, 1, seed=1) > 0).float(), "sigmoid"),
    "several": (4 * draw(40, 3), lambda z: z.sigmoid(), (draw(40, 3, seed=1) > 0).float(), "sigmoid"),
    "classes": (4 * draw(40, 3), lambda z: z.softmax(1), draw(40, 3, seed=1).argmax(1), "softmax"),
    "dense": (4 * draw(4, 3, 5, 2), lambda z: z.softmax(1), draw(4, 3, 5, 2, seed=1).argmax(1), "softmax"),
    "dense, one": (4 * draw(4, 1, 5, 2), lambda z: z.sigmoid(), (draw(4, 1, 5, 2, seed=1) > 0).float(), "sigmoid"),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("targeted", [False, True])
def test_every_margin_is_the_same_of_logits_and_of_probabilities(head: str, targeted: bool) -> None:
    """And the same one: criterion-wise the border's, the objective's and the decision's, value and slope."""
    z, activate, label, activation = HEADS[head]
    found: list[list[torch.Tensor]] = []
    for kind in (activation, "none"):
        leaf = z.double().requires_grad_()
        output = activate(leaf) if kind == "none" else leaf
        values = [
            Margin(CE, targeted, kind).value(output, label),
            BorderMargin(CE, targeted, kind).value(output, label),
            decision_margin(output, label, kind),
        ]
        found.append([*values, *(torch.autograd.grad(value.sum(), leaf, retain_graph=True)[0] for value in values)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    margin, border, decision = found[0][:3]
    torch.testing.assert_close(margin, -decision if targeted else decision)
    if z.ndim == 2 and not (targeted and head == "several"):
        torch.testing.assert_close(border, margin)


@pytest.mark.parametrize("z", [-80.0, -70.0, -30.0, -10.0, -1.0, 0.0, 1.0, 10.0, 14.0])
def test_the_log_odds_are_recovered_from_single_precision(z: float) -> None:
    """To the precision that 1 - p has left, and with the slope of the logit itself."""
    leaf = torch.tensor([[z]], requires_grad=True)
    pair = scores(leaf.sigmoid(), "none", True)
    odds = pair[:, 0] - pair[:, 1]
    (slope,) = torch.autograd.grad(odds.sum(), leaf)
    rounding = 2.0**-24 * (1 + math.exp(z))
    assert float(odds.detach()) == pytest.approx(z, rel=1e-5, abs=4 * rounding + 1e-6)
    assert float(slope) == pytest.approx(1.0, rel=4 * rounding + 1e-5)


ROWS: list[tuple[type[Attack], Any]] = [
    (DeepFool, 2),
    (DeepFool, math.inf),
    (FMN, 2),
    (FMN, math.inf),
    (DDN, 2),
    (CW, 2),
]


@pytest.mark.parametrize("z", [10.0, 70.0])
@pytest.mark.parametrize("last", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("kind", "norm"), ROWS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_the_closed_form_behind_a_sigmoid_or_a_softmax(kind: type[Attack], norm: Any, last: str, z: float) -> None:
    """A linear logit of -z at the image, of known slope: at most 1.25 times the distance to its border."""
    weights, image = draw(64, seed=3), torch.full((1, 1, 8, 8), 0.5)

    def network(x: torch.Tensor) -> torch.Tensor:
        logit = -z + 10 * ((x - 0.5).flatten(1) @ weights)[:, None]
        return logit.sigmoid() if last == "sigmoid" else torch.cat((logit, torch.zeros_like(logit)), 1).softmax(1)

    label = torch.tensor([[0.0]]) if last == "sigmoid" else torch.tensor([1])
    loss = SHARES if last == "sigmoid" else nn.NLLLoss()
    few = {"steps": 100, "searches": 4, "initial_c": 0.1} if kind is CW else {}
    attack = kind(loss, norm=norm, bounds=(0.0, 1.0), activation="none", **few)
    result = attack(network, image, label)
    reach = z / 10 / float(torch.linalg.vector_norm(weights, ord=1 if norm == math.inf else 2))
    size = float(torch.linalg.vector_norm((result.adversarial - image).flatten(), ord=norm))
    assert result.success.tolist() == [True]
    assert 1 - 1e-4 <= size / reach <= 1.25


SURE = {
    "sigmoid": torch.tensor([[20.0], [5.0]]).sigmoid(),
    "softmax": torch.tensor([[120.0, 0.0], [5.0, 0.0]]).softmax(1),
}


@pytest.mark.parametrize("last", SURE)
def test_probabilities_of_exactly_0_and_1_are_saturated(last: str) -> None:
    label = torch.tensor([1, 1]) if last == "sigmoid" else torch.tensor([0, 0])
    loss = SHARES if last == "sigmoid" else nn.NLLLoss()
    decided = Decisions.read(SURE[last], label, loss, "none")
    assert saturated(decided).tolist() == [True, False]
    assert saturated(decided, targeted=True).tolist() == [False, False]
    away = Decisions.read(SURE[last], 1 - label, loss, "none")
    assert saturated(away, targeted=True).tolist() == [True, False]


@pytest.mark.parametrize("kind", [DeepFool, FMN, CW, BIM, APGD, Square], ids=lambda kind: kind.__name__)
def test_a_failure_by_saturation_is_said(kind: type[Attack]) -> None:
    """One of two samples has a logit of 30, of which nothing is left; with logits there is nothing to say."""
    image = torch.tensor([0.75, 0.6]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2).contiguous()
    arguments: dict[str, Any] = {"eps": 0.3, "bounds": (0.0, 1.0)}
    arguments |= {"queries": 5} if kind is Square else {"steps": 5}

    def logits(x: torch.Tensor) -> torch.Tensor:
        return 120 * (x.flatten(1).mean(1, keepdim=True) - 0.5)

    label = torch.tensor([[1.0], [1.0]])
    with pytest.warns(
        UserWarning, match="prediction: the attack failed on 1 of 2 samples whose probabilities are exact"
    ):
        result = kind(SHARES, **arguments)(lambda x: logits(x).sigmoid(), image, label)
    assert not bool(result.success[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind(BCE, **arguments)(logits, image, label)


def test_the_norm_of_a_very_small_gradient() -> None:
    """Its squares vanish in single precision."""
    faint = 1e-30 * draw(2, 1, 5, 4)
    expected = torch.linalg.vector_norm(faint.double().flatten(1), dim=1)
    torch.testing.assert_close(size_of(faint, 2).double(), expected, rtol=1e-5, atol=0)


def test_deepfool_reaches_the_border_along_a_very_small_gradient() -> None:
    weights, image = draw(16, seed=4), torch.full((1, 1, 4, 4), 0.5)
    result = DeepFool(BCE)(
        lambda x: 1e-30 * ((x - 0.5).flatten(1) @ weights - 1)[:, None], image, torch.tensor([[0.0]])
    )
    assert result.success.tolist() == [True]
    size = (result.adversarial - image).norm()
    torch.testing.assert_close(size, 1.02 / weights.norm(), rtol=1e-3, atol=0)


def test_the_ratio_of_logits_is_that_of_log_probabilities() -> None:
    z, label = draw(20, 5), draw(20, 5, seed=1).argmax(1)
    torch.testing.assert_close(
        DLR(nn.NLLLoss(), activation="none").value(z.softmax(1), label), DLR(CE).value(z, label), rtol=1e-4, atol=1e-5
    )
