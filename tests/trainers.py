"""Adversarial training written out in plain torch, the oracle of the tests of trainers; uses nothing of the package."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from evaluators import CPU
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer
from torch import nn
from torch.nn import functional as F

RATE, MOMENTUM = 0.1, 0.9
Perturb = Callable[..., torch.Tensor]


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM)


def trainer_of(network: nn.Module, loader: Any, loss: Any, kind: Any = SupervisedTrainer, **arguments: Any) -> Any:
    """A trainer on the CPU with the optimizer of the loops by hand; skips where MONAI cannot do what is asked."""
    accumulates = "accumulation_steps" in inspect.signature(SupervisedTrainer.__init__).parameters
    if not accumulates and arguments.pop("accumulation_steps", 1) > 1:
        pytest.skip("this MONAI does not accumulate gradients")
    defaults = {"optimizer": optimizer_of(network), "max_epochs": 2, "device": CPU}
    return kind(network=network, train_data_loader=loader, loss_function=loss, **{**defaults, **arguments})


class SeedDropout:
    """Starts the global randomness anew before every iteration, by its number over all epochs."""

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, lambda e: torch.manual_seed(100 + e.state.iteration))


class Bfloat16Inferer(SimpleInferer):
    """The autocast that MONAI's engines enter on a GPU, on a CPU."""

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return network(inputs, *args, **kwargs).float()


class CpuScaler:
    """Gives an engine with ``amp=True`` a scaler that works on a CPU, where MONAI's own is switched off."""

    def __init__(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.STARTED, lambda e: setattr(e, "scaler", self.scaler))


