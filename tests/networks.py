"""Tiny seeded networks, with what real ones have: convolutions, BatchNorm with history, dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

CLASSES = 3
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def tiny_network(rank: int, dense: bool, channels: int = 1, outputs: int = CLASSES, seed: int = 0) -> nn.Sequential:
    """A network in train mode with a BatchNorm frozen by hand, whose statistics are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = [CONV[rank](channels, 6, 3, padding=1), NORM[rank](6), nn.Tanh(), nn.Dropout(0.5)]
        if dense:
            head: list[nn.Module] = [CONV[rank](6, outputs, 3, padding=1)]
        else:
            head = [nn.Flatten(2), nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(24, outputs)]
        network = nn.Sequential(*features, *head).train()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.5)
        network[1].running_mean.normal_()
        network[1].running_var.uniform_(0.5, 2.0)
    network[1].eval()
    return network


class Counting(nn.Module):
    """Counts the samples that pass forward and the gradients that come back to the input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.forwards = 0
        self.backwards = 0

    def forward(self, image: torch.Tensor) -> Any:
        self.forwards += 1
        if image.requires_grad:
            image.register_hook(self._count)
        return self.network(image)

    def _count(self, gradient: torch.Tensor) -> None:
        self.backwards += 1


class Failing(nn.Module):
    """Raises at its n-th forward pass."""

    def __init__(self, network: nn.Module, at: int) -> None:
        super().__init__()
        self.network = network
        self.left = at

    def forward(self, image: torch.Tensor) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt("planted")
        return self.network(image)
