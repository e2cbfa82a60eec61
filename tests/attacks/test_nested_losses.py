"""A loss made of others is read for what it holds: its head, its ignored label, and whether it is one of classes."""

from __future__ import annotations

from functools import partial
from typing import Any

import networks
import pytest
import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss, DiceLoss, FocalLoss, SSIMLoss
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import BIM, SMIA, Misclassification
from monai_smia.attacks.criteria import default_criterion
from monai_smia.attacks.heads import ignore_index, infer_activation, is_regression

PREDICTION, TARGET = torch.tensor([[3.0, -2.0, -1.0]]), torch.tensor([[1.0, 1.0, 0.0]])


class Held(nn.Module):
    """A loss of one's own that keeps others as attributes, as modules or not."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return prediction.sum()


class Plain:
    """One that is no module."""

    def __init__(self, part: Any) -> None:
        self.part = part

    def __call__(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.part(prediction, target)


class MyBCE(nn.BCEWithLogitsLoss):
    pass


class MyDice(DiceLoss):
    pass


BCE, CE = nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()
READ = {
    "module": (Held(bce=BCE), "sigmoid"),
    "list": (Held(terms=[BCE]), "sigmoid"),
    "module list": (Held(terms=nn.ModuleList([BCE])), "sigmoid"),
    "dictionary": (Held(terms={"a": (BCE,)}), "sigmoid"),
    "three levels": (Held(a=Held(b=Held(c=[BCE]))), "sigmoid"),
    "function": (Held(f=F.binary_cross_entropy_with_logits), "sigmoid"),
    "partial": (Held(f=partial(F.binary_cross_entropy_with_logits, reduction="sum")), "sigmoid"),
    "no module": (Plain(BCE), "sigmoid"),
    "derived from torch": (MyBCE(), "sigmoid"),
    "derived from MONAI": (MyDice(sigmoid=True), "sigmoid"),
    "focal": (Held(focal=FocalLoss()), "sigmoid"),
    "soft maximum": (Held(ce=CE), "softmax"),
    "two of one kind": (Held(a=CE, b=DiceLoss(softmax=True)), "softmax"),
    "probabilities": (Held(bce=nn.BCELoss()), "none"),
    "probabilities behind an activation": (Held(act=nn.Sigmoid(), bce=nn.BCELoss()), "sigmoid"),
    "Dice on what the module made probabilities": (Held(ce=CE, dice=DiceLoss()), "softmax"),
    "deep supervision inside": (Held(deep=DeepSupervisionLoss(DiceLoss(sigmoid=True))), "sigmoid"),
    "MONAI's own mixture": (Held(loss=DiceCELoss(sigmoid=True)), "sigmoid"),
    "beside a regression": (Held(bce=BCE, smooth=nn.L1Loss()), "sigmoid"),
    "nothing known": (Held(other=nn.Identity()), "softmax"),
}


@pytest.mark.parametrize(("loss", "expected"), READ.values(), ids=READ)
def test_the_head_of_what_is_inside(loss: Any, expected: str) -> None:
    assert infer_activation(loss, 3) == expected


@pytest.mark.parametrize(
    "loss", [Held(bce=BCE), Held(terms=[[BCE]]), Plain(BCE), MyBCE()], ids=lambda x: type(x).__name__
)
def test_a_missed_label_is_a_success(loss: Any) -> None:
    """As with the loss alone: the second of three labels is not predicted."""
    assert default_criterion(loss, PREDICTION, False)(PREDICTION, TARGET).tolist() == [True]
    right = torch.tensor([[1.0, 0.0, 0.0]])
    assert default_criterion(loss, PREDICTION, False)(PREDICTION, right).tolist() == [False]


MIXED = {
    "BCEWithLogitsLoss.*'sigmoid'.*": Held(a=BCE, b=CE),
    "DiceLoss.*'sigmoid'.*": Held(a=DiceLoss(sigmoid=True), b=[CE]),
    "BCELoss.*'none'.*": Held(a=BCE, b=nn.BCELoss()),
}


@pytest.mark.parametrize("names", MIXED)
def test_both_kinds_are_not_guessed_from(names: str) -> None:
    loss = MIXED[names]
    with pytest.raises(ValueError, match=f"loss_function: Held holds both .*{names}expected `activation`"):
        infer_activation(loss, 3)
    network, image = networks.tiny_network(2, dense=False), torch.rand(2, 1, 6, 5)
    target = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    with pytest.raises(ValueError, match="Held holds both"):
        BIM(loss, eps=0.1)(network, image, target)
    sure = Misclassification("sigmoid")
    assert BIM(loss, eps=0.1, criterion=sure)(network, image, target).loss.isfinite().all()
    assert SMIA(loss, eps=0.1, activation="sigmoid")(network, image, target).loss.isfinite().all()


def test_the_ignored_label_of_what_is_inside() -> None:
    ignoring = nn.CrossEntropyLoss(ignore_index=255)
    assert ignore_index(Held(a=[ignoring])) == 255
    assert ignore_index(Held(a=CE, b=ignoring)) == 255  # torch's default gives way
    assert ignore_index(Held(a=CE)) == -100
    assert ignore_index(Held(a=BCE)) is None
    with pytest.raises(ValueError, match=r"loss_function: expected one ignore_index in all of Held; got \[7, 255\]"):
        ignore_index(Held(a=ignoring, b=nn.NLLLoss(ignore_index=7)))


@pytest.mark.parametrize("loss", [Held(a=nn.MSELoss()), Held(a=[nn.L1Loss(), F.mse_loss]), SSIMLoss(2)])
def test_a_comparison_of_numbers_has_no_classes(loss: Any) -> None:
    assert is_regression(loss)
    with pytest.raises(ValueError, match="criterion: success of a regression is for you to define"):
        default_criterion(loss, torch.rand(1, 1, 8, 8), False)


def test_a_class_is_no_loss() -> None:
    with pytest.raises(TypeError, match=r"loss_function: expected an instance, DiceLoss\(...\); got the class itself"):
        BIM(DiceLoss, eps=0.1)
