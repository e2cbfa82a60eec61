"""What the loss ignores neither counts nor is pushed, whatever the head: its outputs may be anything."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import (
    DAG,
    DLR,
    SMIA,
    TPGD,
    CosPGD,
    CrossEntropy,
    DiceBelow,
    JensenShannon,
    Margin,
    MaskedCrossEntropy,
    Misclassification,
    SegPGD,
)
from monai_smia.attacks.border_margin import BorderMargin
from monai_smia.attacks.criteria import default_criterion
from monai_smia.attacks.decision_margin import decision_margin
from monai_smia.attacks.dense import CosPGDObjective, SegPGDObjective
from monai_smia.attacks.heads import counted, labels
from monai_smia.attacks.smia import HardDivergence, SoftDivergence
from monai_smia.attacks.trial import Trial
from monai_smia.doctor.log_odds import log_odds
from monai_smia.losses import MARTLoss, TRADESLoss

IGNORED = 255
SIZE = (4, 6)
HOLES = torch.zeros(2, 1, *SIZE, dtype=torch.bool)
HOLES[0, 0, :, 4:] = True
HOLES[1, 0, 1] = True


class Masked(nn.Module):
    """A binary cross-entropy, of logits or probabilities, without the voxels of a label value."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.inner = loss
        self.ignore_index = IGNORED

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        target = target.reshape(prediction.shape)
        valid = target != IGNORED
        each = self.inner(prediction, torch.where(valid, target, 0).to(prediction.dtype))
        return (each * valid).sum() / valid.sum().clamp_min(1)


