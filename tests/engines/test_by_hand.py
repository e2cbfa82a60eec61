"""The whole of an evaluation under attack against at most 40 lines of plain PyTorch."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from evaluators import BOUNDS, EPS, Task
from monai.data import DataLoader, Dataset

from monai_smia.attacks import PGD
from monai_smia.engines import AttackEvaluator, evaluate_robustness

STEPS = 4


def by_hand(network, batches, classes, eps, steps, low, high, seed):
    """Dice of the foreground classes, clean and under PGD on Dice plus cross-entropy; plain PyTorch."""
    network.eval()
    scores, losses = {"clean": [], "pgd": []}, {"clean": [], "pgd": []}
    for i, (image, label) in enumerate(batches):
        source = torch.Generator().manual_seed(seed + (2**31 - 1) * i)
        truth = torch.stack([label[:, 0] == k for k in range(classes)], 1).to(image)
        space = tuple(range(2, image.ndim))

        def loss_of(x, truth=truth, space=space):
            log_p = torch.log_softmax(network(x), 1)
            p = log_p.exp()
            dice = (2 * (p * truth).sum(space) + 1e-5) / ((p + truth).sum(space) + 1e-5)
            return (1 - dice).mean(1) - (log_p * truth).sum(1).flatten(1).mean(1)

        start = (2 * torch.rand(image.shape, generator=source, dtype=image.dtype) - 1) * eps
        adversarial = (image + start).clamp(low, high)
        for _ in range(steps):
            x = adversarial.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss_of(x).sum(), x)
            adversarial = adversarial + 2.5 * eps / steps * gradient.sign()
            adversarial = (image + (adversarial - image).clamp(-eps, eps)).clamp(low, high)
        for name, x in (("clean", image), ("pgd", adversarial)):
            with torch.no_grad():
                hard = network(x).argmax(1)
                losses[name] += loss_of(x).tolist()
            for k in range(len(image)):
                found = [
                    2 * ((hard[k] == c) & (label[k, 0] == c)).sum() / ((hard[k] == c).sum() + (label[k, 0] == c).sum())
                    for c in range(1, classes)
                    if bool((label[k, 0] == c).any())
                ]
                scores[name].append(float(sum(found) / len(found)))
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    return means, scores, losses


@pytest.mark.parametrize("seed", [0, 4])
@pytest.mark.parametrize("rank", [2, 3])
def test_both_ways_give_the_numbers_by_hand(rank: int, seed: int) -> None:
    task = Task(rank, cases=5)
    images, labels = task.images().double(), task.labels()
    pairs = list(zip(images.split(2), labels.split(2), strict=True))
    # an engine's attacks draw from its seed, its epoch (the first) and the number of the batch
    means, scores, losses = by_hand(task.network().double(), pairs, 3, EPS, STEPS, *BOUNDS, seed + 1)

    def arguments() -> dict[str, Any]:
        items = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
        return {"val_data_loader": DataLoader(Dataset(items), batch_size=2), "network": task.network().double()}

    attacks = {"pgd": PGD(task.loss(), eps=EPS, steps=STEPS, bounds=BOUNDS)}
    one = task.evaluator(AttackEvaluator, attacks=attacks, seed=seed, progress=False, **arguments())
    one.run()
    many = evaluate_robustness(task.evaluator(**arguments()), attacks, seed=seed, progress=False)
    assert one.state.metrics["val_dice"] == pytest.approx(means["clean"], abs=1e-6)
    assert one.state.metrics["pgd_val_dice"] == pytest.approx(means["pgd"], abs=1e-6)
    for report in (one.report(), many):
        for run in ("clean", "pgd"):
            assert report.metrics[run]["val_dice"] == pytest.approx(means[run], abs=1e-6)
            rows = [row for row in report.cases if row["attack"] == run]
            assert [row["val_dice"] for row in rows] == pytest.approx(scores[run], abs=1e-6)
        rows = [row for row in report.cases if row["attack"] == "pgd"]
        assert [row["clean_loss"] for row in rows] == pytest.approx(losses["clean"], abs=1e-6)
        assert [row["loss"] for row in rows] == pytest.approx(losses["pgd"], abs=1e-6)
    assert means["pgd"] < means["clean"] - 0.05


def test_the_comparison_is_short_and_plain() -> None:
    source = inspect.getsource(by_hand)
    assert len(source.splitlines()) <= 40
    assert "monai" not in source
