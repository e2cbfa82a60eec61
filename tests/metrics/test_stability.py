"""`PerturbationStability`: the three variances against numpy and the law of total variance."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from evaluators import Task
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, from_engine

from monai_smia.attacks import PGD
from monai_smia.metrics import PerturbationStability, compute_image_variance, compute_stack_variance


def stack(rank: int, batch: int = 3, count: int = 4) -> torch.Tensor:
    return torch.randn((batch, count, 2, *(5, 4, 3)[:rank]), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("over", ["iterations", "restarts"])
@pytest.mark.parametrize("rank", [2, 3])
def test_along_a_stack_it_is_numpys_variance(rank: int, over: Any) -> None:
    clean = torch.rand((3, 2, *(5, 4, 3)[:rank]), generator=torch.Generator().manual_seed(0)).double()
    adversarial = clean.unsqueeze(1) + stack(rank)
    changes = (adversarial - clean.unsqueeze(1)).numpy()
    expected = [
        np.mean([np.var(change[:, j], ddof=1) for j in np.ndindex(change.shape[1:])]) for change in _flat(changes)
    ]
    assert compute_stack_variance(torch.as_tensor(changes)).tolist() == pytest.approx(expected)
    metric = PerturbationStability(over)
    metric(adversarial[:2], clean[:2])
    metric(list(adversarial[2:]), list(clean[2:]))
    assert metric.get_buffer()[:, 0].tolist() == pytest.approx(expected)
    assert metric.aggregate().item() == pytest.approx(np.mean(expected), rel=1e-6)


def _flat(changes: np.ndarray) -> list[np.ndarray]:
    return [change.reshape(len(change), -1) for change in changes]


@pytest.mark.parametrize("rank", [2, 3])
def test_over_images_it_is_numpys_variance_however_they_are_batched(rank: int) -> None:
    clean = torch.rand((7, 2, *(5, 4, 3)[:rank]), generator=torch.Generator().manual_seed(0))
    adversarial = clean + stack(rank, 7)[:, 0] + 3.0  # a mean that is not zero
    changes = adversarial.double().numpy() - clean.double().numpy()
    expected = changes.reshape(7, -1).var(axis=0, ddof=1).mean()
    assert compute_image_variance(torch.as_tensor(changes)).item() == pytest.approx(expected)
    for sizes in ([7], [1] * 7, [3, 4]):
        metric = PerturbationStability("images")
        for one, other in zip(adversarial.split(sizes), clean.split(sizes), strict=True):
            metric(one, other)
        assert metric.aggregate().item() == pytest.approx(expected, rel=1e-9)
    metric.reset()
    metric(list(clean + 0.5), list(clean))
    assert metric.aggregate().item() == pytest.approx(0.0, abs=1e-12)  # the same perturbation everywhere
    assert metric.get_buffer()[:, 0].tolist() == pytest.approx([0.25] * 7, rel=1e-6)
    metric.reset()
    metric(adversarial, clean)
    assert metric.aggregate().item() == pytest.approx(expected, rel=1e-9)


def test_the_three_are_different_claims() -> None:
    """Sign steps along a line: var over t of t * s is s^2 T(T+1)/12; restarts +-; every image the same."""
    step, count = 0.01, 5
    clean = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    iterates = torch.stack([clean + step * t for t in range(1, count + 1)], 1)
    restarts = torch.stack([clean + step, clean - step], 1)
    values = {}
    for over, adversarial in (("iterations", iterates), ("restarts", restarts), ("images", iterates[:, -1])):
        metric = PerturbationStability(over)
        metric(adversarial, clean)
        values[over] = metric.aggregate().item()
    assert values["iterations"] == pytest.approx(step**2 * count * (count + 1) / 12)
    assert values["restarts"] == pytest.approx(2 * step**2)
    assert values["images"] == pytest.approx(0, abs=1e-18)


def test_of_a_real_attack() -> None:
    """The callback's iterates, then five restarts with states of their own, by the definition."""
    task = Task(2, dense=False)
    network, image, target = task.network(), task.images(), task.labels()
    attack = PGD(task.loss(), eps=0.1, steps=4, bounds=(0, 1), random_start=True)
    iterates: list[torch.Tensor] = []
    attack(network, image, target, callback=lambda trial, _: iterates.append(trial.adversarial.detach().clone()))
    runs = [attack(network, image, target, generator=torch.Generator().manual_seed(i)).adversarial for i in range(5)]
    for over, stacked in (("iterations", torch.stack(iterates, 1)), ("restarts", torch.stack(runs, 1))):
        metric = PerturbationStability(over)
        metric(stacked, image)
        deviation = (stacked - stacked.mean(1, keepdim=True)).double()
        expected = deviation.square().sum(1).flatten(1).mean(1) / (stacked.shape[1] - 1)
        assert metric.get_buffer()[:, 0].tolist() == pytest.approx(expected.tolist(), rel=1e-4)
        assert metric.aggregate().item() > 0


def perturbed(engine: SupervisedEvaluator, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"adversarial": batch["image"] + batch["label"].reshape(-1, 1, 1, 1), "clean": batch["image"]}


def test_an_evaluator_logs_it() -> None:
    """Constant perturbations 0, 1, 2 over three images: variance 1."""
    task = Task(2, dense=False)
    metric = IgniteMetricHandler(
        PerturbationStability("images"), output_transform=from_engine(["adversarial", "clean"]), save_details=False
    )
    evaluator = task.evaluator(
        iteration_update=perturbed,
        postprocessing=None,
        key_val_metric={"over": copy.deepcopy(metric)},
        additional_metrics=None,
    )
    for _ in range(2):
        evaluator.run()
        assert evaluator.state.metrics["over"] == pytest.approx(1.0, rel=1e-6)


def test_bad_input_is_refused() -> None:
    clean = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match='over: expected "iterations", "restarts" or "images"; got \'steps\''):
        PerturbationStability("steps")
    with pytest.raises(
        ValueError, match=r"beside clean ones .* over iterations; got \(2, 1, 4, 4\) and \(2, 1, 4, 4\)"
    ):
        PerturbationStability("iterations")(clean, clean)
    with pytest.raises(ValueError, match=r"over images; got \(2, 1, 1, 4, 4\) and \(2, 1, 4, 4\)"):
        PerturbationStability("images")(clean.unsqueeze(1), clean)
    with pytest.raises(ValueError, match="at least two along axis 1"):
        PerturbationStability("restarts")(clean.unsqueeze(1), clean)
    metric = PerturbationStability("images")
    metric(clean[:1], clean[:1])
    with pytest.raises(ValueError, match="at least two images"):
        metric.aggregate()
    with pytest.raises(ValueError, match=r"images of one shape, \(1, 4, 4\); got \(1, 4, 3\)"):
        metric(clean[..., :3], clean[..., :3])
