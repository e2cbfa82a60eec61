"""Adversarial training with `AttackHandler`: the weights are those of a loop written by hand, attack included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from evaluators import EPS, Task, images_of, seen
from ignite.engine import Events
from monai.data import MetaTensor, list_data_collate
from monai.engines import SupervisedTrainer
from torch import nn
from trainers import (
    Bfloat16Inferer,
    CpuScaler,
    Perturb,
    SeedDropout,
    assert_same_state,
    pgd,
    smia,
    train_by_hand,
    trainer_of,
    under_attack,
)

from monai_smia.attacks import FGSM, PGD, SMIA, Attack
from monai_smia.handlers import AttackHandler

STEP, STEPS, WEIGHT = 0.04, 3, 2.0
LINF: dict[str, Any] = {"eps": EPS, "bounds": (0.0, 1.0)}
METHODS: dict[str, tuple[Callable[[Any], Attack], Callable[[Any], Perturb]]] = {
    "PGD-AT": (
        lambda loss: PGD(loss, steps=STEPS, step_size=STEP, **LINF),
        lambda loss: pgd(loss, EPS, STEP, STEPS),
    ),
    "Fast-AT": (
        lambda loss: FGSM(loss, step_size=1.25 * EPS, random_start=True, **LINF),
        lambda loss: pgd(loss, EPS, 1.25 * EPS, 1),
    ),
    "SMIA-AT": (
        lambda loss: SMIA(loss, steps=STEPS, step_size=STEP, stabilization_weight=WEIGHT, **LINF),
        lambda loss: smia(loss, EPS, STEP, STEPS, WEIGHT),
    ),
}
TASKS = [Task(2, dense=False, cases=6), Task(2, cases=6), Task(3, cases=6)]


def three_batches(task: Task) -> list[dict[str, torch.Tensor]]:
    return task.batches(2)


def always(perturb: Perturb) -> Callable[[int], Perturb]:
    return lambda epoch: perturb


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS, ids=str)
def test_two_epochs_give_the_weights_of_a_handwritten_loop(task: Task, method: str) -> None:
    attack, perturb = (make(task.loss()) for make in METHODS[method])
    network, expected = task.network(), task.network()
    handlers = [SeedDropout(), AttackHandler(attack)]
    trainer_of(network, three_batches(task), task.loss(), train_handlers=handlers).run()
    train_by_hand(expected, three_batches(task), always(perturb), under_attack(task.loss()))
    assert_same_state(network, expected, task.network())
    # BatchNorm counted the training's own forward passes and none of the attack's
    assert int(network[1].num_batches_tracked - task.network()[1].num_batches_tracked) == 6


def test_clean_and_adversarial_samples_in_one_batch() -> None:
    task = TASKS[1]
    attack, perturb = (make(task.loss()) for make in METHODS["PGD-AT"])

    def chosen(size: int, source: torch.Generator) -> torch.Tensor:
        return (torch.rand(size, generator=source) < 0.5).nonzero()[:, 0]

    network, expected = task.network(), task.network()
    handlers = [SeedDropout(), AttackHandler(attack, probability=0.5)]
    trainer = trainer_of(network, three_batches(task), task.loss(), train_handlers=handlers)
    images, attacked = images_of(trainer), seen(trainer, Events.ITERATION_STARTED, lambda e: e.state.attacked.tolist())
    trainer.run()
    train_by_hand(expected, three_batches(task), always(perturb), under_attack(task.loss()), chosen=chosen)
    assert_same_state(network, expected, task.network())
    assert {len(index) for index in attacked} == {0, 1, 2}, "no sample, one and both: the seed covers all three"
    clean = [batch["image"] for batch in three_batches(task)] * 2
    for image, original, index in zip(images, clean, attacked, strict=True):
        changed = [not torch.equal(a, b) for a, b in zip(image, original, strict=True)]
        assert changed == [i in index for i in range(2)]


def test_eps_schedule() -> None:
    task = TASKS[0]
    schedule = {1: 0.0, 2: EPS / 2, 3: EPS}.__getitem__
    network, expected = task.network(), task.network()
    handlers = [SeedDropout(), AttackHandler(PGD(task.loss(), steps=STEPS, **LINF), eps_schedule=schedule)]
    trainer_of(network, three_batches(task), task.loss(), train_handlers=handlers, max_epochs=3).run()

    def perturb(epoch: int) -> Perturb:
        return pgd(task.loss(), schedule(epoch), schedule(epoch) * 2.5 / STEPS, STEPS)  # the step follows eps

    train_by_hand(expected, three_batches(task), perturb, under_attack(task.loss()), epochs=3)
    assert_same_state(network, expected, task.network())


@pytest.mark.parametrize("accumulate", [1, 2], ids="accumulate-{}".format)
def test_scaled_gradients(accumulate: int) -> None:
    """With a scaler at work the weights and the scaler's own state are those of the loop by hand."""
    task = TASKS[1]
    attack, perturb = (make(task.loss()) for make in METHODS["PGD-AT"])
    network, expected, scaling = task.network(), task.network(), CpuScaler()
    trainer = trainer_of(
        network,
        three_batches(task),
        task.loss(),
        train_handlers=[SeedDropout(), scaling, AttackHandler(attack)],
        amp=True,
        accumulation_steps=accumulate,
    )
    trainer.run()
    by_hand = CpuScaler().scaler
    train_by_hand(
        expected,
        three_batches(task),
        always(perturb),
        under_attack(task.loss()),
        accumulate=accumulate,
        scaler=by_hand,
    )
    assert_same_state(network, expected, task.network())
    assert scaling.scaler.state_dict() == by_hand.state_dict()
    assert by_hand.get_scale() > 1024, "the scale grew, so the scaler was at work"


