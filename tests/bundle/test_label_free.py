"""Without labels an evaluation under attack measures how far a network leaves its own clean decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.losses import DiceCELoss
from torch import nn

from monai_smia.attacks import BIM
from monai_smia.bundle import evaluate_under_attack

EPS = 0.05


def images(rank: int) -> torch.Tensor:
    return torch.rand(3, 1, *(12, 10, 8)[:rank], generator=torch.Generator().manual_seed(rank))


def network(rank: int, channels: int, dense: bool) -> nn.Module:
    torch.manual_seed(7)
    conv = (nn.Conv2d, nn.Conv3d)[rank - 2]
    if dense:
        layers = nn.Sequential(conv(1, 4, 3, padding=1), nn.ReLU(), conv(4, channels, 1))
        with torch.no_grad():  # so that every class is predicted somewhere
            output = layers(images(rank)).movedim(1, 0).flatten(1)
            layers[2].bias -= output.median(1).values
        return layers
    return nn.Sequential(nn.Flatten(), nn.Linear(images(rank)[0].numel(), channels))


def run(rank: int, model: nn.Module, loss: Any, folder: Path) -> dict[str, dict[str, float]]:
    data = DataLoader(Dataset([{"image": image} for image in images(rank)]), batch_size=2)
    evaluator = SupervisedEvaluator(device=torch.device("cpu"), val_data_loader=data, network=model)
    outcome = evaluate_under_attack(
        evaluator, "BIM", f"{EPS}net", steps=3, loss_function=loss, bounds=(0, 1), out=folder, progress=False
    )
    assert outcome.failures == ()
    metrics: dict[str, dict[str, float]] = outcome.report.metrics
    return metrics


def dice(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean over cases of the mean over channels; nothing and nothing agree."""
    scores = []
    for p, y in zip(one, other, strict=True):
        sizes = [(float((a & b).sum()), float(a.sum() + b.sum())) for a, b in zip(p, y, strict=True)]
        own = [2 * both / size if size else 1.0 for both, size in sizes]
        scores.append(sum(own) / len(own))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_dense_heads(tmp_path: Path, rank: int, head: str) -> None:
    model, x = network(rank, 3 if head == "softmax" else 1, dense=True), images(rank)
    loss = DiceCELoss(to_onehot_y=True, softmax=True) if head == "softmax" else DiceCELoss(sigmoid=True)

    def decided(image: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            output = model.eval()(image)
        if head == "sigmoid":
            return output > 0
        return torch.stack([output.argmax(1) == k for k in (1, 2)], 1)

    with torch.no_grad():
        clean = model.eval()(x)
    label = (clean > 0).float() if head == "sigmoid" else clean.argmax(1, keepdim=True)
    adversarial = BIM(loss, eps=EPS, steps=3, bounds=(0, 1))(model, x, label).adversarial
    metrics = run(rank, model, loss, tmp_path / "out")
    name = "dice_with_clean_prediction"
    assert metrics["clean"] == {name: 1.0}
    (attacked,) = (values for run, values in metrics.items() if run != "clean")
    assert attacked[name] == pytest.approx(dice(decided(adversarial), decided(x)), abs=1e-6)
    assert attacked[name] < 1


@pytest.mark.parametrize("rank", [2, 3])
def test_classifiers(tmp_path: Path, rank: int) -> None:
    model, x, loss = network(rank, 4, dense=False), images(rank), nn.CrossEntropyLoss()
    with torch.no_grad():
        label = model(x).argmax(1)
        adversarial = BIM(loss, eps=EPS, steps=3, bounds=(0, 1))(model, x, label).adversarial
        same = float((model(adversarial).argmax(1) == label).float().mean())
    metrics = run(rank, model, loss, tmp_path / "out")
    (attacked,) = (values for run, values in metrics.items() if run != "clean")
    assert metrics["clean"] == {"same_decision_as_clean": 1.0}
    assert attacked["same_decision_as_clean"] == pytest.approx(same)
