"""`BorderMargin` against margins counted by hand, and its sign against the criterion's verdict."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import DiceBelow, Misclassification, Not
from monai_smia.attacks.border_margin import BorderMargin


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_classes_and_labels_by_hand() -> None:
    scores, label = torch.tensor([[2.0, 5.0, 1.0], [0.0, -1.0, 3.0]]), torch.tensor([1, 0])
    margin = BorderMargin(nn.CrossEntropyLoss())
    assert margin.value(scores, label).tolist() == [-3.0, 3.0]
    assert margin.nearest(scores, label, 10).tolist() == [[-3.0, -4.0], [3.0, -1.0]]
    assert margin.nearest(scores, label, 1).tolist() == [[-3.0], [3.0]]
    towards = BorderMargin(nn.CrossEntropyLoss(), targeted=True)
    assert towards.value(scores, label).tolist() == [3.0, -3.0]
    assert towards.nearest(scores, label, 10).tolist() == [[3.0], [-3.0]]
    several = BorderMargin(nn.BCEWithLogitsLoss())
    truth = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert several.value(scores, truth).tolist() == [1.0, 0.0]
    assert several.nearest(scores, truth, 10).tolist() == [[1.0, -2.0, -5.0], [0.0, -1.0, -3.0]]
    one = BorderMargin(nn.BCEWithLogitsLoss())
    assert one.value(torch.tensor([[0.5], [0.25]]), torch.tensor([1, 0])).tolist() == [-0.5, 0.25]
    shares = BorderMargin(nn.BCELoss())
    assert shares.value(torch.tensor([[0.75]]), torch.tensor([[1.0]])).item() == pytest.approx(-math.log(3))  # 1 to 3


def test_dense_margins_are_cut_off_and_averaged() -> None:
    scores = draw(2, 3, 4, 5)
    label = draw(2, 3, 4, 5, seed=1).argmax(1, keepdim=True)
    label[1, 0, :2] = -100
    own = F.one_hot(label.clamp_min(0)[:, 0], 3).movedim(-1, 1).bool()
    gap = scores.masked_fill(own, -math.inf).amax(1) - scores.masked_fill(~own, -math.inf).amax(1)
    for targeted in (False, True):
        short = torch.where(label[:, 0] >= 0, (-gap if targeted else gap).clamp(max=0), 0)
        expected = torch.stack((short[0].sum() / 20, short[1].sum() / 10))
        margin = BorderMargin(nn.CrossEntropyLoss(), targeted)
        torch.testing.assert_close(margin.value(scores, label), expected)
        torch.testing.assert_close(margin.nearest(scores, label, 10), expected[:, None])


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("shape", [(40, 3), (40, 1), (40, 2), (40, 3, 2), (40, 1, 2, 1)], ids=str)
@pytest.mark.parametrize("head", ["softmax", "sigmoid", "none"])
def test_positive_is_a_wrong_decision(head: str, shape: tuple[int, ...], targeted: bool) -> None:
    """For `Misclassification` the sign is the criterion, whatever the head."""
    if head == "softmax" and shape[1] == 1:
        pytest.skip("one channel has no softmax")
    scores = draw(*shape)
    label = scores + 0.4 * draw(*shape, seed=1)  # so that a decision is seldom wrong
    if head == "none":
        scores = scores.sigmoid() if shape[1] == 1 else scores.softmax(1)
    target = label.argmax(1, keepdim=True) if head == "softmax" or shape[1] > 1 else (label > 0).double()
    if head == "sigmoid":
        target = (label > 0).double()
    loss = {"softmax": nn.CrossEntropyLoss(), "sigmoid": nn.BCEWithLogitsLoss(), "none": DiceLoss()}[head]
    wrong = Misclassification(head)
    criterion = Not(wrong) if targeted else wrong
    value = BorderMargin(loss, targeted, head, criterion).value(scores, target)
    success = criterion(scores, target)
    assert torch.equal(value > 0, success)
    assert 0 < int(success.sum()) < len(success)


def test_a_criterion_of_ones_own_decides_a_single_decision_without_a_cut() -> None:
    """A criterion that wants more than a wrong class must still find a slope once the class is wrong."""
    margin = BorderMargin(nn.CrossEntropyLoss(), criterion=DiceBelow())
    assert margin.value(torch.tensor([[1.0, 4.0]]), torch.tensor([0])).tolist() == [3.0]
