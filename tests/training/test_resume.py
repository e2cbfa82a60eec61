"""Adversarial training stopped and resumed from a checkpoint goes on to the bit where it would have gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluators import EPS, Task
from monai.handlers import CheckpointLoader, CheckpointSaver
from trainers import SeedDropout, assert_same_state, trainer_of

from monai_smia.attacks import FGSM, PGD
from monai_smia.attacks.tpgd import TPGD
from monai_smia.engines.free_training import FreeAdversarialTraining
from monai_smia.engines.robust_trainer import RobustTrainer
from monai_smia.handlers import AttackHandler
from monai_smia.losses import TRADESLoss

TASK = Task(2, cases=4)
LINF: dict[str, Any] = {"eps": EPS, "bounds": (0.0, 1.0)}


def handled(attack: Any, **options: Any) -> Callable[..., tuple[Any, dict[str, Any]]]:
    def make(network: Any, handlers: list[Any], epochs: int) -> tuple[Any, dict[str, Any]]:
        every = [SeedDropout(), AttackHandler(attack, **options), *handlers]
        return trainer_of(network, TASK.batches(2), TASK.loss(), train_handlers=every, max_epochs=epochs), {}

    return make


def trades(network: Any, handlers: list[Any], epochs: int) -> tuple[Any, dict[str, Any]]:
    trainer = trainer_of(
        network,
        TASK.batches(2),
        TRADESLoss(TASK.loss()),
        RobustTrainer,
        attack=TPGD(TASK.loss(), steps=2, **LINF),
        train_handlers=[SeedDropout(), *handlers],
        max_epochs=epochs,
    )
    return trainer, {}


def free(network: Any, handlers: list[Any], epochs: int) -> tuple[Any, dict[str, Any]]:
    update = FreeAdversarialTraining(replays=2, **LINF)
    trainer = trainer_of(
        network,
        TASK.batches(2),
        TASK.loss(),
        train_handlers=[SeedDropout(), *handlers],
        max_epochs=epochs,
        iteration_update=update,
    )
    return trainer, {"free": update}


METHODS = {
    "PGD-AT": handled(PGD(TASK.loss(), steps=2, **LINF), probability=0.7),
    "Fast-AT": handled(FGSM(TASK.loss(), step_size=1.25 * EPS, random_start=True, **LINF)),
    "TRADES": trades,
    "Free-AT": free,
}


@pytest.mark.parametrize("method", METHODS)
def test_two_epochs_and_two_more_are_four(method: str, tmp_path: Path) -> None:
    make = METHODS[method]
    whole = TASK.network()
    through, parts = make(whole, [], 4)
    through.run()

    def with_parts(network: Any, trainer: Any, parts: dict[str, Any]) -> dict[str, Any]:
        return {"network": network, "optimizer": trainer.optimizer, "trainer": trainer, **parts}

    first = TASK.network()
    stopped, parts = make(first, [], 2)
    saver = CheckpointSaver(str(tmp_path), with_parts(first, stopped, parts), save_final=True, final_filename="two.pt")
    saver.attach(stopped)
    stopped.run()

    torch.manual_seed(12345)  # nothing of the first run is left but its file
    second = TASK.network()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.fill_(torch.nan)
    resumed, parts = make(second, [], 4)
    CheckpointLoader(str(tmp_path / "two.pt"), with_parts(second, resumed, parts)).attach(resumed)
    resumed.run()
    assert resumed.state.iteration == through.state.iteration == 8
    assert_same_state(second, whole, TASK.network())
    assert not torch.equal(first[0].weight, whole[0].weight)
