"""`AttackSuccess` and `MetricDrop` against loops by hand, and logged by an evaluator."""

from __future__ import annotations

import math
from typing import Any

import networks
import numpy as np
import pytest
import torch
from evaluators import Task
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler
from monai.metrics import ConfusionMatrixMetric, DiceMetric, HausdorffDistanceMetric, ROCAUCMetric
from torch.nn import functional as F

from monai_smia.attacks import DiceBelow, Misclassification
from monai_smia.handlers import AttackHandler
from monai_smia.metrics import AttackSuccess, MetricDrop, StructureHausdorffMetric, compute_attack_success

CLASSES = networks.CLASSES


def predictions(rank: int, seed: int, batch: int = 4) -> torch.Tensor:
    return torch.randn((batch, CLASSES, *(5, 4, 3)[:rank]), generator=torch.Generator().manual_seed(seed))


def indices(rank: int, batch: int = 4) -> torch.Tensor:
    return torch.randint(CLASSES, (batch, *(5, 4, 3)[:rank]), generator=torch.Generator().manual_seed(9))


def one_hot(label: torch.Tensor) -> torch.Tensor:
    return F.one_hot(label, CLASSES).movedim(-1, 1)


def voxel_success_by_hand(clean: torch.Tensor, adversarial: torch.Tensor, label: torch.Tensor) -> list[float]:
    values = []
    for before, after, true in zip(clean.argmax(1), adversarial.argmax(1), label, strict=True):
        right = fell = 0
        for b, a, t in zip(before.flatten().tolist(), after.flatten().tolist(), true.flatten().tolist(), strict=True):
            right += b == t
            fell += b == t and a != t
        values.append(fell / right)
    return values


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("form", ["index", "channel", "one-hot"])
def test_success_by_voxel(rank: int, form: str) -> None:
    clean, adversarial, label = predictions(rank, 0), predictions(rank, 1), indices(rank)
    target = {"index": label, "channel": label.unsqueeze(1), "one-hot": one_hot(label)}[form]
    expected = voxel_success_by_hand(clean, adversarial, label)
    values = compute_attack_success(clean, adversarial, target, Misclassification(), per_voxel=True)
    assert values.tolist() == pytest.approx(expected)
    metric = AttackSuccess(per_voxel=True)
    metric(clean[:3], adversarial[:3], target[:3])
    metric((list(clean[3:]), list(adversarial[3:])), list(target[3:]))  # as a handler hands it over, decollated
    assert metric.get_buffer()[:, 0].tolist() == pytest.approx(expected)
    assert metric.aggregate().item() == pytest.approx(np.mean(expected))


def test_success_by_voxel_of_one_hot_decisions_is_that_of_the_scores() -> None:
    clean, adversarial, label = predictions(2, 0), predictions(2, 1), indices(2)
    hard = [one_hot(scores.argmax(1)).float() for scores in (clean, adversarial)]
    values = compute_attack_success(*hard, one_hot(label), Misclassification(), per_voxel=True)
    assert values.tolist() == pytest.approx(voxel_success_by_hand(clean, adversarial, label))


def test_success_by_voxel_of_a_binary_head() -> None:
    """Three of four voxels are right before, one of them falls; the one that was wrong does not count."""
    clean = torch.tensor([[[[2.0, 2.0, -2.0, -2.0]]]])
    adversarial = torch.tensor([[[[2.0, -2.0, -2.0, 2.0]]]])
    label = torch.tensor([[[[1, 1, 0, 1]]]])
    values = compute_attack_success(clean, adversarial, label, Misclassification("sigmoid"), per_voxel=True)
    assert values.tolist() == pytest.approx([1 / 3])


def test_success_by_sample_is_among_the_samples_that_were_right() -> None:
    label = torch.tensor([0, 1, 2, 0, 1])
    clean, adversarial = one_hot(torch.tensor([0, 1, 2, 1, 1])), one_hot(torch.tensor([1, 1, 0, 2, 1]))
    metric = AttackSuccess()
    metric(clean.float(), adversarial.float(), label)
    assert metric.aggregate().item() == pytest.approx(2 / 4)
    assert metric.get_buffer()[:, 0].tolist() == pytest.approx([1, 0, 1, math.nan, 0], nan_ok=True)
    metric.reset()
    metric(clean[3:4].float(), adversarial[3:4].float(), label[3:4])
    assert math.isnan(metric.aggregate().item())  # nothing was right: no rate, and not a rate of 0


def test_success_by_sample_uses_the_criterion() -> None:
    """Dice 1, 2/3, 0 of one structure against a threshold of 0.5."""
    label = torch.tensor([1, 1, 0, 0]).reshape(1, 1, 4).expand(3, 1, 4)
    after = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1]])
    hard = [F.one_hot(value, 2).movedim(-1, 1).float() for value in (label[:, 0], after)]
    metric = AttackSuccess(DiceBelow(0.5))
    metric(*hard, label)
    assert metric.get_buffer()[:, 0].tolist() == [0, 0, 1]
    stricter = AttackSuccess(DiceBelow(0.7))
    stricter(*hard, label)
    assert stricter.aggregate().item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("reduction", ["mean", "mean_batch", "none"])
