"""Adversarial training in two processes: each attacks its own batch, and the weights are those computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import processes
import pytest
import torch
from evaluators import EPS
from torch import nn
from trainers import away_from_clean, by_sample, kl, optimizer_of, pgd

STEP, STEPS = processes.STEP, processes.STEPS
STRIDE = 1_000_003  # between the seeds of two processes


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return processes.run(tmp_path_factory.mktemp("gloo"))


def by_hand(
    attack: Any,
    loss: Callable[..., torch.Tensor],
    chosen: Callable[[torch.Generator], list[int]] = lambda source: [0, 1],
    seeds: tuple[int, int] = (0, STRIDE),
    broadcast: bool = True,
) -> list[nn.Module]:
    """Two epochs of two networks whose gradients are averaged; the first one's buffers may go to the other."""
    networks = [processes.TASK.network() for _ in seeds]
    optimizers = [optimizer_of(network) for network in networks]
    iteration = 0
    for epoch in (1, 2):
        sources = [torch.Generator().manual_seed(seed + epoch) for seed in seeds]
        for batches in zip(*(processes.batches_of(rank) for rank in range(2)), strict=True):
            iteration += 1
            images = []
            for network, source, batch in zip(networks, sources, batches, strict=True):
                index, image = chosen(source), batch["image"].clone()
                if index:
                    network.eval()
                    image[index] = attack(network, image[index], batch["label"][index], source)
                images.append(image)
            if broadcast:
                for name, buffer in networks[0].named_buffers():
                    networks[1].get_buffer(name).copy_(buffer)
            for network, optimizer, image, batch in zip(networks, optimizers, images, batches, strict=True):
                torch.manual_seed(100 + iteration)
                network.train()
                optimizer.zero_grad()
                loss(network, batch["image"], image, batch["label"]).backward()
            for both in zip(*(network.parameters() for network in networks), strict=True):
                mean = (both[0].grad + both[1].grad) / 2
                for parameter in both:
                    parameter.grad = mean.clone()
            for optimizer in optimizers:
                optimizer.step()
    return networks


def check(results: list[dict[str, Any]], name: str, expected: list[nn.Module]) -> None:
    start = processes.TASK.network()
    for parameter, _ in start.named_parameters():
        assert torch.equal(results[0][name][parameter], results[1][name][parameter]), parameter
    for found, network in zip(results, expected, strict=True):
        for key, value in network.state_dict().items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-6, atol=1e-7)
    assert not torch.equal(results[0][name]["0.weight"], start[0].weight)


def under_attack(network: nn.Module, clean: torch.Tensor, adversarial: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return processes.TASK.loss()(network(adversarial), y)


def test_each_process_attacks_its_own_batch(results: list[dict[str, Any]]) -> None:
    loss = processes.TASK.loss()
    check(results, "handled", by_hand(pgd(loss, EPS, STEP, STEPS), under_attack))


def test_nothing_to_attack_in_one_process(results: list[dict[str, Any]]) -> None:
    loss, counts = processes.TASK.loss(), []

    def chosen(source: torch.Generator) -> list[int]:
        index = (torch.rand(2, generator=source) < processes.SPARSE).nonzero()[:, 0].tolist()
        counts.append(len(index))
        return index

    check(results, "sparse", by_hand(pgd(loss, EPS, STEP, STEPS), under_attack, chosen, seeds=(0, 10 + STRIDE)))
    assert [result["counts"] for result in results] == [counts[0::2], counts[1::2]]
    assert any((a == 0) != (b == 0) for a, b in zip(*(result["counts"] for result in results), strict=True))


def test_both_views_in_each_process(results: list[dict[str, Any]]) -> None:
    loss = processes.TASK.loss()

    def trades(network: nn.Module, clean: torch.Tensor, adversarial: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        first, second = network(clean), network(adversarial)
        return (by_sample(loss, first, y) + 6 * kl(first, second).flatten(1).mean(1)).mean()

    check(results, "trades", by_hand(away_from_clean(EPS, STEP, STEPS), trades, broadcast=False))


def test_the_alarm_stops_all_processes_or_none(results: list[dict[str, Any]]) -> None:
    (epoch, metrics), (other_epoch, other_metrics) = (result["alarmed"] for result in results)
    assert epoch == other_epoch == 1
    assert metrics == other_metrics
    assert metrics["overfitting_alarm"] == 1