def by_sample(loss: Any, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.stack([loss(prediction[i : i + 1], target[i : i + 1]) for i in range(len(target))])


def slope(value: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value.sum(), leaf)[0].sign()


def pgd(loss: Any, eps: float, step: float, steps: int, low: float = 0.0, high: float = 1.0) -> Perturb:
    """PGD from a random start in Linf; with one step of 1.25 eps the attack of "Fast is better than free"."""

    def perturb(network: Any, x: torch.Tensor, y: torch.Tensor, source: torch.Generator) -> torch.Tensor:
        noise = torch.empty(x.shape, dtype=x.dtype).uniform_(-eps, eps, generator=source)  # in the order of the axes
        adversarial = (x + noise).clamp(low, high)
        for _ in range(steps):
            leaf = adversarial.requires_grad_()
            moved = adversarial.detach() + step * slope(by_sample(loss, network(leaf), y), leaf)
            adversarial = (x + (moved - x).clamp(-eps, eps)).clamp(low, high)
        return adversarial

    return perturb


def blur(x: torch.Tensor) -> torch.Tensor:
    """Three taps of a Gaussian of one voxel along every spatial axis; the border is repeated."""
    side = torch.tensor(-0.5).exp()
    side, middle = side / (1 + 2 * side), 1 / (1 + 2 * side)
    for axis in range(2, x.ndim):
        before = torch.cat((x.narrow(axis, 0, 1), x.narrow(axis, 0, x.shape[axis] - 1)), axis)
        after = torch.cat((x.narrow(axis, 1, x.shape[axis] - 1), x.narrow(axis, x.shape[axis] - 1, 1)), axis)
        x = side * before + middle * x + side * after
    return x


def smia(loss: Any, eps: float, step: float, steps: int, weight: float) -> Perturb:
    """SMIA: away from the label, close to the prediction for one's own smoothed twin, on a softmax head."""

    def confine(x: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        return (x + (moved - x).clamp(-eps, eps)).clamp(0, 1)

    def perturb(network: Any, x: torch.Tensor, y: torch.Tensor, source: torch.Generator) -> torch.Tensor:
        adversarial, twin = x.clone(), None
        for _ in range(steps):
            leaf = adversarial.requires_grad_()
            prediction = network(leaf)
            value = by_sample(loss, prediction, y)
            if twin is not None:
                log_p, log_q = prediction.log_softmax(1), network(twin).detach().log_softmax(1)
                divergence = (log_p.exp() * (log_p - log_q)).sum(1).reshape(len(x), -1).mean(1)
                value = value - weight * divergence
            update = step * slope(value, leaf)
            twin = confine(x, adversarial.detach() + blur(update))
            adversarial = confine(x, adversarial.detach() + update)
        return adversarial

    return perturb


def kl(clean: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """``KL(clean || other)`` of softmax heads by torch's own function, per voxel, ``(B, ...)``."""
    return F.kl_div(other.log_softmax(1), clean.softmax(1), reduction="none").sum(1)


def away_from_clean(eps: float, step: float, steps: int) -> Perturb:
    """The attack inside TRADES."""

    def perturb(network: Any, x: torch.Tensor, y: torch.Tensor, source: torch.Generator) -> torch.Tensor:
        clean = network(x).detach()
        adversarial = x + 0.001 * torch.randn(x.shape, generator=source, dtype=x.dtype)
        adversarial = (x + (adversarial - x).clamp(-eps, eps)).clamp(0, 1)
        for _ in range(steps):
            leaf = adversarial.requires_grad_()
            value = kl(clean, network(leaf)).reshape(len(x), -1).mean(1)
            moved = adversarial.detach() + step * slope(value, leaf)
            adversarial = (x + (moved - x).clamp(-eps, eps)).clamp(0, 1)
        return adversarial

    return perturb


def train_by_hand(
    network: nn.Module,
    batches: list[dict[str, Any]],
    perturb: Callable[[int], Perturb],
    loss: Callable[..., torch.Tensor],
    *,
    epochs: int = 2,
    accumulate: int = 1,
    chosen: Callable[[int, torch.Generator], torch.Tensor] | None = None,
    predict: Callable[[Any], Any] = lambda network: network,
    scaler: Any = None,
) -> nn.Module:
    """Adversarial training.

    Args:
        network: trained in place.
        batches: with ``"image"`` and ``"label"``, the same in every epoch.
        perturb: the attack of an epoch.
        loss: ``(predict, clean, adversarial, label) -> value``; the predictions that it asks for are in training mode.
        epochs, accumulate: as in MONAI's trainer; what is accumulated at an epoch's end is used.
        chosen: the samples to attack, ``(size, generator) -> indices``; ``None`` for all.
        predict: how the network is called.
        scaler: of the gradients.
    """
    optimizer, iteration = optimizer_of(network), 0
    for epoch in range(1, epochs + 1):
        source = torch.Generator().manual_seed(epoch)
        for i, batch in enumerate(batches):
            iteration += 1
            x, y = batch["image"], batch["label"]
            index = torch.arange(len(x)) if chosen is None else chosen(len(x), source)
            adversarial = x.clone()
            if len(index):
                network.eval()
                adversarial[index] = perturb(epoch)(predict(network), x[index], y[index], source)
            torch.manual_seed(100 + iteration)
            network.train()
            if i % accumulate == 0:
                optimizer.zero_grad()
            value = loss(predict(network), x, adversarial, y) / accumulate
            (value if scaler is None else scaler.scale(value)).backward()
            if (i + 1) % accumulate == 0 or i + 1 == len(batches):
                if scaler is None:
                    optimizer.step()
                else:
                    scaler.step(optimizer)
                    scaler.update()
    return network


def under_attack(loss: Any) -> Callable[..., torch.Tensor]:
    """Plain adversarial training: the loss at the adversarial image alone."""
    return lambda predict, clean, adversarial, label: loss(predict(adversarial), label)


def assert_same_state(found: nn.Module, expected: nn.Module, start: nn.Module, exact: bool = True) -> None:
    """Equal weights and statistics, to the bit where `exact`; and they are not those that the training started from."""
    ours, theirs, before = found.state_dict(), expected.state_dict(), start.state_dict()
    for name, value in theirs.items():
        if exact:
            assert torch.equal(ours[name], value), (name, float((ours[name] - value).abs().max()))
        else:
            torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    moved = [name for name, value in theirs.items() if not torch.equal(value, before[name])]
    assert set(moved) >= set(theirs) - {"0.bias"}, "a bias before BatchNorm has no slope but rounding; all else moves"
