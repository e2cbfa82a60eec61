"""`infer_task`: head, loss and success of a bundle, from one batch; what is refused, and by which name."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import networks
import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss
from monai.networks.nets import BasicUNetPlusPlus
from monai.transforms import Activations, Activationsd, AsDiscrete, AsDiscreted, Compose, Lambda, Lambdad
from torch import nn
from torch.nn import functional as F
from zoo_losses import ZOO, batch_of, built

from monai_smia.attacks import BIM, DiceBelow, Misclassification, heads
from monai_smia.attacks.losses import per_sample
from monai_smia.bundle.fitting import FittedCriterion, FittedLoss, sample_by_sample
from monai_smia.bundle.outputs import Output
from monai_smia.bundle.own_prediction import own_prediction
from monai_smia.bundle.regression import ErrorAbove
from monai_smia.bundle.tasks import Task, infer_task

SURE = 20.0  # logits of a perfect prediction


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def classes(channels: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, channels, shape, generator=torch.Generator().manual_seed(sum(shape)))


def hot(index: torch.Tensor, channels: int) -> torch.Tensor:
    return F.one_hot(index, channels).movedim(-1, 1).float()


INDEX, IMAGES = classes(3, 2, 6, 5), classes(3, 4)
VOLUME = classes(3, 2, 5, 4, 3)
SEVERAL = (seeded(2, 3, 6, 5) > 0).float()
SEVERAL[:, :, 0, 0] = 1.0  # several classes at once somewhere
FINDINGS = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
MASK = (seeded(2, 1, 6, 5) > 0).float()
SOFTMAX, SIGMOID = Activationsd("pred", softmax=True), Activationsd("pred", sigmoid=True)

Row = tuple[torch.Tensor, Any, str, type, str, Any]
INFERRED: dict[str, Row] = {
    # what a perfect network prefers (1 where a channel is true), the label, kind, loss, activation, postprocessing
    "classes (B,)": (hot(IMAGES, 3), IMAGES, "classification", nn.CrossEntropyLoss, "softmax", None),
    "classes (B, 1)": (hot(IMAGES, 3), IMAGES[:, None], "classification", nn.CrossEntropyLoss, "softmax", None),
    "classes, floats": (hot(IMAGES, 3), IMAGES.float(), "classification", nn.CrossEntropyLoss, "softmax", None),
    "classes, one-hot": (hot(IMAGES, 3), hot(IMAGES, 3), "classification", nn.CrossEntropyLoss, "softmax", None),
    "classes, sigmoid": (hot(IMAGES, 3), IMAGES, "classification", nn.BCEWithLogitsLoss, "sigmoid", SIGMOID),
    "one class": (FINDINGS[:, :1], FINDINGS[:, 0], "classification", nn.BCEWithLogitsLoss, "sigmoid", None),
    "one class, bool": (
        FINDINGS[:, :1],
        FINDINGS[:, :1].bool(),
        "classification",
        nn.BCEWithLogitsLoss,
        "sigmoid",
        None,
    ),
    "findings": (FINDINGS, FINDINGS, "multilabel classification", nn.BCEWithLogitsLoss, "sigmoid", None),
    "findings, whole": (FINDINGS, FINDINGS.long(), "multilabel classification", nn.BCEWithLogitsLoss, "sigmoid", None),
    "indices": (hot(INDEX, 3), INDEX[:, None].float(), "segmentation", DiceCELoss, "softmax", None),
    "indices, argmax": (
        hot(INDEX, 3),
        INDEX[:, None],
        "segmentation",
        DiceCELoss,
        "softmax",
        AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=3),
    ),
    "indices, no channel axis": (hot(INDEX, 3), INDEX, "segmentation", DiceCELoss, "softmax", [SOFTMAX]),
    "one-hot": (hot(INDEX, 3), hot(INDEX, 3), "segmentation", DiceCELoss, "softmax", None),
    "one-hot, bytes": (hot(INDEX, 3), hot(INDEX, 3).byte(), "segmentation", DiceCELoss, "softmax", None),
    "indices, sigmoid": (hot(INDEX, 3), INDEX[:, None], "segmentation", DiceFocalLoss, "sigmoid", SIGMOID),
    "indices, 3-D": (hot(VOLUME, 3), VOLUME[:, None], "segmentation", DiceCELoss, "softmax", Compose([SOFTMAX])),
    "indices, 3-D, no channel axis": (hot(VOLUME, 3), VOLUME, "segmentation", DiceCELoss, "softmax", None),
    "mask": (MASK, MASK, "segmentation", DiceCELoss, "sigmoid", None),
    "mask, bool, no channel axis": (MASK, MASK[:, 0].bool(), "segmentation", DiceCELoss, "sigmoid", None),
    "structures": (SEVERAL, SEVERAL, "multilabel segmentation", DiceFocalLoss, "sigmoid", None),
    "structures, bool": (SEVERAL, SEVERAL.bool(), "multilabel segmentation", DiceFocalLoss, "sigmoid", None),
    "structures, exclusive": (
        hot(INDEX, 3),
        hot(INDEX, 3),
        "multilabel segmentation",
        DiceFocalLoss,
        "sigmoid",
        Compose([Lambda(lambda x: x), [SIGMOID, AsDiscreted("pred", threshold=0.5)]]),
    ),
    "logits against 0": (
        SEVERAL,
        SEVERAL,
        "multilabel segmentation",
        DiceFocalLoss,
        "sigmoid",
        AsDiscrete(threshold=0.0),
    ),
}


def inner(task: Task) -> Any:
    return task.loss_function.loss_function if isinstance(task.loss_function, FittedLoss) else task.loss_function


def check_minimum(task: Task, perfect: torch.Tensor, wrong: torch.Tensor, label: torch.Tensor) -> None:
    """Zero where the prediction is perfect, and succeeded nowhere; much larger where it is wrong, and succeeded."""
    best, worst = (per_sample(task.loss_function, x, label, len(x)) for x in (perfect, wrong))
    assert float(best.max()) < 0.01
    assert float(worst.min()) > 0.5
    assert task.criterion is not None
    assert task.criterion(perfect, label).tolist() == [False] * len(label)
    assert task.criterion(wrong, label).tolist() == [True] * len(label)


@pytest.mark.parametrize("name", INFERRED)
def test_inferred_heads_and_losses(name: str) -> None:
    truth, label, kind, loss, activation, postprocessing = INFERRED[name]
    task = infer_task(seeded(*truth.shape), label, postprocessing=postprocessing)
    assert (task.kind, type(inner(task)), task.activation, task.channels) == (kind, loss, activation, truth.shape[1])
    assert f"{loss.__name__}(" in task.said[0]
    assert "inferred" in task.said[0]
    check_minimum(task, SURE * (2 * truth - 1), SURE * (1 - 2 * truth), label)


PROBABILITIES: dict[str, Row] = {
    "classes": (hot(IMAGES, 3), IMAGES, "classification", nn.BCELoss, "none", None),
    "findings": (
        FINDINGS,
        FINDINGS,
        "multilabel classification",
        nn.BCELoss,
        "none",
        AsDiscreted("pred", threshold=0.5),
    ),
    "indices": (hot(INDEX, 3), INDEX[:, None], "segmentation", DiceLoss, "none", None),
    "one-hot": (hot(INDEX, 3), hot(INDEX, 3), "segmentation", DiceLoss, "none", AsDiscreted("pred", argmax=True)),
    "mask": (MASK, MASK, "segmentation", DiceLoss, "none", AsDiscrete(threshold=0.5)),
    "structures": (
        SEVERAL,
        SEVERAL,
        "multilabel segmentation",
        DiceLoss,
        "none",
        [AsDiscreted("pred", threshold=0.5)],
    ),
}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_a_head_of_probabilities_gets_a_loss_on_probabilities(name: str) -> None:
    truth, label, kind, loss, activation, postprocessing = PROBABILITIES[name]
    exclusive = truth.shape[1] > 1 and "multilabel" not in kind
    given = seeded(*truth.shape).softmax(1) if exclusive else seeded(*truth.shape).sigmoid()
    task = infer_task(given, label, postprocessing=postprocessing)
    assert (task.kind, type(inner(task)), task.activation) == (kind, loss, activation)
    wrong = truth.roll(1, 1) if exclusive else 1 - truth
    check_minimum(task, truth, wrong, label)


def test_many_values_in_the_unit_interval_are_probabilities_only_where_nothing_else_speaks() -> None:
    given = seeded(2, 1, 6, 8).sigmoid()
    task = infer_task(given, None)
    assert (task.kind, task.activation) == ("segmentation", "none")
    assert "96 values all lie in [0, 1]" in task.said[1]
    assert infer_task(given, None, postprocessing=Activations(sigmoid=True)).activation == "sigmoid"
    assert infer_task(given[:, :, :1], None).activation == "sigmoid"  # 16 values may be an accident


@pytest.mark.parametrize("name", ZOO)
def test_the_zoos_losses_are_accepted(name: str) -> None:
    row, (output, label) = ZOO[name], batch_of(name)
    loss = built(row.config)
    before = copy.deepcopy(loss)
    task = infer_task(output, MetaTensor(label), loss_function=loss, tolerance=1.0)
    assert (task.kind, task.activation, task.channels) == (row.kind, row.activation, row.channels)
    assert type(inner(task)) is type(loss)
    if row.kind != "regression":
        assert heads.infer_activation(inner(task), row.channels) == row.activation
    assert "the bundle's" in task.said[0]
    assert repr(loss) == repr(before)
    one_by_one = [loss(output[i : i + 1], fitted(label[i : i + 1], output)).mean() for i in range(2)]
    torch.testing.assert_close(per_sample(task.loss_function, output, label, 2), torch.stack(one_by_one))


def fitted(label: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """By hand what the bundles' trainers give their losses."""
    if output.ndim == 2 and output.shape[1] > 1:
        return label.flatten().long()
    return label.float().reshape(-1, 1, 1, 1) if output.ndim == 4 else label.float()


