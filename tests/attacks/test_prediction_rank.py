"""The rank of a prediction: understood where a classifier's channel was squeezed away, else refused by its shape."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

import networks
import pytest
import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import (
    APGD,
    BIM,
    FMN,
    MIFGSM,
    PGD,
    SMIA,
    TPGD,
    Attack,
    AutoAttack,
    CosPGD,
    Criterion,
    DeepFool,
    Misclassification,
    SegPGD,
    Square,
)

BCE = nn.BCEWithLogitsLoss()
IMAGE = torch.rand(4, 1, 6, 5, generator=torch.Generator().manual_seed(0))
LABEL = torch.tensor([0.0, 1.0, 0.0, 1.0])
ATTACKS = (PGD, MIFGSM, SMIA, TPGD, APGD, CosPGD, SegPGD, Square)


class Squeezed(nn.Module):
    """A network of one channel, with the axis taken away in one of the ways that people do."""

    def __init__(self, how: str, dense: bool = False) -> None:
        super().__init__()
        self.inner = networks.tiny_network(2, dense, outputs=1)
        self.how = how

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        output = self.inner(image)
        return {"kept": output, "one": output.squeeze(1), "all": output.squeeze(), "column": output[:, 0]}[self.how]


def attack_of(kind: type[Attack]) -> Attack:
    arguments: dict[str, Any] = {"queries": 20} if kind is Square else {"steps": 3}
    return kind(BCE, eps=0.05, bounds=(0.0, 1.0), **arguments)


@pytest.mark.parametrize("kind", ATTACKS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("how", ["one", "all", "column"])
@pytest.mark.parametrize("form", ["float", "long", "column"])
def test_a_squeezed_classifier_is_attacked_as_the_one_with_its_axis(kind: type[Attack], how: str, form: str) -> None:
    label = {"float": LABEL, "long": LABEL.long(), "column": LABEL[:, None]}[form]
    expected = attack_of(kind)(Squeezed("kept"), IMAGE, LABEL[:, None])
    result = attack_of(kind)(Squeezed(how), IMAGE, label)
    for name in ("adversarial", "clean_loss", "loss", "success", "clean_success"):
        torch.testing.assert_close(getattr(result, name), getattr(expected, name))
    network = Squeezed("kept").eval()
    with torch.no_grad():
        logits = network(result.adversarial)[:, 0]
    torch.testing.assert_close(result.loss, F.binary_cross_entropy_with_logits(logits, LABEL, reduction="none"))
    assert torch.equal(result.success, (logits > 0) != LABEL.bool())


@pytest.mark.parametrize("kind", [DeepFool, FMN], ids=lambda kind: kind.__name__)
def test_a_squeezed_classifier_has_the_same_minimum(kind: type[Attack]) -> None:
    results = [kind(BCE, bounds=(0.0, 1.0))(Squeezed(how), IMAGE, LABEL) for how in ("kept", "one")]
    torch.testing.assert_close(results[0].adversarial, results[1].adversarial)


@pytest.mark.parametrize("kind", [PGD, SMIA, AutoAttack], ids=lambda kind: kind.__name__)
def test_a_single_number_is_a_batch_of_one(kind: type[Attack]) -> None:
    arguments: dict[str, Any] = {"queries": 5, "steps": 2} if kind is AutoAttack else {}
    attack = kind(BCE, eps=0.05, bounds=(0.0, 1.0), **arguments)
    result, expected = (attack(Squeezed(how), IMAGE[:1], LABEL[:1]) for how in ("all", "kept"))
    torch.testing.assert_close(result.adversarial, expected.adversarial)
    torch.testing.assert_close(result.loss, expected.loss)


def test_the_users_own_loss_gets_what_the_network_gave() -> None:
    """With a channel axis its difference would be broadcast to 4 x 4."""
    seen = []

    def loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append((tuple(prediction.shape), tuple(target.shape)))
        return ((prediction - target) ** 2).mean()

    result = BIM(loss, eps=0.05, steps=1, criterion=Misclassification("sigmoid"))(Squeezed("one"), IMAGE, LABEL)
    assert set(seen) == {((1,), (1,))}
    with torch.no_grad():
        torch.testing.assert_close(result.clean_loss, (Squeezed("one").eval()(IMAGE) - LABEL) ** 2)


@pytest.mark.parametrize("kind", [PGD, SMIA, APGD, CosPGD, Square], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("loss", [BCE, DiceLoss(sigmoid=True)])
@pytest.mark.parametrize("channel", [False, True])
def test_a_squeezed_segmentation_is_refused_by_its_shape(kind: type[Attack], loss: nn.Module, channel: bool) -> None:
    mask = (IMAGE > 0.5).float()
    with pytest.raises(ValueError, match=r"prediction: expected \(B, C\) .* or \(B, C, 6, 5\) .* got \(4, 6, 5\)"):
        kind(loss, eps=0.05, bounds=(0.0, 1.0))(Squeezed("one", dense=True), IMAGE, mask if channel else mask[:, 0])


@pytest.mark.parametrize("shape", [(4, 3, 6), (4, 3, 6, 5, 2)], ids=str)
def test_another_rank_is_refused_by_its_shape(shape: tuple[int, ...]) -> None:
    def network(image: torch.Tensor) -> torch.Tensor:
        return torch.zeros(shape) + image.sum()

    with pytest.raises(ValueError, match=r"prediction: expected \(B, C\)"):
        PGD(nn.CrossEntropyLoss(), eps=0.05)(network, IMAGE, torch.zeros(4, *shape[2:], dtype=torch.long))


def test_cross_entropy_needs_channels() -> None:
    with pytest.raises(ValueError, match=r"prediction: expected \(B, C\) of a classifier .* got \(4,\)"):
        PGD(nn.CrossEntropyLoss(), eps=0.05)(Squeezed("one"), IMAGE, LABEL.long())


def test_a_map_of_numbers_may_have_any_rank() -> None:
    """Of a regression no classes are read, so nothing is misread."""

    class Off(Criterion):
        def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
            return (prediction - target).abs().flatten(1).mean(1) > 0.5

    result = BIM(nn.MSELoss(), eps=0.05, criterion=Off())(Squeezed("one", dense=True), IMAGE, IMAGE[:, 0])
    assert bool((result.loss > result.clean_loss).all())


UNBATCHED = {
    r"prediction: expected 1 samples, as the image \(1, 6, 5\) has; got \(3, 6, 5\)": nn.Conv2d(1, 3, 3, padding=1),
    r"image: Conv2d at the network's start takes 4 axes, batch and channels first; got \(1, 6, 5\)": nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(36, 2)
    ),
    r"image: Conv3d at the network's start takes 5 axes, batch and channels first; got \(1, 6, 5\)": nn.Sequential(
        nn.Conv3d(1, 3, 1), nn.Flatten(), nn.Linear(3, 2)
    ),
}


@pytest.mark.parametrize("message", UNBATCHED)
def test_an_image_without_its_batch_axis(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PGD(nn.CrossEntropyLoss(), eps=0.05)(UNBATCHED[message], IMAGE[0], torch.tensor([0]))


def test_a_network_for_volumes_and_an_image_of_a_slice() -> None:
    network = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"image: Conv3d .* takes 5 axes, .* got \(4, 1, 6, 5\)"):
        PGD(nn.CrossEntropyLoss(), eps=0.05)(network, IMAGE, LABEL.long())


def test_a_fault_of_the_network_is_not_blamed_on_the_image() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(7, 2))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        PGD(nn.CrossEntropyLoss(), eps=0.05)(network, IMAGE, LABEL.long())


# outputs that hold no tensor


@dataclasses.dataclass
class Outputs:
    logits: torch.Tensor
    note: str = "kept"


def own(prediction: Any, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(prediction["logits"] if isinstance(prediction, dict) else prediction.logits, target)


class Wrong(Criterion):
    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        logits = prediction["logits"] if isinstance(prediction, dict) else prediction.logits
        return logits.argmax(1) != target


WRAPPED = {"dataclass": Outputs, "dictionary": lambda x: {"logits": x}, "ordered": lambda x: OrderedDict(logits=x)}


@pytest.mark.parametrize("kind", WRAPPED)
def test_an_output_of_ones_own_kind_is_taken_apart_by_sample(kind: str) -> None:
    inner = networks.tiny_network(2, dense=False)
    result = BIM(own, eps=0.05, criterion=Wrong())(lambda x: WRAPPED[kind](inner.eval()(x)), IMAGE, LABEL.long())
    expected = BIM(nn.CrossEntropyLoss(), eps=0.05)(inner, IMAGE, LABEL.long())
    torch.testing.assert_close(result.adversarial, expected.adversarial)
    torch.testing.assert_close(result.loss, expected.loss)
    assert torch.equal(result.success, expected.success)


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_criterion_that_was_given_is_not_asked_for_again(kind: str) -> None:
    inner, name = networks.tiny_network(2, dense=False).eval(), type(WRAPPED[kind](IMAGE)).__name__
    call = (lambda x: WRAPPED[kind](inner(x)), IMAGE, LABEL.long())
    with pytest.raises(TypeError, match=f"got {name}. CrossEntropyLoss takes a tensor: wrap the network"):
        BIM(nn.CrossEntropyLoss(), eps=0.05, criterion=Wrong())(*call)
    with pytest.raises(TypeError, match=f"got {name}. Wrap the network so that it returns the tensor"):
        SMIA(own, eps=0.05, criterion=Wrong())(*call)
    with pytest.raises(TypeError, match=f"got {name}. Give a `criterion`"):
        BIM(own, eps=0.05)(*call)
