"""Label-free evaluation of several outputs, of several decisions at once, of absent classes, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evaluators
import networks
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer
from monai.transforms import Activationsd, Compose, SaveImaged
from torch import nn

from monai_smia.bundle import evaluate_under_attack
from monai_smia.bundle.under_attack import Outcome

EPS = 0.1
DICE, AGREEMENT = "dice_with_clean_prediction", "same_decision_as_clean"


@dataclass
class Watched(Inferer):
    """Keeps the images that were given to the network; the last ones are the adversarial ones that are judged."""

    images: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        self.images.append(torch.as_tensor(inputs).detach().clone())
        return network(inputs)


class Levels(nn.Module):
    """Deep supervision that also runs in eval mode: the output, after one of half its resolution."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        output = self.network(image)
        return [nn.functional.avg_pool2d(output, 2), output]


def free(task: evaluators.Task, activation: str = "softmax", batch_size: int = 3, **arguments: Any) -> Any:
    """An evaluator of the task's images without labels; `arguments` replace its parts."""
    items = [{"image": item["image"]} for item in task.items()]
    given = {
        "val_data_loader": DataLoader(Dataset(items), batch_size=batch_size),
        "network": task.network(),
        "inferer": Watched(),
        "postprocessing": Compose([Activationsd("pred", **{activation: True})]),
        **arguments,
    }
    return SupervisedEvaluator(device=evaluators.CPU, **given)


def attacked(evaluator: Any, out: Path, **arguments: Any) -> Outcome:
    given = {"steps": 3, "bounds": evaluators.BOUNDS, "random_start": False, "progress": False, **arguments}
    given["diagnose"] = False  # the last image that the inferer sees is the attack's
    return evaluate_under_attack(evaluator, "PGD", f"{EPS}net", out=out, **given)


def values(outcome: Outcome, metric: str) -> tuple[float, float]:
    """The metric without an attack and under it."""
    (name,) = set(outcome.report.metrics) - {"clean"}
    return outcome.report.metrics["clean"][metric], outcome.report.metrics[name][metric]


def logits(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = network.eval()(torch.as_tensor(images))
    return output


def dice(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean over cases and foreground classes of class indices ``B...``; two empty masks agree."""
    found = []
    for a, b in zip(one, other, strict=True):
        for k in range(1, networks.CLASSES):
            size = int((a == k).sum() + (b == k).sum())
            found.append(2 * int(((a == k) & (b == k)).sum()) / size if size else 1.0)
    return sum(found) / len(found)


@pytest.mark.parametrize("rank", [2, 3])
def test_several_decisions_at_once_agree_only_if_all_do(tmp_path: Path, rank: int) -> None:
    task = evaluators.Task(rank, dense=False)
    evaluator = free(task, "sigmoid")
    clean, under = values(attacked(evaluator, tmp_path / "out"), AGREEMENT)
    judged = evaluator.inferer.images[-1]
    assert 0 < float((judged - task.images()).abs().max()) <= EPS + 1e-6
    same = (logits(task.network(), task.images()) > 0) == (logits(task.network(), judged) > 0)
    assert (clean, under) == (1.0, pytest.approx(float(same.all(1).double().mean())))
    assert under < 1


def test_of_several_resolutions_the_highest_decides(tmp_path: Path) -> None:
    task = evaluators.Task()
    evaluator = free(task, network=Levels(task.network()), postprocessing=None)
    clean, under = values(attacked(evaluator, tmp_path / "out"), DICE)
    decided = [logits(task.network(), x).argmax(1) for x in (task.images(), evaluator.inferer.images[-1])]
    assert (clean, under) == (1.0, pytest.approx(dice(*decided), abs=1e-6))
    assert under < 1


def test_a_class_that_is_nowhere_agrees_with_itself(tmp_path: Path) -> None:
    task, network = evaluators.Task(), evaluators.Task().network()
    with torch.no_grad():
        network[-1].bias[2] = -100.0
    evaluator = free(task, network=network)
    clean, under = values(attacked(evaluator, tmp_path / "out"), DICE)
    decided = [logits(network, x).argmax(1) for x in (task.images(), evaluator.inferer.images[-1])]
    assert not (decided[0] == 2).any()
    assert (clean, under) == (1.0, pytest.approx(dice(*decided), abs=1e-6))


def test_case_by_case_is_the_same_as_all_in_one_batch(tmp_path: Path) -> None:
    task = evaluators.Task()
    whole = values(attacked(free(task), tmp_path / "whole"), DICE)
    assert values(attacked(free(task, batch_size=1), tmp_path / "single"), DICE) == pytest.approx(whole, abs=1e-6)


def test_labels_that_are_no_tensors_are_none(tmp_path: Path) -> None:
    """MONAI's evaluators drop a label that is a list, which one-hot lists in a data list become."""
    task = evaluators.Task(dense=False)
    items = [{"image": item["image"], "label": [1, 0, 0]} for item in task.items()]
    loader = DataLoader(Dataset(items), batch_size=3)
    assert values(attacked(free(task, val_data_loader=loader), tmp_path / "out"), AGREEMENT)[0] == 1.0


def test_nothing_is_saved_and_the_network_is_as_it_was(tmp_path: Path) -> None:
    save = SaveImaged("pred", output_dir=tmp_path / "saved", print_log=False)
    evaluator = free(evaluators.Task(), postprocessing=Compose([Activationsd("pred", softmax=True), save]))
    before = {name: value.clone() for name, value in evaluator.network.state_dict().items()}
    attacked(evaluator, tmp_path / "out")
    assert not (tmp_path / "saved").exists()
    assert all(torch.equal(value, before[name]) for name, value in evaluator.network.state_dict().items())


def test_a_regression_without_labels_is_refused(tmp_path: Path) -> None:
    evaluator = free(evaluators.Task(dense=False), postprocessing=None)
    with pytest.raises(ValueError, match="label_key: a regression without labels has no clean decision"):
        attacked(evaluator, tmp_path / "out", loss_function=nn.L1Loss(), tolerance=1.0)