def test_batch_true_is_the_same_number_for_one_sample() -> None:
    loss = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, batch=True)
    output, label = seeded(3, 4, 6, 5), classes(4, 3, 1, 6, 5)
    task = infer_task(output, label, loss_function=loss)
    assert loss.dice.batch is True
    assert task.loss_function.dice.batch is False
    assert "batch=False, the same number for each sample alone" in task.said[0]
    alone = torch.stack([loss(output[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(per_sample(task.loss_function, output, label, 3), alone)
    assert not torch.allclose(alone.mean(), loss(output, label))
    same, copied = sample_by_sample(nn.MSELoss())
    assert isinstance(same, nn.MSELoss)
    assert not copied


UNCHANGED: dict[str, tuple[Callable[..., Any], tuple[int, ...], torch.Tensor]] = {
    "boolean label": (DiceLoss(sigmoid=True, squared_pred=True), (2, 3, 6, 5), SEVERAL.bool()),
    "float indices": (nn.CrossEntropyLoss(), (2, 3, 6, 5), INDEX[:, None].float()),
    "column": (nn.CrossEntropyLoss(), (4, 3), IMAGES[:, None]),
    "partial": (partial(F.cross_entropy, label_smoothing=0.1), (4, 3), IMAGES),
    "binary": (nn.BCEWithLogitsLoss(), (4, 1), FINDINGS[:, 0].long()),
    "indices": (DiceCELoss(to_onehot_y=True, softmax=True), (2, 3, 6, 5), INDEX[:, None]),
    "a user's": (lambda p, y: (p.softmax(1)[:, 1:] - y).square().mean(), (2, 3, 6, 5), INDEX[:, None]),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_what_attacks_fit_themselves_is_not_wrapped(name: str) -> None:
    loss, shape, label = UNCHANGED[name]
    assert infer_task(seeded(*shape), label, loss_function=loss).loss_function is loss


WRAPPED: dict[str, tuple[Any, torch.Tensor, torch.Tensor, Callable[..., Any]]] = {
    # a loss, an output, the label that comes, and the same written out by hand
    "whole numbers and squares": (
        DiceLoss(sigmoid=True, squared_pred=True),
        seeded(2, 3, 6, 5),
        SEVERAL.byte(),
        lambda p, y: DiceLoss(sigmoid=True, squared_pred=True)(p, y.float()),
    ),
    "focal loss of classes": (
        FocalLoss(to_onehot_y=True, use_softmax=True),
        seeded(4, 3),
        IMAGES,
        lambda p, y: FocalLoss(use_softmax=True)(p, hot(y, 3)),
    ),
    "no channel axis": (
        DiceLoss(to_onehot_y=True, softmax=True),
        seeded(2, 3, 6, 5),
        INDEX,
        lambda p, y: DiceLoss()(p.softmax(1), hot(y, 3)),
    ),
    "one-hot wanted": (
        DiceLoss(softmax=True),
        seeded(2, 3, 6, 5),
        INDEX[:, None],
        lambda p, y: DiceLoss()(p.softmax(1), hot(y[:, 0], 3)),
    ),
    "binary of classes": (
        nn.BCEWithLogitsLoss(),
        seeded(4, 3),
        IMAGES,
        lambda p, y: F.binary_cross_entropy_with_logits(p, hot(y, 3)),
    ),
    "classes of a 1x1 map": (
        nn.CrossEntropyLoss(),
        seeded(4, 3, 1, 1),
        IMAGES,
        lambda p, y: F.cross_entropy(p[:, :, 0, 0], y),
    ),
    "numbers": (nn.MSELoss(), seeded(4, 1), seeded(4), lambda p, y: (p[:, 0] - y).square().mean()),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_a_loss_needs_and_attacks_do_not_fit(name: str) -> None:
    loss, output, label, by_hand = WRAPPED[name]
    task = infer_task(output, label, loss_function=loss, tolerance=1.0)
    assert isinstance(task.loss_function, FittedLoss)
    expected = torch.stack([by_hand(output[i : i + 1], label[i : i + 1]) for i in range(len(output))])
    torch.testing.assert_close(per_sample(task.loss_function, output, label, len(output)), expected)
    assert repr(task.loss_function).startswith(f"FittedLoss({type(loss).__name__}, ")
    assert ", with " in task.said[0]


def test_a_label_that_the_loss_ignores_stays_ignored_when_fitted() -> None:
    loss = nn.CrossEntropyLoss(ignore_index=2)
    task = infer_task(seeded(2, 2, 6, 5), INDEX[:, None], loss_function=loss)
    assert task.criterion == DiceBelow(activation="softmax", ignore_index=2)
    assert heads.ignore_index(FittedLoss(loss)) == 2


def test_argmax_over_a_sigmoid_head_chooses_the_largest_channel() -> None:
    """As the zoo's renal structures: trained by channel, decided by argmax."""
    loss = DiceLoss(include_background=False, to_onehot_y=True, sigmoid=True)
    post = Compose([Activationsd("pred", sigmoid=True), AsDiscreted("pred", argmax=True)])
    output = seeded(2, 3, 6, 5) - 5.0  # no channel over 0.5
    label = output.argmax(1, keepdim=True)
    task = infer_task(output, label, loss_function=loss, postprocessing=post)
    assert (task.kind, task.activation) == ("segmentation", "sigmoid")
    assert task.criterion is not None
    assert task.criterion(output, label).tolist() == [False, False]
    assert "the largest channel is chosen" in task.said[1]


def test_a_users_loss_without_flags_leaves_the_head_to_the_postprocessing() -> None:
    def loss(prediction: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return (prediction.sigmoid() - label).square().mean()

    task = infer_task(seeded(2, 3, 6, 5), SEVERAL, loss_function=loss, postprocessing=SIGMOID)
    assert (task.kind, task.activation, task.loss_function) == ("multilabel segmentation", "sigmoid", loss)
    assert "Activationsd(sigmoid=True)" in task.said[1]


def test_postprocessing_of_the_label_says_nothing_of_the_prediction() -> None:
    post = [AsDiscreted(["pred", "label"], argmax=[False, True]), Lambdad("pred", lambda x: x), Activations()]
    assert infer_task(seeded(2, 1, 6, 5), MASK, postprocessing=post).activation == "sigmoid"


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
        r"the loss CrossEntropyLoss says .*softmax.* but the output, whose channels sum to 1 everywhere, says prob",
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


def test_regression_is_known_by_loss_or_label_and_needs_a_tolerance() -> None:
    landmarks, label = seeded(2, 2, 10), classes(256, 2, 2, 10)
    with pytest.raises(ValueError, match=r"^tolerance: the loss L1Loss compares numbers, so this is a regression"):
        infer_task(landmarks, label, loss_function=nn.L1Loss())
    with pytest.raises(ValueError, match=r"^tolerance: the label has the prediction's shape and values from 0 to"):
        infer_task(landmarks, label - label.min())
    task = infer_task(landmarks, label, tolerance=100)
    assert (task.kind, task.activation, type(task.loss_function)) == ("regression", "none", FittedLoss)
    assert type(inner(task)) is nn.MSELoss
    assert task.criterion == ErrorAbove(100)
    own = infer_task(landmarks, None, loss_function=nn.L1Loss(), criterion=Misclassification("none"))
    assert own.criterion == Misclassification("none")
    ages = infer_task(seeded(3, 1), torch.tensor([41.0, 7.5, 63.0]), tolerance=5.0)
    torch.testing.assert_close(
        per_sample(ages.loss_function, torch.tensor([[40.0], [7.5], [60.0]]), torch.tensor([41.0, 7.5, 63.0]), 3),
        torch.tensor([1.0, 0.0, 9.0]),
    )
    with pytest.raises(ValueError, match=r"label: the loss MSELoss compares numbers, so it needs as many numbers as"):
        infer_task(seeded(3, 2), torch.zeros(3), loss_function=nn.MSELoss(), tolerance=1.0)


def test_error_above() -> None:
    criterion = ErrorAbove(1.5)
    prediction = torch.tensor([[[1.0, 2.0]], [[1.0, 5.0]]])
    assert criterion.error(prediction, torch.tensor([[2.0, 4.0], [1.0, 1.0]])).tolist() == [1.5, 2.0]
    assert criterion(prediction, torch.tensor([[2.0, 4.0], [1.0, 1.0]])).tolist() == [False, True]
    assert ErrorAbove(0.0)(prediction, prediction).tolist() == [False, False]
    with pytest.raises(ValueError, match=r"target: expected as many numbers as the prediction \(2, 1, 2\)"):
        criterion(prediction, torch.zeros(2, 3))
    for bad in (-1.0, math.nan, "3", (1.0, 2.0)):
        with pytest.raises((TypeError, ValueError), match="tolerance: expected"):
            ErrorAbove(bad)  # type: ignore[arg-type]


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


def levels(full: torch.Tensor) -> list[torch.Tensor]:
    return [full, F.avg_pool2d(full, 2), F.avg_pool2d(full, 3)]


DEEP: dict[str, tuple[Callable[[torch.Tensor], Any], Output]] = {
    "first": (levels, Output()),
    "last": (lambda full: tuple(reversed(levels(full))), Output(index=2)),
    "stacked": (lambda full: torch.stack([full, full.flip(0), -full], 1), Output(stacked=True)),
    "and none": (lambda full: (None, full), Output(index=1)),
}


@pytest.mark.parametrize("layout", DEEP)
@pytest.mark.parametrize("one", [False, True], ids=["indices", "one-hot"])
@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss()], ids=["inferred", "given"])
def test_deep_supervision_is_judged_at_full_resolution(layout: str, one: bool, loss: Any) -> None:
    make, output = DEEP[layout]
    full, label = seeded(2, 3, 6, 5), hot(INDEX, 3) if one else INDEX[:, None]
    task = infer_task(make(full), label, loss_function=loss)
    alone = infer_task(full, label, loss_function=loss)
    assert task.output == output
    assert isinstance(task.loss_function, FittedLoss)
    assert isinstance(task.criterion, FittedCriterion) == (output != Output())
    assert any(sentence.startswith("Output: 3 outputs") or "2 outputs" in sentence for sentence in task.said)
    torch.testing.assert_close(
        per_sample(task.loss_function, make(full), label, 2), per_sample(alone.loss_function, full, label, 2)
    )
    assert task.criterion is not None
    assert task.criterion(make(SURE * hot(INDEX, 3)), label).tolist() == [False, False]
    assert task.criterion(make(-SURE * hot(INDEX, 3)), label).tolist() == [True, True]
    assert torch.equal(own_prediction(make(full), task, like=label), own_prediction(full, alone, like=label))


def test_a_loss_of_deep_supervision_is_given_every_output() -> None:
    loss = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True))
    full = seeded(2, 3, 6, 5)
    plain = infer_task(levels(full), INDEX[:, None].float(), loss_function=loss)
    assert plain.loss_function is loss
    task = infer_task(levels(full), INDEX[:, None], loss_function=loss)  # whole numbers cannot be interpolated
    torch.testing.assert_close(
        per_sample(task.loss_function, levels(full), INDEX[:, None], 2),
        per_sample(loss, levels(full), INDEX[:, None].float(), 2),
    )
    single = infer_task(full, INDEX[:, None].float(), loss_function=loss)
    assert single.loss_function is loss


def test_a_whole_volume_without_channel_axis_is_no_stack_of_outputs() -> None:
    assert infer_task(seeded(2, 3, 5, 4, 3), VOLUME).output == Output()
    assert infer_task(seeded(2, 3, 5, 4, 3), VOLUME[:, None]).output == Output()


def test_a_network_with_several_outputs_in_eval_mode() -> None:
    network = BasicUNetPlusPlus(2, 1, 2, features=(4, 4, 4, 4, 4, 4), deep_supervision=True).eval()
    image, label = seeded(1, 1, 16, 16), classes(2, 1, 1, 16, 16)
    with torch.no_grad():
        prediction = network(image)
    task = infer_task(prediction, label)
    result = BIM(task.loss_function, eps=0.1, steps=2, criterion=task.criterion)(network, image, label)
    assert float(result.loss) > float(result.clean_loss)


def dense_and_flat() -> list[tuple[str, bool, int, Any, torch.Tensor | None]]:
    return [
        ("softmax classifier", False, 3, None, IMAGES[:2]),
        ("sigmoid classifier", False, 3, None, FINDINGS[:2]),
        ("classifier, no label", False, 3, None, None),
        ("softmax map", True, 3, None, INDEX[:, None]),
        ("softmax map without channel axis", True, 3, None, INDEX),
        ("sigmoid map", True, 3, None, SEVERAL),
        ("mask", True, 1, None, MASK),
        ("map, no label", True, 3, SOFTMAX, None),
        ("regions, no label", True, 3, SIGMOID, None),
    ]


@pytest.mark.parametrize("case", dense_and_flat(), ids=lambda case: case[0])
def test_an_attack_with_the_task_raises_the_loss(case: tuple[str, bool, int, Any, torch.Tensor | None]) -> None:
    _, dense, outputs, post, label = case
    network, image = networks.tiny_network(2, dense, outputs=outputs).eval(), seeded(2, 1, 6, 5)
    with torch.no_grad():
        prediction = network(image)
    task = infer_task(prediction, label, postprocessing=post)
    target = own_prediction(prediction, task) if label is None else label
    attack = BIM(task.loss_function, eps=0.3, steps=5, criterion=task.criterion)
    result = attack(network, image, target)
    assert bool((result.loss > result.clean_loss).all())
    with torch.no_grad():
        by_hand = per_sample(task.loss_function, network(result.adversarial), target, 2)
    torch.testing.assert_close(result.loss, by_hand)
    if label is None:
        assert result.clean_success.tolist() == [False, False]  # the clean prediction is its own label
        assert "the network's own clean prediction is attacked" in task.said[-1]


def test_own_prediction_of_every_head() -> None:
    flat, output = torch.tensor([[0.2, -1.0, 3.0], [0.7, 0.4, -2.0]]), seeded(2, 3, 6, 5)
    assert own_prediction(flat, "softmax").tolist() == [2, 0]
    assert own_prediction(flat, "softmax").dtype == torch.long
    assert own_prediction(flat, "sigmoid").tolist() == [[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    assert own_prediction(flat.sigmoid(), "none").tolist() == [[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    assert own_prediction(flat.softmax(1), "none").tolist() == [2, 0]
    assert torch.equal(own_prediction(output, "softmax"), output.argmax(1, keepdim=True))
    assert torch.equal(own_prediction(output, "sigmoid"), (output > 0).float())
    assert torch.equal(own_prediction(MetaTensor(output), "sigmoid", like=SEVERAL.bool()), output > 0)
    assert torch.equal(own_prediction(output, "softmax", like=INDEX), output.argmax(1))
    assert torch.equal(own_prediction(output, "softmax", like=hot(INDEX, 3)), hot(output.argmax(1), 3))
    with pytest.raises(ValueError, match="task: expected one of 'softmax', 'sigmoid', 'none'; got 'tanh'"):
        own_prediction(output, "tanh")


@pytest.mark.parametrize(
    ("loss", "shape", "expected"),
    [
        (None, (2, 3, 6, 5), "segmentation"),
        (DiceLoss(softmax=True), (2, 3, 6, 5), "segmentation"),
        (DiceLoss(to_onehot_y=True, sigmoid=True), (2, 3, 6, 5), "segmentation"),
        (DiceLoss(sigmoid=True, squared_pred=True), (2, 3, 6, 5), "multilabel segmentation"),
        (FocalLoss(to_onehot_y=True, use_softmax=True), (4, 3), "classification"),
        (nn.BCEWithLogitsLoss(), (4, 3), "multilabel classification"),
        (nn.CrossEntropyLoss(), (2, 3, 6, 5), "segmentation"),
    ],
)
def test_without_labels_the_loss_takes_the_own_prediction(loss: Any, shape: tuple[int, ...], expected: str) -> None:
    output = SURE * seeded(*shape)
    task = infer_task(output, None, loss_function=loss)
    assert task.kind == expected
    assert task.criterion is not None
    label = own_prediction(output, task)
    assert task.criterion(output, label).tolist() == [False] * len(output)
    own, other = (per_sample(task.loss_function, x, label, len(output)) for x in (output, -output))
    assert bool((own < other).all())


def test_without_labels_a_regression_leaves_its_own_output() -> None:
    output = seeded(2, 4)
    task = infer_task(output, None, loss_function=nn.MSELoss(), tolerance=0.1)
    label = own_prediction(output, task)
    assert torch.equal(label, output)
    assert per_sample(task.loss_function, output, label, 2).tolist() == [0.0, 0.0]
    assert torch.equal(own_prediction(output, task, like=torch.zeros(2, 2, 2)), output.reshape(2, 2, 2))
