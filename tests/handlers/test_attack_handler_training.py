"""`AttackHandler` in a trainer: exactly the adversarial training that plain torch would do by hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from evaluators import CPU, EPS, Task, generator, images_of, seen
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn

from monai_smia.attacks import FGSM
from monai_smia.handlers import AttackHandler


def trainer(network: nn.Module, loader: Any, loss: nn.Module, rate: float, epochs: int = 1, **arguments: Any) -> Any:
    return SupervisedTrainer(
        device=CPU,
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9),
        loss_function=loss,
        **arguments,
    )


class SeedDropout:
    """Starts the global randomness anew before every iteration; attached before the attack, which must not use it."""

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, lambda e: torch.manual_seed(100 + e.state.iteration))


def train_by_hand(task: Task, network: nn.Module, attack: Any, rate: float, accumulate: int) -> None:
    """One epoch in plain torch."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    source, loss = generator(), task.loss()
    for i, batch in enumerate(task.batches(2), start=1):
        adversarial = attack(network, batch["image"], batch["label"], generator=source).adversarial
        torch.manual_seed(100 + i)
        network.train()
        if (i - 1) % accumulate == 0:
            optimizer.zero_grad()
        (loss(network(adversarial), batch["label"]) / accumulate).backward()
        if i % accumulate == 0:
            optimizer.step()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("task", [Task(2, cases=4), Task(3, cases=4), Task(2, dense=False, cases=4)], ids=str)
def test_an_epoch_gives_the_weights_of_a_handwritten_one(task: Task, accumulate: int) -> None:
    arguments = {}
    if accumulate > 1:
        if "accumulation_steps" not in inspect.signature(SupervisedTrainer.__init__).parameters:
            pytest.skip("this MONAI does not accumulate gradients")
        arguments["accumulation_steps"] = accumulate
    attack, network, expected = task.attacks()["pgd"], task.network(), task.network()
    found = {name: value.clone() for name, value in network.state_dict().items()}
    handlers = [SeedDropout(), AttackHandler(attack)]
    trainer(network, task.batches(2), task.loss(), 0.1, train_handlers=handlers, **arguments).run()
    train_by_hand(task, expected, attack, 0.1, accumulate)
    for name, value in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
        # a bias before BatchNorm has no slope but rounding
        assert name == "0.bias" or not torch.equal(value, found[name]), name
    for ours, by_hand in zip(network.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours.grad, by_hand.grad)
    # the two training forwards and none of the attack's; the frozen BatchNorm is thawed by the trainer itself
    assert int(network[1].num_batches_tracked - found["1.num_batches_tracked"]) == 2


def test_accumulated_gradients_are_not_touched() -> None:
    task = Task(cases=4)
    network = task.network()
    engine = trainer(network, task.batches(2), task.loss(), 0.1)
    handler = AttackHandler(task.attacks()["pgd"])
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    engine.state.epoch, engine.state.batch = 1, task.batches(2)[0]
    handler.reseed(engine)
    handler(engine)
    assert all(bool((parameter.grad == 1).all()) for parameter in network.parameters())
    assert not torch.equal(engine.state.batch["image"], engine.state.batch["image_clean"])


def changes(handler: AttackHandler, epochs: int, task: Task) -> list[torch.Tensor]:
    """Every batch's change, epoch after epoch, of a network that learns nothing."""
    engine = trainer(task.network(), task.batches(3), task.loss(), 0.0, epochs, train_handlers=[handler])
    (clean,) = task.batches(3)
    images = images_of(engine)
    engine.run()
    return [image - clean["image"] for image in images]


def largest(change: torch.Tensor) -> float:
    return float(change.abs().max())


def test_eps_schedule_is_the_effective_eps_of_each_epoch() -> None:
    task, asked = Task(), []

    def schedule(epoch: int) -> float:
        asked.append(epoch)
        return 0.02 * epoch

    handler = AttackHandler(FGSM(task.loss(), eps=EPS), eps_schedule=schedule)
    found = [largest(change) for change in changes(handler, 3, task)]
    assert found == pytest.approx([0.02, 0.04, 0.06], abs=1e-6)
    assert asked == [1, 2, 3]
    assert handler.attack.eps == EPS


def test_start_epoch() -> None:
    task = Task()
    found = changes(AttackHandler(FGSM(task.loss(), eps=EPS), start_epoch=3), 4, task)
    assert [largest(change) for change in found] == pytest.approx([0, 0, EPS, EPS], abs=1e-6)
    assert torch.equal(found[0], torch.zeros_like(found[0]))


def test_epochs_draw_differently_and_runs_alike() -> None:
    task = Task()

    def handler() -> AttackHandler:
        return AttackHandler(FGSM(task.loss(), eps=EPS, random_start=True, step_size=1e-6), seed=3)

    first, again = changes(handler(), 2, task), changes(handler(), 2, task)
    assert not torch.allclose(first[0], first[1], atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_loss_that_is_trained_on_is_the_adversarial_one() -> None:
    """Without dropout and BatchNorm the trainer's loss is the mean of the attack result's."""
    task = Task(2, dense=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(63, 3))
    handlers: list[Callable | AttackHandler] = [AttackHandler(task.attacks()["bim"])]
    engine = trainer(network, task.batches(3), task.loss(), 0.1, train_handlers=handlers)
    losses = seen(
        engine, Events.ITERATION_COMPLETED, lambda e: (e.state.output[0]["loss"], e.state.attack_result.loss.mean())
    )
    engine.run()
    ((trained, attacked),) = losses
    assert float(trained) == pytest.approx(float(attacked), rel=1e-6)
    assert float(attacked) > float(engine.state.attack_result.clean_loss.mean())
