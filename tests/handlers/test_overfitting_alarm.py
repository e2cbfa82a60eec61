"""`OverfittingAlarm`: networks of one voxel for which every loss is known, and trainings that must not notice it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from evaluators import Task, seen
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from torch import nn
from trainers import trainer_of

from monai_smia.attacks import BIM, FGSM, PGD
from monai_smia.handlers import AttackHandler
from monai_smia.handlers.overfitting_alarm import OverfittingAlarm

EPS, MIDDLE = 0.1, 0.5
CROSS_ENTROPY = nn.CrossEntropyLoss()


class OneVoxel(nn.Module):
    """Logits ``(0, margin(x - 1/2))``, of images whose voxels are all alike; the label is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def margin(self, distance: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        margin = self.scale * self.margin(image.flatten(1).mean(1) - MIDDLE)
        return torch.stack((torch.zeros_like(margin), margin), 1)


class Masked(OneVoxel):
    """Right at the clean image and one whole step of eps away from it, wrong in between."""

    def margin(self, distance: torch.Tensor) -> torch.Tensor:
        return 1 - 2 * torch.sin(math.pi * distance / EPS)


class Linear(OneVoxel):
    """One step is the strongest attack there is, and it does not succeed."""

    def margin(self, distance: torch.Tensor) -> torch.Tensor:
        return 1 - 5 * distance


def loss_of(margin: float) -> float:
    return math.log1p(math.exp(-margin))


def batches(count: int = 2, size: int = 2) -> list[dict[str, torch.Tensor]]:
    return [
        {"image": torch.full((size, 1, 2, 2), MIDDLE), "label": torch.ones(size, dtype=torch.long)}
        for _ in range(count)
    ]


def fast(**options: Any) -> AttackHandler:
    return AttackHandler(FGSM(CROSS_ENTROPY, eps=EPS), **options)


def iterated() -> BIM:
    return BIM(CROSS_ENTROPY, eps=EPS, steps=9, step_size=EPS / 4)


def run(network: nn.Module, alarm: OverfittingAlarm, epochs: int = 3, loader: Any = None) -> Any:
    """Train with a rate of zero."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    trainer = trainer_of(
        network,
        batches() if loader is None else loader,
        CROSS_ENTROPY,
        train_handlers=[alarm.handler, alarm],
        optimizer=optimizer,
        max_epochs=epochs,
    )
    trainer.run()
    return trainer


def test_it_fires_where_one_step_is_masked(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trainer = run(Masked(), OverfittingAlarm(fast(), iterated()))
    expected = {"training": 0.0, "probe": 1.0, "gap": 1.0, "alarm": 1.0}
    assert trainer.state.metrics == {f"overfitting_{name}": value for name, value in expected.items()}
    assert trainer.state.epoch == 3, "it warns, and does not stop unless told to"
    messages = [record.getMessage() for record in caplog.records if "catastrophic overfitting" in record.getMessage()]
    assert [message.split(" ")[0] for message in messages] == ["Epoch[1]", "Epoch[2]", "Epoch[3]"]
    assert "success is 0 under the attack trained with and 1 under the probe" in messages[0]


@pytest.mark.parametrize("measure", ["success", "loss"])
def test_it_is_silent_where_one_step_is_the_strongest(measure: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trainer = run(Linear(), OverfittingAlarm(fast(), iterated(), measure=measure, threshold=1e-4, terminate=True))
    assert trainer.state.metrics["overfitting_alarm"] == 0
    assert trainer.state.metrics["overfitting_gap"] == pytest.approx(0, abs=1e-5)
    assert trainer.state.epoch == 3
    assert "overfitting" not in caplog.text


def test_losses_in_closed_form() -> None:
    trainer = run(Masked(), OverfittingAlarm(fast(), iterated(), measure="loss"))
    metrics = trainer.state.metrics
    assert metrics["overfitting_training"] == pytest.approx(loss_of(1.0), rel=1e-5)
    inside = loss_of(1 - 2 * math.sin(math.pi / 4))  # the peak is met and left again: one step beside it
    assert metrics["overfitting_probe"] == pytest.approx(inside, rel=1e-5)
    assert metrics["overfitting_gap"] == pytest.approx(inside / loss_of(1.0) - 1, rel=1e-5)
    assert metrics["overfitting_alarm"] == 1


@pytest.mark.parametrize("above", [False, True])
def test_threshold(above: bool) -> None:
    gap = loss_of(1 - 2 * math.sin(math.pi / 4)) / loss_of(1.0) - 1
    threshold = gap + (1e-3 if above else -1e-3)
    alarm = OverfittingAlarm(fast(), iterated(), measure="loss", threshold=threshold)
    assert run(Masked(), alarm, epochs=1).state.metrics["overfitting_alarm"] == (0 if above else 1)


def test_terminate() -> None:
    assert run(Masked(), OverfittingAlarm(fast(), iterated(), terminate=True)).state.epoch == 1


def test_default_probe_is_ten_steps_of_the_same_budget() -> None:
    attack = FGSM(CROSS_ENTROPY, eps=EPS, bounds=(0.0, 1.0), norm=2, step_size=1.0, random_start=True)
    probe = OverfittingAlarm(AttackHandler(attack)).probe
    assert repr(probe) == repr(PGD(CROSS_ENTROPY, eps=EPS, bounds=(0.0, 1.0), norm=2))
    assert run(Masked(), OverfittingAlarm(fast())).state.metrics["overfitting_alarm"] == 1


def test_both_attacks_follow_the_schedule_and_wait_for_its_first_epoch() -> None:
    schedule = {2: 0.02, 3: 0.04}.__getitem__
    handler = fast(eps_schedule=schedule, start_epoch=2)
    alarm = OverfittingAlarm(handler, BIM(CROSS_ENTROPY, eps=1.0, steps=2), measure="loss")
    network = Linear()
    trainer = trainer_of(
        network,
        batches(),
        CROSS_ENTROPY,
        train_handlers=[handler, alarm],
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        max_epochs=3,
    )
    found = seen(trainer, Events.EPOCH_COMPLETED, lambda e: dict(e.state.metrics))
    trainer.run()
    assert found[0] == {}
    for metrics, eps in zip(found[1:], (0.02, 0.04), strict=True):
        assert metrics["overfitting_training"] == pytest.approx(loss_of(1 - 5 * eps), rel=1e-5)
        assert metrics["overfitting_probe"] == pytest.approx(loss_of(1 - 5 * eps), rel=1e-5)


@pytest.mark.parametrize("own", [True, False], ids=["own-batches", "a-loader"])
def test_batches(own: bool) -> None:
    """The first ones of the epoch, or of the loader given: clean, and as many as asked for."""
    data = batches(4)
    labels = (1, 1, 0, 1)
    for batch, label in zip(data, labels, strict=True):
        batch["label"].fill_(label)  # the third batch is wrong by itself, so both attacks succeed on it
    for count, share in ((1, 0.0), (2, 0.0), (3, 1 / 3), (4, 1 / 4)):
        alarm = OverfittingAlarm(fast(), iterated(), batches=count, loader=None if own else data)
        trainer = run(Linear(), alarm, epochs=1, loader=data if own else batches(1))
        assert trainer.state.metrics["overfitting_training"] == pytest.approx(share)
        assert trainer.state.metrics["overfitting_probe"] == pytest.approx(share)


def test_own_batches_are_those_of_the_epoch() -> None:
    class OtherLabels:
        """Right in the first epoch, wrong in the second."""

        label = 2

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            self.label -= 1
            return iter([{**batches(1)[0], "label": torch.full((2,), self.label)}])

    network, handler = Linear(), fast()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    handlers = [handler, OverfittingAlarm(handler, iterated())]
    trainer = trainer_of(network, OtherLabels(), CROSS_ENTROPY, train_handlers=handlers, optimizer=optimizer)
    shares = seen(trainer, Events.EPOCH_COMPLETED, lambda e: e.state.metrics["overfitting_probe"])
    trainer.run()
    assert shares == [0.0, 1.0]


@pytest.mark.parametrize("own", [True, False], ids=["own-batches", "a-loader"])
def test_the_training_does_not_notice_it(own: bool) -> None:
    """Shuffled data, dropout, BatchNorm: weights, modes and random states are those of a training without it."""
    task = Task(2, cases=6)

    def loader() -> DataLoader:
        items = [{"image": image, "label": label} for image, label in zip(task.images(), task.labels(), strict=True)]
        return DataLoader(Dataset(items), batch_size=2, shuffle=True)

    def train(probed: bool) -> tuple[nn.Module, torch.Tensor, list[Any], list[Any]]:
        torch.manual_seed(5)
        network = task.network()
        handler = AttackHandler(FGSM(task.loss(), eps=0.1, step_size=0.125, random_start=True))
        trainer = trainer_of(network, loader(), task.loss(), train_handlers=[handler])
        look = lambda e: (e.state.batch, e.state.output, e.state.attack_result, [m.training for m in network.modules()])  # noqa: E731
        before = seen(trainer, Events.EPOCH_COMPLETED, look)
        if probed:
            OverfittingAlarm(handler, batches=2, loader=None if own else loader()).attach(trainer)
        after = seen(trainer, Events.EPOCH_COMPLETED, look)
        trainer.run()
        assert ("overfitting_gap" in trainer.state.metrics) is probed
        return network, torch.get_rng_state(), before, after

    with torch.random.fork_rng(devices=[]):
        (plain, state, *_), (probed, probed_state, before, after) = train(False), train(True)
    assert torch.equal(state, probed_state)
    for name, value in plain.state_dict().items():
        assert torch.equal(probed.state_dict()[name], value), name
    for ours, theirs in zip(plain.parameters(), probed.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    for first, second in zip(before, after, strict=True):
        assert all(a is b for a, b in zip(first[:3], second[:3], strict=True))
        assert first[3] == second[3]


def test_errors() -> None:
    with pytest.raises(TypeError, match="handler: expected the AttackHandler"):
        OverfittingAlarm(iterated())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="probe: expected an Attack; got str"):
        OverfittingAlarm(fast(), "pgd")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="threshold: expected a number or None; got 'high'"):
        OverfittingAlarm(fast(), threshold="high")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batches: expected a whole number >= 1; got 0"):
        OverfittingAlarm(fast(), batches=0)
    with pytest.raises(ValueError, match="measure: expected one of 'success', 'loss'"):
        OverfittingAlarm(fast(), measure="accuracy")
    with pytest.raises(ValueError, match="loader: expected at least one batch"):
        run(Linear(), OverfittingAlarm(fast(), loader=[]), epochs=1)
