# SPDX-License-Identifier: Apache-2.0
"""A network that several borrow at once, or whose modes do more than set a flag, is given back as it was."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from networks import tiny_network
from torch import nn
from torch.utils.checkpoint import checkpoint

from monai_smia.attacks import PGD, frozen

LOSS = nn.CrossEntropyLoss()


class Borrower(threading.Thread):
    """Holds a network until told to give it back."""

    def __init__(self, network: nn.Module, fails: bool = False) -> None:
        super().__init__()
        self.network, self.fails = network, fails
        self.has_it, self.may_go = threading.Event(), threading.Event()

    def run(self) -> None:
        try:
            with frozen(self.network):
                self.has_it.set()
                self.may_go.wait(30)
                if self.fails:
                    raise ValueError("an attack that fails")
        except ValueError:
            pass

    def take(self) -> None:
        self.start()
        assert self.has_it.wait(30)

    def give_back(self) -> None:
        self.may_go.set()
        self.join(30)


def state(network: nn.Module) -> list[bool]:
    flags = [parameter.requires_grad for parameter in network.parameters()]
    return [*(module.training for module in network.modules()), *flags]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("first_leaves_first", [False, True])
def test_the_last_of_two_threads_restores_what_the_first_found(first_leaves_first: bool, fails: bool) -> None:
    network = tiny_network(2, dense=False)
    network[-1].bias.requires_grad_(False)
    before, statistics = state(network), network[1].running_mean.clone()
    one, two = Borrower(network, fails), Borrower(network, fails)
    one.take()
    two.take()
    network[1].running_mean.add_(1.0)
    early, late = (one, two) if first_leaves_first else (two, one)
    early.give_back()
    assert not any(state(network))
    late.give_back()
    assert state(network) == before
    assert torch.equal(network[1].running_mean, statistics)


def test_networks_that_share_a_module_are_counted_module_by_module() -> None:
    shared, other = nn.Linear(2, 2), nn.Linear(2, 2)
    one, two = Borrower(nn.Sequential(shared)), Borrower(nn.Sequential(shared, other))
    one.take()
    two.take()
    one.give_back()
    assert (shared.training, other.training, shared.weight.requires_grad) == (False, False, False)
    two.give_back()
    assert (shared.training, other.training, shared.weight.requires_grad) == (True, True, True)


def test_attacks_of_two_threads_leave_the_network_in_training() -> None:
    network, image = tiny_network(2, dense=False), torch.rand(2, 1, 9, 7)
    before, attack = state(network), PGD(LOSS, eps=0.1, steps=8)
    alone = attack(network, image, torch.tensor([0, 1])).adversarial
    found: list[torch.Tensor] = []
    both_in = threading.Barrier(2, timeout=30)

    def work() -> None:
        def meet(trial: Any, prediction: Any) -> None:
            if trial.step == 2:
                both_in.wait()

        found.append(attack(network, image, torch.tensor([0, 1]), callback=meet).adversarial)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert state(network) == before
    assert len(found) == 2
    assert all(torch.equal(adversarial, alone) for adversarial in found)


class Merging(nn.Linear):
    """Low-rank weights that are merged in evaluation mode and taken out again in training mode."""

    def __init__(self) -> None:
        super().__init__(2, 2, bias=False)
        nn.init.ones_(self.weight)
        self.merged = False
        self.calls: list[bool] = []

    def train(self, mode: bool = True) -> Merging:
        self.calls.append(mode)
        if mode == self.merged:
            with torch.no_grad():
                self.weight.add_(-1.0 if mode else 1.0)
            self.merged = not mode
        return super().train(mode)


@pytest.mark.parametrize("training", [True, False])
def test_a_module_that_merges_weights_is_left_by_the_call_it_was_entered_by(training: bool) -> None:
    layer = Merging()
    network = nn.Sequential(layer, nn.BatchNorm1d(2))
    network.train(training)
    network[1].eval()
    layer.calls.clear()
    weight = layer.weight.detach().clone()

    def borrow() -> None:
        with frozen(network):
            assert layer.merged
            raise ValueError("on the way")

    with pytest.raises(ValueError, match="on the way"):
        borrow()
    assert torch.equal(layer.weight, weight)
    assert (layer.training, layer.merged, network[1].training) == (training, not training, False)
    assert layer.calls == ([False, True] if training else [])


def test_a_merging_module_that_stood_in_evaluation_inside_a_training_parent_stays_merged() -> None:
    class Parent(nn.Sequential):
        def train(self, mode: bool = True) -> Parent:
            return super().train(mode)

    layer = Merging()
    network = Parent(layer).train()
    layer.eval()
    with frozen(network):
        assert layer.merged
    assert (network.training, layer.training, layer.merged) == (True, False, True)


@pytest.mark.parametrize("kind", ["freeze", "export"])
def test_networks_without_modes_are_attacked_as_they_are(kind: str) -> None:
    network, image = tiny_network(2, dense=False).eval(), torch.rand(2, 1, 9, 7)
    if kind == "freeze":
        fixed = torch.jit.freeze(torch.jit.script(network))
    else:
        fixed = torch.export.export(network, (image,)).module()
    attack, labels = PGD(LOSS, eps=0.1, steps=3), torch.tensor([0, 1])
    expected = attack(network, image, labels)
    torch.testing.assert_close(attack(fixed, image, labels).loss, expected.loss)


def test_reentrant_checkpointing_is_refused_by_name() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.inner, self.reentrant = tiny_network(2, dense=False), reentrant

        def forward(self, x: torch.Tensor) -> Any:
            return checkpoint(self.inner, x, use_reentrant=self.reentrant)

    attack, image, labels = PGD(LOSS, eps=0.1, steps=3), torch.rand(2, 1, 9, 7), torch.tensor([0, 1])
    assert bool(attack(Checkpointed(False), image, labels).loss.isfinite().all())
    with pytest.raises(RuntimeError, match="network: its activation checkpointing .* use_reentrant=False"):
        attack(Checkpointed(True), image, labels)