def test_the_handler_touches_neither_scaler_nor_gradients() -> None:
    """A scaler that refuses every use, and gradients that a step before has left."""
    task = TASKS[1]

    class Untouchable:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"engine.scaler.{name} was used")

    network = task.network()
    trainer = trainer_of(network, three_batches(task), task.loss(), amp=True)
    trainer.scaler, trainer.state.epoch, trainer.state.batch = Untouchable(), 1, three_batches(task)[0]
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    gradients = [parameter.grad for parameter in network.parameters()]
    handler = AttackHandler(METHODS["PGD-AT"][0](task.loss()))
    handler.reseed(trainer)
    handler(trainer)
    assert not torch.equal(trainer.state.batch["image"], trainer.state.batch["image_clean"])
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert bool((gradient == 0.25).all())


@pytest.mark.parametrize("rank", [2, 3])
def test_channels_last_is_kept(rank: int) -> None:
    task, layout = Task(rank, cases=4), {2: torch.channels_last, 3: torch.channels_last_3d}[rank]

    def network() -> nn.Module:
        whole = task.network()
        wide = nn.Sequential({2: nn.Conv2d, 3: nn.Conv3d}[rank](2, 1, 1), *whole)
        with torch.no_grad():
            wide[0].weight.fill_(0.5)
            wide[0].bias.zero_()
        return wide.to(memory_format=layout)

    def batches() -> list[dict[str, torch.Tensor]]:
        pairs = [{**batch, "image": batch["image"].expand(-1, 2, *[-1] * rank)} for batch in task.batches(2)]
        return [{**batch, "image": batch["image"].contiguous(memory_format=layout)} for batch in pairs]

    attack, perturb = (make(task.loss()) for make in METHODS["PGD-AT"])
    trained, expected, iterates = network(), network(), []
    handler = AttackHandler(
        attack, callback=lambda trial, _: iterates.append(trial.adversarial.is_contiguous(memory_format=layout))
    )
    trainer = trainer_of(trained, batches(), task.loss(), train_handlers=[SeedDropout(), handler])
    layouts = seen(
        trainer, Events.ITERATION_STARTED, lambda e: e.state.batch["image"].is_contiguous(memory_format=layout)
    )
    trainer.run()
    train_by_hand(expected, batches(), always(perturb), under_attack(task.loss()))
    assert layouts == [True] * 4
    assert iterates == [True] * 4 * STEPS
    assert trained[0].weight.is_contiguous(memory_format=layout)
    for name, value in expected.state_dict().items():
        assert torch.equal(trained.state_dict()[name], value), name


