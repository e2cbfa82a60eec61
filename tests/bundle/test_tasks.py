"""`infer_task`: head, loss and success of a bundle, from one batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from head_samples import (
    FINDINGS,
    IMAGES,
    INDEX,
    MASK,
    SEVERAL,
    SIGMOID,
    SOFTMAX,
    SURE,
    VOLUME,
    classes,
    hot,
    inner,
    seeded,
)
from monai.data import MetaTensor
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss
from monai.transforms import Activations, Activationsd, AsDiscrete, AsDiscreted, Compose, Lambda, Lambdad
from torch import nn
from torch.nn import functional as F
from zoo_losses import ZOO, batch_of, built

from monai_smia.attacks import DiceBelow, Misclassification, heads
from monai_smia.attacks.losses import per_sample
from monai_smia.bundle.fitting import FittedLoss, sample_by_sample
from monai_smia.bundle.regression import ErrorAbove
from monai_smia.bundle.tasks import Task, infer_task

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


def test_regression_is_known_by_loss_or_label_and_needs_a_tolerance() -> None:
    landmarks, label = seeded(2, 2, 10), classes(256, 2, 2, 10)
    with pytest.raises(ValueError, match=r"^tolerance: the loss L1Loss compares numbers, so this is a regression"):
        infer_task(landmarks, label, loss_function=nn.L1Loss())
    with pytest.raises(ValueError, match=r"^tolerance: the label has the prediction's shape and values from 0 to"):
        infer_task(landmarks, label - label.min())
    task = infer_task(landmarks, label, tolerance=100)
    assert (task.kind, task.activation, type(task.loss_function)) == ("regression", "none", nn.MSELoss)
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


def test_fractions_in_a_label_are_cut_off_as_the_loss_does() -> None:
    """A mask stored as JPEG has values between its classes; a loss that converts indices itself makes them whole."""
    output = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(1, 1, 6, 6)
    label[..., :3], label[..., 3] = 1.0, 0.6
    task = infer_task(output, label, loss_function=DiceLoss(to_onehot_y=True, softmax=True))
    assert task.kind == "segmentation"
    assert torch.equal(task.loss_function(output, label), task.loss_function(output, label.long()))
    with pytest.raises(ValueError, match="not all whole"):
        infer_task(output, label, loss_function=nn.CrossEntropyLoss())
