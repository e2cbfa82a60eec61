"""`infer_task` and `own_prediction`: several outputs, no labels, and attacks with what was inferred."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networks
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
    seeded,
)
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceCELoss, DiceLoss, FocalLoss
from monai.networks.nets import BasicUNetPlusPlus
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import BIM
from monai_smia.attacks.losses import per_sample
from monai_smia.bundle.fitting import FittedCriterion, FittedLoss
from monai_smia.bundle.outputs import Output
from monai_smia.bundle.own_prediction import own_prediction
from monai_smia.bundle.tasks import infer_task


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
    image, label = seeded(1, 1, 32, 32), classes(2, 1, 1, 32, 32)
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
