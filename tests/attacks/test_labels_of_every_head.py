"""Labels that are none are refused by name, whatever the head, the dtype and the wrapper of the loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import networks
import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.losses import DeepSupervisionLoss, DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss, TverskyLoss
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import BIM, PGD, DiceBelow, Misclassification
from monai_smia.bundle.fitting import FittedLoss, with_axes
from monai_smia.handlers import AttackHandler
from monai_smia.transforms import AdversarialAttackd

IMAGE = torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(0))
MASK = (torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(1)) > 0.5).float()
REFUSED = r"target: expected values in \[0, 1\].*got values from 0 to 255"


class Inside(nn.Module):
    """A loss of one's own, which holds others."""

    def __init__(self, *losses: Any) -> None:
        super().__init__()
        self.terms = [{"each": losses}]

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return sum(term(prediction, target) for term in self.terms[0]["each"])


ONE_CHANNEL: dict[str, Callable[..., Any]] = {
    "BCE": nn.BCEWithLogitsLoss(),
    "function": F.binary_cross_entropy_with_logits,
    "partial": partial(F.binary_cross_entropy_with_logits, reduction="sum"),
    "Dice": DiceLoss(sigmoid=True),
    "DiceCE": DiceCELoss(sigmoid=True),
    "DiceFocal": DiceFocalLoss(sigmoid=True),
    "Focal": FocalLoss(),
    "Tversky": TverskyLoss(sigmoid=True),
    "deep supervision": DeepSupervisionLoss(DiceLoss(sigmoid=True)),
    "inside a module": Inside(nn.BCEWithLogitsLoss(), DiceLoss(sigmoid=True)),
    "two levels inside": Inside(Inside(nn.BCEWithLogitsLoss())),
    "fitted": FittedLoss(DiceLoss(sigmoid=True), (with_axes,)),
}
one_channel = pytest.mark.parametrize("loss", ONE_CHANNEL.values(), ids=ONE_CHANNEL)


def network(outputs: int = 1) -> nn.Module:
    return networks.tiny_network(2, dense=True, outputs=outputs)


@one_channel
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64], ids=str)
def test_a_mask_of_0_and_255_is_refused(loss: Callable[..., Any], dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=REFUSED):
        BIM(loss, eps=0.1, steps=1)(network(), IMAGE, (255 * MASK).to(dtype))


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), DiceLoss(sigmoid=True), DiceCELoss(sigmoid=True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64, torch.bool], ids=str)
def test_zeros_and_ones_of_every_dtype_and_soft_labels_pass(loss: nn.Module, dtype: torch.dtype) -> None:
    """The clean loss is the one of floats."""
    net = network().eval()
    with torch.no_grad():
        expected = torch.stack([loss(net(IMAGE[i : i + 1]), MASK[i : i + 1]) for i in range(2)])
    attack = BIM(loss, eps=0.1, steps=1)
    torch.testing.assert_close(attack(net, IMAGE, MASK.to(dtype)).clean_loss, expected)
    with torch.no_grad():
        soft = torch.stack([loss(net(IMAGE[i : i + 1]), 0.3 + 0.4 * MASK[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(attack(net, IMAGE, 0.3 + 0.4 * MASK).clean_loss, soft)


@pytest.mark.parametrize("bad", [2.0, -0.5, torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), DiceLoss(sigmoid=True)])
def test_one_wrong_value_of_a_multilabel_head_is_enough(loss: nn.Module, bad: float) -> None:
    target = MASK.repeat(1, 3, 1, 1)
    target[1, 2, 3, 3] = bad
    with pytest.raises(ValueError, match=r"target: expected values in \[0, 1\]"):
        BIM(loss, eps=0.1, steps=1)(network(3), IMAGE, target)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), DiceCELoss(softmax=True), Inside(DiceCELoss(softmax=True))])
def test_one_hot_labels_of_a_softmax_head_are_in_the_unit_range(loss: nn.Module) -> None:
    hot = torch.cat((MASK, 1 - MASK), 1)
    assert BIM(loss, eps=0.1, steps=1)(network(2), IMAGE, hot).clean_loss.isfinite().all()
    with pytest.raises(ValueError, match=REFUSED):
        BIM(loss, eps=0.1, steps=1)(network(2), IMAGE, 255 * hot)


def test_class_indices_on_a_sigmoid_head_name_a_channel() -> None:
    """`to_onehot_y` beside `sigmoid`: 3 channels know the classes 0 to 2."""
    attack = BIM(DiceLoss(sigmoid=True, to_onehot_y=True), eps=0.1, steps=1)
    with pytest.raises(ValueError, match="target: expected class indices under 3.*from 0 to 3"):
        attack(network(3), IMAGE, 3 * MASK)


def test_signs_are_labels_of_the_soft_margin_loss() -> None:
    """It alone wants -1 and 1; the decisions are those of 0 and 1."""
    net, signs = network().eval(), 2 * MASK - 1
    attack = BIM(nn.SoftMarginLoss(), eps=0.1, steps=1, criterion=Misclassification("sigmoid"))
    result = attack(net, IMAGE, signs)
    with torch.no_grad():
        torch.testing.assert_close(result.clean_loss, F.softplus(-signs * net(IMAGE)).flatten(1).mean(1))
    with pytest.raises(ValueError, match=r"target: expected values in \[-1, 1\].*got values from 0 to 2"):
        attack(net, IMAGE, 2 * MASK)


def test_a_loss_of_ones_own_that_holds_none_reads_its_labels_itself() -> None:
    result = BIM(lambda p, t: F.binary_cross_entropy_with_logits(p, t / 255), eps=0.1)(network(), IMAGE, 255 * MASK)
    expected = BIM(nn.BCEWithLogitsLoss(), eps=0.1)(network(), IMAGE, MASK)
    torch.testing.assert_close(result.clean_loss, expected.clean_loss)


def test_lists_of_labels_are_checked_one_by_one() -> None:
    class Both(nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x, -x]

    class Each(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = nn.BCEWithLogitsLoss()

        def forward(self, p: list[torch.Tensor], t: list[torch.Tensor]) -> torch.Tensor:
            return sum(self.loss(a, b) for a, b in zip(p, t, strict=True))

    attack = BIM(Each(), eps=0.1, steps=1, criterion=Never())
    assert attack(Both(), IMAGE, [MASK, MASK]).clean_loss.isfinite().all()
    with pytest.raises(ValueError, match=REFUSED):
        attack(Both(), IMAGE, [MASK, 255 * MASK])


class Never(DiceBelow):
    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        return torch.zeros(len(IMAGE), dtype=torch.bool)


def test_the_handler_and_the_transform_refuse_it_too() -> None:
    attack = PGD(nn.BCEWithLogitsLoss(), eps=0.1, steps=1)
    batch = {"image": IMAGE, "label": 255 * MASK}
    evaluator = SupervisedEvaluator(torch.device("cpu"), [batch], network(), val_handlers=[AttackHandler(attack)])
    with pytest.raises(ValueError, match=REFUSED):
        evaluator.run()
    with pytest.raises(ValueError, match=REFUSED):
        AdversarialAttackd("image", attack, network())({"image": IMAGE[0], "label": 255 * MASK[0]})