@pytest.mark.parametrize("seeded_first", [True, False], ids=["attack-last", "attack-first"])
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("accumulate", [1, 2], ids="accumulate-{}".format)
@pytest.mark.parametrize("meta", [False, True], ids=["tensor", "MetaTensor"])
@pytest.mark.parametrize("decollate", [False, True], ids=["batched", "decollated"])
def test_every_combination(seeded_first: bool, bfloat16: bool, accumulate: int, meta: bool, decollate: bool) -> None:
    """Handler order, autocast, accumulation, metadata and decollation: always the weights of the loop by hand."""
    task = TASKS[1]
    attack, perturb = (make(task.loss()) for make in METHODS["PGD-AT"])
    network, expected = task.network(), task.network()
    handlers = [SeedDropout(), AttackHandler(attack)]
    batches = three_batches(task)
    if meta:
        affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
        pairs = [zip(batch["image"], batch["label"], strict=True) for batch in batches]
        items = [[{"image": MetaTensor(x, affine=affine), "label": y} for x, y in pair] for pair in pairs]
        batches = [list_data_collate(item) for item in items]
    trainer = trainer_of(
        network,
        batches,
        task.loss(),
        train_handlers=handlers if seeded_first else handlers[::-1],
        inferer=Bfloat16Inferer() if bfloat16 else None,
        accumulation_steps=accumulate,
        decollate=decollate,
    )
    adversarial = images_of(trainer)
    outputs = seen(trainer, Events.ITERATION_COMPLETED, lambda e: (e.state.batch, e.state.output))
    trainer.run()

    def in_bfloat16(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: Bfloat16Inferer()(x, model)

    train_by_hand(
        expected,
        three_batches(task),
        always(perturb),
        under_attack(task.loss()),
        accumulate=accumulate,
        predict=in_bfloat16 if bfloat16 else lambda model: model,
    )
    assert_same_state(network, expected, task.network())
    for image, (batch, output) in zip(adversarial, outputs, strict=True):
        assert isinstance(batch, list) is decollate
        if decollate:  # one dictionary per case, with the image that was trained on
            assert [sorted(item) for item in batch] == [["image", "image_clean", "label"]] * 2
            found = [item["image"] for item in output]
            assert all(isinstance(item, MetaTensor) is meta for item in found)
            if meta:
                assert all(
                    torch.equal(item.affine.diagonal()[:3], torch.tensor([2.0, 3, 4]).double()) for item in found
                )
            found = torch.stack([torch.as_tensor(item) for item in found])
        else:
            found = torch.as_tensor(output["image"])
            assert isinstance(output["image"], MetaTensor) is meta
        assert torch.equal(found, image)


def test_an_iteration_of_ones_own_sees_the_adversarial_batch() -> None:
    """``iteration_update`` replaces the trainer's iteration, not the handler."""
    task = TASKS[0]
    attack, perturb = (make(task.loss()) for make in METHODS["PGD-AT"])

    def iteration(engine: SupervisedTrainer, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        engine.network.train()
        engine.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction = engine.network(batch["image"]).float()
        loss = engine.loss_function(prediction, batch["label"])
        loss.backward()
        engine.optimizer.step()
        return {"loss": loss.detach()}

    network, expected = task.network(), task.network()
    handlers = [SeedDropout(), AttackHandler(attack)]
    trainer_of(network, three_batches(task), task.loss(), train_handlers=handlers, iteration_update=iteration).run()

    def loss(predict: Any, clean: torch.Tensor, adversarial: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction = predict(adversarial).float()
        return task.loss()(prediction, label)

    train_by_hand(expected, three_batches(task), always(perturb), loss)
    assert_same_state(network, expected, task.network())
