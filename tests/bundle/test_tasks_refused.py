"""`infer_task`: contradictions that name both sources, and what is refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from head_samples import (
    IMAGES,
    INDEX,
    MASK,
    SEVERAL,
    SIGMOID,
    SOFTMAX,
    hot,
    seeded,
)
from monai.losses import DiceLoss
from monai.transforms import AsDiscrete, AsDiscreted
from torch import nn

from monai_smia.attacks import Misclassification
from monai_smia.bundle.own_prediction import own_prediction
from monai_smia.bundle.tasks import infer_task

CONTRADICTIONS: dict[str, tuple[torch.Tensor, Any, dict[str, Any], str]] = {
    "loss and postprocessing": (
        seeded(2, 3, 6, 5),
        INDEX[:, None],
        {"loss_function": DiceLoss(to_onehot_y=True, softmax=True), "postprocessing": SIGMOID},
        r"the loss DiceLoss says .*softmax.* but the postprocessing's Activationsd\(sigmoid=True\) says .*sigmoid",
    ),
    "loss and values": (
        seeded(4, 3).softmax(1),
        IMAGES,
        {"loss_function": nn.CrossEntropyLoss()},
        r"the loss CrossEntropyLoss says .*softmax.* but the output, whose channels sum to 1 everywhere says prob",
    ),
    "postprocessing and values": (
        seeded(4, 3).softmax(1),
        IMAGES,
        {"postprocessing": SOFTMAX},
        r"Activationsd\(softmax=True\) says .*softmax.* but the output, whose channels sum to 1",
    ),
    "loss on probabilities and postprocessing": (
        seeded(2, 3, 6, 5),
        INDEX[:, None],
        {"loss_function": DiceLoss(to_onehot_y=True), "postprocessing": SOFTMAX},
        r"the loss DiceLoss says probabilities already, but the postprocessing's Activationsd\(softmax=True\)",
    ),
    "loss and threshold": (
        seeded(2, 3, 6, 5),
        hot(INDEX, 3),
        {"loss_function": DiceLoss(softmax=True), "postprocessing": AsDiscreted("pred", threshold=0.5)},
        r"the loss DiceLoss says .*softmax.* but the postprocessing's AsDiscreted\(threshold=0.5\)",
    ),
    "loss and label": (
        seeded(2, 3, 6, 5),
        SEVERAL,
        {"loss_function": DiceLoss(softmax=True)},
        r"the loss DiceLoss says one class of several, but the label \(2, 3, 6, 5\) holds several classes",
    ),
    "argmax and label": (
        seeded(2, 3, 6, 5),
        SEVERAL,
        {"postprocessing": AsDiscrete(argmax=True)},
        r"the postprocessing's AsDiscrete\(argmax=True\) says one class of several, but the label",
    ),
    "softmax of one channel": (
        seeded(2, 1, 6, 5),
        MASK,
        {"loss_function": nn.CrossEntropyLoss()},
        r"the loss CrossEntropyLoss chooses one of several channels, but the prediction has 1",
    ),
    "argmax of one channel": (
        seeded(2, 1, 6, 5),
        MASK,
        {"postprocessing": AsDiscrete(argmax=True)},
        r"AsDiscrete\(argmax=True\) chooses one of several channels, but the prediction has 1",
    ),
    "both activations": (
        seeded(2, 3, 6, 5),
        SEVERAL,
        {"postprocessing": [SIGMOID, SOFTMAX]},
        r"postprocessing: expected softmax or sigmoid; got both",
    ),
    "regression and postprocessing": (
        seeded(2, 1, 6, 5),
        MASK,
        {"loss_function": nn.MSELoss(), "postprocessing": SIGMOID, "tolerance": 1.0},
        r"MSELoss compares numbers, but the postprocessing's Activationsd\(sigmoid=True\) makes classes",
    ),
    "too many classes": (
        seeded(2, 2, 6, 5),
        INDEX[:, None],
        {},
        r"the label, which holds class indices makes this a choice of one of 2 channels; .* from 0 to 2",
    ),
    "grey mask": (
        seeded(2, 1, 6, 5),
        MASK * 255,
        {"postprocessing": SIGMOID},
        r"label: .*sigmoid=True\) makes this a decision by channel; expected values from 0 to 1; .* from 0 to 255",
    ),
    "no layout": (
        seeded(2, 3, 6, 5),
        SEVERAL[:, :2],
        {},
        r"label: expected class indices \(2, 6, 5\) or \(2, 1, 6, 5\), or .* \(2, 3, 6, 5\); got \(2, 2, 6, 5\)",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_name_both(name: str) -> None:
    prediction, label, arguments, message = CONTRADICTIONS[name]
    with pytest.raises(ValueError, match=message):
        infer_task(prediction, label, **arguments)


def test_a_person_settles_a_contradiction() -> None:
    loss = nn.CrossEntropyLoss()
    task = infer_task(seeded(4, 3).softmax(1), IMAGES, loss_function=loss, activation="softmax")
    assert (task.loss_function, task.activation, task.said[1]) == (
        loss,
        "softmax",
        "Head: logits, one class of several (softmax), read from `activation`.",
    )
    with pytest.raises(ValueError, match=r"activation: expected one of 'softmax', 'sigmoid', 'none'; got 'relu'"):
        infer_task(seeded(4, 3), IMAGES, activation="relu")


class NoLoss:
    """Any loss of a detector."""

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        return torch.zeros(())


def test_detectors_need_a_loss_and_a_criterion_of_their_own() -> None:
    boxes = [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(1)}]
    maps = {"classification": [seeded(1, 3, 4, 4)], "box_regression": [seeded(1, 4, 4, 4)]}
    for arguments, missing in (
        ({}, "loss_function and criterion"),
        ({"loss_function": NoLoss()}, "criterion"),
        ({"criterion": Misclassification()}, "loss_function"),
    ):
        for prediction, label in ((maps, None), (seeded(1, 3, 4, 4), boxes), (boxes, boxes)):
            with pytest.raises(ValueError, match=rf"^{missing}: this is a detector \(boxes\)"):
                infer_task(prediction, label, **arguments)
    loss, criterion = NoLoss(), Misclassification()
    task = infer_task(maps, boxes, loss_function=loss, criterion=criterion)
    assert (task.kind, task.loss_function, task.criterion) == ("detection", loss, criterion)
    with pytest.raises(ValueError, match="task: a detector's own boxes are no label"):
        own_prediction(maps, task)


def known_as(name: str) -> Any:
    """An object of a class by that name among MONAI's networks."""
    return type(name, (), {"__module__": "monai.networks.nets"})()


REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "HoVerNet's heads": (
        {"nucleus_prediction": seeded(2, 2, 6, 5), "horizontal_vertical": seeded(2, 2, 6, 5)},
        None,
        {},
        r"prediction: dictionaries are not covered \(HoVerNet .*\['horizontal_vertical', 'nucleus_prediction'\]",
    ),
    "HoVerNet's labels": (seeded(2, 2, 6, 5), {"hover_map": MASK}, {}, r"label: dictionaries are not covered"),
    "HoVerNet": (seeded(2, 2, 6, 5), None, {"network": known_as("HoVerNet")}, r"network: HoVerNet is not covered"),
    "VISTA3D": (seeded(1, 1, 6, 5), None, {"network": known_as("VISTA3D")}, r"network: VISTA3D .* asked by prompts"),
    "RetinaNetDetector": (seeded(1, 1, 6, 5), None, {"network": known_as("RetinaNetDetector")}, r"is a detector"),
    "one output per prompt": (
        seeded(3, 1, 6, 5),
        MASK[:1],
        {},
        r"prediction: its batch axis and the label's differ, \(3, 1, 6, 5\) and \(1, 1, 6, 5\).*VISTA3D",
    ),
    "classes already chosen": (INDEX[:, None], INDEX[:, None], {}, r"prediction: expected raw output .* torch.int64"),
    "no tensor": ("logits", None, {}, r"prediction: expected a tensor or a sequence of tensors; got str"),
    "no tensor among them": ([None, 1.0], None, {}, r"floating tensor .* in the sequence; got \['NoneType', 'float'\]"),
    "texts": (seeded(2, 3), ["cat", "dog"], {}, r"label: expected a tensor or None; got list"),
    "a number": (seeded(2, 3), torch.tensor(1), {}, r"label's differ, \(2, 3\) and \(\)"),
    "a loss that refuses": (
        seeded(2, 3, 6, 5),
        hot(INDEX, 3),
        {"loss_function": DiceLoss(to_onehot_y=True, softmax=True)},
        r"target: DiceLoss\(\) refuses a prediction \(2, 3, 6, 5\) with a target \(2, 3, 6, 5\)",
    ),
    "torch's way of refusing": (
        seeded(2, 3, 6, 5),
        INDEX[:, None],
        {"loss_function": lambda p, y: p @ y.float()},
        r"loss_function: .*refuses a prediction \(2, 3, 6, 5\) with a label \(2, 1, 6, 5\)",
    ),
    "no number": (
        seeded(2, 3),
        torch.tensor([1, 2]),
        {"loss_function": lambda p, y: p.sum() * math.nan},
        r"loss_function: expected finite values on the batch; got \[nan, nan\]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_covered_is_refused_by_name(name: str) -> None:
    prediction, label, arguments, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        infer_task(prediction, label, **arguments)


def test_a_loss_must_be_callable() -> None:
    with pytest.raises(TypeError, match=r"loss_function: expected a callable or None; got str"):
        infer_task(seeded(2, 3), torch.tensor([1, 2]), loss_function="dice")  # type: ignore[arg-type]
