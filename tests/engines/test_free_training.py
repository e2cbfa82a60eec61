"""`FreeAdversarialTraining`: the paper's algorithm written by hand, and standard training where it must be that."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from evaluators import EPS, Task, seen
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import MetaTensor, list_data_collate
from monai.engines import IterationEvents, SupervisedTrainer
from torch import nn
from trainers import Bfloat16Inferer, CpuScaler, SeedDropout, assert_same_state, optimizer_of, trainer_of

from monai_smia.engines.free_training import FreeAdversarialTraining

TASKS = [Task(2, dense=False, cases=6), Task(2, cases=6), Task(3, cases=6)]
LINF: dict[str, Any] = {"eps": EPS, "bounds": (0.0, 1.0)}


class SeedReplays:
    """Starts the global randomness anew before the dropout of every replay."""

    def __init__(self) -> None:
        self.replay = 0

    def seed(self, *_: Any) -> None:
        self.replay += 1
        torch.manual_seed(self.replay)

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self.seed)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.seed)


def free(network: nn.Module, task: Task, data: Any, **arguments: Any) -> SupervisedTrainer:
    options = {"replays": 3, **LINF, **arguments.pop("options", {})}
    arguments.setdefault("train_handlers", [SeedReplays()])
    return trainer_of(network, data, task.loss(), iteration_update=FreeAdversarialTraining(**options), **arguments)


def by_hand(
    network: nn.Module,
    data: list[dict[str, torch.Tensor]],
    loss: nn.Module,
    replays: int = 3,
    epochs: int = 2,
    predict: Any = lambda network: network,
    scaler: Any = None,
) -> nn.Module:
    """Algorithm 1 of the paper, with the images clamped to [0, 1]."""
    optimizer, seeds = optimizer_of(network), SeedReplays()
    delta = torch.zeros_like(data[0]["image"])
    network.train()
    for _ in range(epochs):
        for batch in data:
            x, y, size = batch["image"], batch["label"], len(batch["image"])
            seeds.seed()
            for _ in range(replays):
                adversarial = (x + delta[:size]).clamp(0, 1).requires_grad_()
                optimizer.zero_grad()
                value = loss(predict(network)(adversarial), y)
                (value if scaler is None else scaler.scale(value)).backward()
                if scaler is None:
                    optimizer.step()
                else:
                    scaler.step(optimizer)
                    scaler.update()
                delta[:size] = (delta[:size] + EPS * adversarial.grad.sign()).clamp(-EPS, EPS)
                seeds.seed()
    return network


def uneven(task: Task) -> list[dict[str, torch.Tensor]]:
    """Batches of four and of two cases: the second one takes and gives the first rows."""
    return task.batches(4)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_two_epochs_give_the_weights_of_the_algorithm(task: Task) -> None:
    network, expected = task.network(), task.network()
    free(network, task, uneven(task)).run()
    by_hand(expected, uneven(task), task.loss())
    assert_same_state(network, expected, task.network())


def test_scaler() -> None:
    task, scaling, theirs = TASKS[1], CpuScaler(), CpuScaler().scaler
    network, expected = task.network(), task.network()
    free(network, task, uneven(task), train_handlers=[SeedReplays(), scaling], amp=True).run()
    by_hand(expected, uneven(task), task.loss(), scaler=theirs)
    assert_same_state(network, expected, task.network())
    assert scaling.scaler.state_dict() == theirs.state_dict()


def test_autocast_metadata_and_decollation() -> None:
    task = TASKS[1]
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    items = [
        {"image": MetaTensor(image, affine=affine), "label": label}
        for image, label in zip(task.images(), task.labels(), strict=True)
    ]
    data = [list_data_collate(items[:4]), list_data_collate(items[4:])]
    network, expected = task.network(), task.network()
    trainer = free(network, task, data, inferer=Bfloat16Inferer(), postprocessing=task.postprocessing())
    found = seen(trainer, Events.ITERATION_COMPLETED, lambda e: (e.state.batch, e.state.output))
    trainer.run()
    by_hand(expected, uneven(task), task.loss(), predict=lambda model: lambda x: Bfloat16Inferer()(x, model))
    assert_same_state(network, expected, task.network())
    clean = [list(batch["image"]) for batch in uneven(task)] * 2
    for (batch, output), images in zip(found, clean, strict=True):
        assert len(batch) == len(output) == len(images)
        for item, result, image in zip(batch, output, images, strict=True):
            assert torch.equal(result["image"].affine.diagonal()[:2], torch.tensor([2.0, 3.0]).double())
            assert result["pred"].shape == (3, 9, 7)  # one-hot, by the postprocessing
            change = torch.as_tensor(item["image"]) - image
            assert 0 < float(change.abs().max()) <= EPS * (1 + 1e-6)
            assert not item["image"].requires_grad


@pytest.mark.parametrize("task", TASKS[:2], ids=str)
def test_one_replay_without_budget_is_standard_training(task: Task) -> None:
    network, plain = task.network(), task.network()
    options = {"eps": 0.0, "replays": 1}
    free(network, task, uneven(task), options=options, train_handlers=[SeedDropout()]).run()
    trainer_of(plain, uneven(task), task.loss(), train_handlers=[SeedDropout()]).run()
    assert_same_state(network, plain, task.network())


def test_replays_without_budget_are_that_many_standard_steps() -> None:
    task = TASKS[1]
    network, plain = task.network(), task.network()
    free(network, task, task.batches(2), options={"eps": 0.0, "replays": 2}, max_epochs=1).run()
    twice = [batch for batch in task.batches(2) for _ in range(2)]

    class Seeds(SeedReplays):  # the algorithm draws once more at the start of a batch
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.ITERATION_STARTED, self.next)

        def next(self, engine: Any) -> None:
            torch.manual_seed(engine.state.iteration + (engine.state.iteration - 1) // 2)

    trainer_of(plain, twice, task.loss(), train_handlers=[Seeds()], max_epochs=1).run()
    assert_same_state(network, plain, task.network())


def test_the_perturbation_is_carried_between_batches_and_starts_anew_for_another_size() -> None:
    task = TASKS[0]
    update = FreeAdversarialTraining(eps=EPS, replays=1)
    source = torch.Generator().manual_seed(1)
    small, large = (torch.rand(2, 1, height, 7, generator=source) for height in (9, 11))
    label = torch.tensor([0, 1])
    data = [{"image": image, "label": label} for image in (small, small, large)]
    trainer = trainer_of(task.network(), data, task.loss(), iteration_update=update, max_epochs=1, decollate=False)
    found = seen(
        trainer, Events.ITERATION_COMPLETED, lambda e: (e.state.batch["image"].clone(), update.perturbation.clone())
    )
    trainer.run()
    (first, after_first), (second, after_second), (third, after_third) = found
    assert torch.equal(first, small)
    assert torch.equal(second, small + after_first)
    assert torch.equal(third, large)
    assert float(after_first.abs().max()) == pytest.approx(EPS)
    assert not torch.equal(after_first, after_second)
    assert after_third.shape == large.shape
    other = FreeAdversarialTraining(eps=EPS, replays=1)
    other.load_state_dict(update.state_dict())
    assert torch.equal(other.perturbation, after_third)


def test_budgets_per_channel() -> None:
    task, radii = TASKS[0], torch.tensor([0.0, 0.1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network, image = nn.Sequential(nn.Conv2d(2, 1, 1), task.network()), torch.rand(2, 2, 9, 7)
    data = [{"image": image, "label": torch.tensor([0, 1])}] * 2
    update = FreeAdversarialTraining(eps=radii, replays=2)
    trainer_of(network, data, task.loss(), iteration_update=update).run()
    torch.testing.assert_close(update.perturbation.abs().amax((0, 2, 3)), radii)


def test_batches_that_are_pairs() -> None:
    task = TASKS[0]
    network, expected = task.network(), task.network()
    free(network, task, [(batch["image"], batch["label"]) for batch in uneven(task)]).run()
    by_hand(expected, uneven(task), task.loss())
    assert_same_state(network, expected, task.network())


def test_from_json() -> None:
    task, network, expected = TASKS[0], TASKS[0].network(), TASKS[0].network()
    config = {
        "_target_": "monai_smia.engines.free_training.FreeAdversarialTraining",
        "eps": EPS,
        "replays": 3,
        "bounds": [0, 1],
    }
    update = ConfigParser({"update": json.loads(json.dumps(config))}).get_parsed_content("update")
    trainer_of(network, uneven(task), task.loss(), iteration_update=update, train_handlers=[SeedReplays()]).run()
    by_hand(expected, uneven(task), task.loss())
    assert_same_state(network, expected, task.network())


def test_errors() -> None:
    task = TASKS[0]
    with pytest.raises(ValueError, match="replays: expected a whole number >= 1; got 0"):
        FreeAdversarialTraining(eps=EPS, replays=0)
    with pytest.raises(ValueError, match="eps: expected finite numbers >= 0"):
        FreeAdversarialTraining(eps=-1.0)
    with pytest.raises(ValueError, match="accumulation_steps: every replay takes a step of the optimizer"):
        free(task.network(), task, uneven(task), accumulation_steps=2).run()
    with pytest.raises(ValueError, match="bounds: the image leaves"):
        free(task.network(), task, uneven(task), options={"bounds": (0.4, 0.6)}).run()