def test_drop_of_dice_is_the_difference_of_two_metrics(reduction: str) -> None:
    label = one_hot(indices(3))
    hard = [one_hot(predictions(3, seed).argmax(1)) for seed in (0, 1)]
    alone = [DiceMetric(include_background=False, reduction=reduction) for _ in range(2)]
    drop = MetricDrop(alone[0])
    for metric, prediction in zip(alone, hard, strict=True):
        metric(prediction, label)
    drop(hard[0][:3], hard[1][:3], label[:3])
    drop(*(list(value[3:]) for value in (*hard, label)))
    torch.testing.assert_close(drop.aggregate(), alone[0].aggregate() - alone[1].aggregate())
    torch.testing.assert_close(drop.get_buffer(), alone[0].get_buffer() - alone[1].get_buffer())
    assert len(alone[0]) == 4  # the metric that was handed over is left alone
    drop.reset()
    drop(hard[0], hard[0], label)
    assert drop.aggregate().abs().max() == 0


def test_drop_of_a_metric_without_values_per_sample() -> None:
    label = one_hot(torch.tensor([0, 1, 2, 0, 1, 2]))
    scores = [torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(seed)).softmax(1) for seed in (0, 1)]
    alone = [ROCAUCMetric(), ROCAUCMetric()]
    drop = MetricDrop(ROCAUCMetric())
    for metric, prediction in zip(alone, scores, strict=True):
        metric(prediction, label)
    drop(*scores, label)
    assert drop.aggregate() == pytest.approx(alone[0].aggregate() - alone[1].aggregate())
    assert drop.get_buffer().isnan().all()
    assert drop.get_buffer().shape == (6, 1)


def test_drop_of_a_metric_with_several_results_subtracts_each() -> None:
    label, hard = one_hot(indices(2)), [one_hot(predictions(2, seed).argmax(1)) for seed in (0, 1)]
    names = ["sensitivity", "precision"]
    alone = [ConfusionMatrixMetric(metric_name=names) for _ in range(2)]
    drop = MetricDrop(alone[0])
    drop(*hard, label)
    for metric, prediction in zip(alone, hard, strict=True):
        metric(prediction, label)
    for value, one, other in zip(drop.aggregate(), alone[0].aggregate(), alone[1].aggregate(), strict=True):
        torch.testing.assert_close(value, one - other)


@pytest.mark.parametrize("metric", [HausdorffDistanceMetric(), StructureHausdorffMetric()], ids=str)
def test_drop_hands_on_what_the_metric_takes(metric: Any) -> None:
    """A square moved by 2 voxels of 3 mm: the Hausdorff distance rises by 6 mm, so the drop is -6."""
    label = torch.zeros(1, 2, 12, 12)
    label[:, 1, 2:6, 2:6] = 1
    drop = MetricDrop(metric)
    drop(label, label.roll(2, -1), label, spacing=3.0)
    assert drop.aggregate().item() == pytest.approx(-6.0)


def both_predictions(engine: SupervisedEvaluator, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """An iteration that predicts the clean and the adversarial image of an `AttackHandler`."""
    with engine.mode(engine.network):
        adversarial, clean = (engine.inferer(batch[key], engine.network) for key in ("image", "image_clean"))
    return {"clean_pred": clean, "pred": adversarial, "label": batch["label"]}


def test_an_evaluator_logs_both() -> None:
    task = Task()
    attack = task.attacks()["bim"]

    def scores(output: dict[str, Any]) -> Any:
        return (output["clean_pred"], output["pred"]), output["label"]

    def decisions(output: dict[str, Any]) -> Any:
        hard = tuple(one_hot(output[key].as_tensor().argmax(1)) for key in ("clean_pred", "pred"))
        return hard, one_hot(output["label"][:, 0])

    evaluator = task.evaluator(
        val_handlers=[AttackHandler(attack)],
        iteration_update=both_predictions,
        postprocessing=None,
        decollate=False,
        key_val_metric={"fell": IgniteMetricHandler(AttackSuccess(per_voxel=True), output_transform=scores)},
        additional_metrics={"drop": IgniteMetricHandler(MetricDrop(DiceMetric(False)), output_transform=decisions)},
    )
    evaluator.run()
    network, images, label = task.network().eval(), task.images(), task.labels()
    with torch.no_grad():
        clean, adversarial = network(images), network(attack(network, images, label).adversarial)
    expected = voxel_success_by_hand(clean, adversarial, label[:, 0])
    assert evaluator.state.metrics["fell"] == pytest.approx(np.mean(expected))
    assert max(expected) > 0
    dice = [
        DiceMetric(False)(one_hot(p.argmax(1)), one_hot(label[:, 0])).nanmean(1).mean() for p in (clean, adversarial)
    ]
    assert evaluator.state.metrics["drop"] == pytest.approx(float(dice[0] - dice[1]), rel=1e-5)
    assert evaluator.state.metric_details["fell"][:, 0].tolist() == pytest.approx(expected)


def test_bad_input_is_refused() -> None:
    one, label = torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"clean_pred: expected .* got two arguments, the first a Tensor"):
        AttackSuccess()(one, label)
    with pytest.raises(
        ValueError, match=r"adversarial_pred: expected clean_pred's shape \(2, 3, 4, 4\); got \(2, 3, 4"
    ):
        AttackSuccess()(one, one[..., :2], label)
    with pytest.raises(ValueError, match="adversarial_pred: expected 2 samples, as clean_pred has; got 1"):
        AttackSuccess()(list(one), list(one[:1]), label)
    with pytest.raises(ValueError, match="target: expected 2 samples, as clean_pred has; got 1"):
        AttackSuccess()(list(one), list(one), list(label[:1]))
    with pytest.raises(TypeError, match="criterion: expected a Criterion or None; got str"):
        AttackSuccess("dice")
    with pytest.raises(TypeError, match="metric: expected one of MONAI's cumulative metrics; got str"):
        MetricDrop("dice")