def draw(channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, channels, *SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BCE, SHARES = Masked(nn.BCEWithLogitsLoss(reduction="none")), Masked(nn.BCELoss(reduction="none"))
CE = nn.CrossEntropyLoss(ignore_index=IGNORED)
ONE = torch.where(HOLES, IGNORED, (draw(1, 5) > 0).long())
SEVERAL = torch.where(HOLES, IGNORED, (draw(3, 5) > 0).long().index_fill(1, torch.tensor([0]), 1))
INDEX = torch.where(HOLES, IGNORED, draw(3, 5).argmax(1, keepdim=True))
HEADS = {
    "sigmoid": (BCE, "sigmoid", draw(1), ONE),
    "sigmoid, no channel axis in the label": (BCE, "sigmoid", draw(1), ONE[:, 0]),
    "sigmoid, float label": (BCE, "sigmoid", draw(1), ONE.double()),
    "sigmoid, bytes": (BCE, "sigmoid", draw(1), ONE.to(torch.uint8)),
    "several sigmoids": (BCE, "sigmoid", draw(3), SEVERAL),
    "several sigmoids, indices": (BCE, "sigmoid", draw(3), INDEX),
    "probability": (SHARES, "none", draw(1).sigmoid(), ONE),
    "several probabilities": (SHARES, "none", draw(3).sigmoid(), SEVERAL),
    "softmax": (CE, "softmax", draw(3), INDEX),
}
heads = pytest.mark.parametrize("head", HEADS)


def other(output: torch.Tensor, activation: str) -> torch.Tensor:
    """The same output with anything where the label is ignored."""
    anything = 9 * draw(output.shape[1], 3)
    return torch.where(HOLES, anything.sigmoid() if activation == "none" else anything, output)


def trial(image: torch.Tensor) -> Trial:
    return Trial(image, image, 3, 10, None, None, lambda x: x, lambda x: x, lambda x: x)


def values(loss: Any, activation: str, output: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything that reads a label, at one output; the second output of two is the first, shifted."""
    shifted = output * 0.8 if activation == "none" else output * 0.8 + 0.1
    found = {
        "ce": CrossEntropy(loss, activation=activation).value(output, label),
        "margin": Margin(loss, activation=activation).value(output, label),
        "margin, targeted": Margin(loss, True, activation).value(output, label),
        "mask": MaskedCrossEntropy(loss, activation=activation).value(output, label),
        "balanced": MaskedCrossEntropy(loss, activation=activation, balanced=True).value(output, label),
        "js": JensenShannon(loss, activation=activation).value(output, label),
        "border": BorderMargin(loss, activation=activation).value(output, label),
        "border, any": BorderMargin(loss, False, activation, Misclassification(activation)).value(output, label),
        "decision": decision_margin(output, label, activation, IGNORED),
        "cos": CosPGDObjective(loss, False, activation)(output, label, trial(output)),
        "seg": SegPGDObjective(loss, False, activation)(output, label, trial(output)),
        "kl": SoftDivergence(activation, IGNORED)(output, shifted, label),
        "trades": TRADESLoss(loss, activation=activation).divergence(output, shifted, label)
        if loss is not SHARES
        else output.new_zeros(2),
        "mart": MARTLoss(loss, activation=activation)(output, shifted, label),
    }
    if output.shape[1] == 3 and label.shape[1] == 1:
        return found | ({"dlr": DLR(loss).value(output, label)} if activation == "softmax" else {})
    return found


@heads
def test_values_and_slopes_do_not_see_what_is_ignored(head: str) -> None:
    loss, activation, output, label = HEADS[head]
    results = []
    for x in (output, other(output, activation)):
        leaf = x.clone().requires_grad_()
        found = values(loss, activation, leaf, label)
        slopes = {
            name: torch.autograd.grad(value.sum(), leaf, retain_graph=True)[0]
            for name, value in found.items()
            if value.requires_grad
        }
        results.append((found, slopes))
    for name, value in results[0][0].items():
        torch.testing.assert_close(value, results[1][0][name], msg=lambda text, name=name: f"{name}: {text}")
    assert len(results[0][1]) >= 12
    for name, slope in results[0][1].items():
        assert bool((slope[HOLES.expand_as(slope)] == 0).all()), name
        assert bool((slope[~HOLES.expand_as(slope)] != 0).any()), name


@heads
def test_criteria_do_not_see_what_is_ignored(head: str) -> None:
    """A perfect prediction of what counts is no success, and has a Dice of 1, whatever the rest holds."""
    loss, activation, output, label = HEADS[head]
    hard = labels(label, output, activation, IGNORED)
    perfect = F.one_hot(hard % IGNORED, 3).movedim(-1, 1).double() if hard.dtype != torch.bool else hard.double()
    perfect = perfect if activation == "none" else 10 * perfect - 5
    for fill in (0.0, 1.0):
        x = torch.where(HOLES, fill if activation == "none" else 10 * fill - 5, perfect)
        assert Misclassification(activation, IGNORED)(x, label).tolist() == [False, False]
        assert DiceBelow(1.0, activation, True, IGNORED).dice(x, label).tolist() == [1.0, 1.0]
        assert default_criterion(loss, x, False, activation)(x, label).tolist() == [False, False]
        assert default_criterion(loss, x, True, activation)(x, label).tolist() == [True, True]
    wrong = (1 - perfect) if activation == "none" else -perfect
    wrong = wrong.roll(1, 1) if activation == "softmax" else wrong
    assert Misclassification(activation, IGNORED)(wrong, label).tolist() == [True, True]


@pytest.mark.parametrize("head", [name for name, row in HEADS.items() if row[1] != "none"])
@pytest.mark.parametrize("kind", [SMIA, TPGD, CosPGD, SegPGD, DAG], ids=lambda kind: kind.__name__)
def test_attacks_leave_ignored_voxels_of_a_pointwise_network_alone(kind: Any, head: str) -> None:
    """Each voxel's output depends on that voxel alone: a voxel that moves was pushed."""
    loss, activation, output, label = HEADS[head]
    channels = output.shape[1]
    weights = torch.linspace(-2, 3, channels, dtype=torch.float64).reshape(1, -1, 1, 1)
    image = draw(1, 8)
    arguments: dict[str, Any] = {"random_start": False, "steps": 3}
    if kind is TPGD:
        arguments = {"steps": 3, "noise": 1e-9}
    if kind is SMIA:
        arguments |= {"combine": "gradient"}

    if head == "several sigmoids, indices":
        if "ignore_index" not in inspect.signature(DiceLoss).parameters:
            pytest.skip("this MONAI's DiceLoss has no ignore_index")
        loss = DiceLoss(sigmoid=True, to_onehot_y=True, ignore_index=IGNORED)
    attack = kind(loss, eps=0.1, activation=activation, **arguments)
    result = attack(lambda x: x * weights, image, label)
    moved = (result.adversarial - image).abs() > 1e-6
    assert not bool(moved[HOLES].any())
    assert bool(moved[~HOLES].any())


def test_by_monais_rule_a_label_for_each_channel_is_left_out_by_voxel() -> None:
    """A class index leaves out its voxels, any other value those of no class; the mask is MONAI's own."""
    masks = pytest.importorskip("monai.metrics.utils")
    if not hasattr(masks, "create_ignore_mask"):
        pytest.skip("this MONAI has no ignore_index")
    hot = F.one_hot(draw(3, 5).argmax(1), 3).movedim(-1, 1)
    hot = torch.where(HOLES, 0, hot)
    for ignored in (0, 2, IGNORED, -1):
        expected = masks.create_ignore_mask(hot, ignored).bool()
        for activation, channels in (("sigmoid", 3), ("softmax", 1)):
            valid = counted(hot, draw(3), activation, ignored)
            assert torch.equal(valid, expected.expand(-1, channels, -1, -1))


def test_bytes_are_not_taken_for_negative_numbers() -> None:
    """-100, torch's default, is 156 in bytes."""
    label = torch.full((1, 1, 2, 2), 156, dtype=torch.uint8)
    assert bool(counted(label, draw(1)[:1, :, :2, :2], "sigmoid", -100).all())


def test_hard_labels_keep_what_is_ignored() -> None:
    twin = draw(1, 6)
    for loss, label in ((BCE, ONE), (BCE, ONE[:, 0]), (BCE, ONE.double())):
        first, second = (HardDivergence(loss, "sigmoid")(draw(1), x, label) for x in (twin, other(twin, "sigmoid")))
        torch.testing.assert_close(first, second)


def test_log_odds_of_the_doctor() -> None:
    for head in ("sigmoid", "several sigmoids", "softmax"):
        loss, activation, output, label = HEADS[head]
        torch.testing.assert_close(log_odds(loss, output, label), log_odds(loss, other(output, activation), label))


def test_a_classifiers_ignored_sample_is_not_judged() -> None:
    scores, label = torch.tensor([[3.0, 1.0], [3.0, 1.0]]), torch.tensor([-100, 1])
    assert default_criterion(nn.CrossEntropyLoss(), scores, False)(scores, label).tolist() == [False, True]


@pytest.mark.skipif("ignore_index" not in inspect.signature(DiceLoss).parameters, reason="this MONAI has none")
def test_the_case_of_a_perfect_mask() -> None:
    label = torch.zeros(1, 1, 4, 4)
    label[..., :2], label[0, 0, 0, 2:] = 255, 1
    prediction = torch.full((1, 1, 4, 4), -5.0)
    prediction[0, 0, 0, 2:] = 5
    criterion = default_criterion(DiceLoss(sigmoid=True, ignore_index=255), prediction, False)
    assert criterion.dice(prediction, label).tolist() == [1.0]
    assert criterion(prediction, label).tolist() == [False]
