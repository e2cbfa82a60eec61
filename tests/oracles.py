"""Oracles: linear networks, for which the strongest attack of every budget is known in closed form."""

from __future__ import annotations

import math

import torch
from torch import nn


class LinearMargin(nn.Module):
    """A two-class classifier whose logits are ``(0, w . x + b)``: the loss depends on one margin only."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(shape, generator=source))
        self.bias = nn.Parameter(torch.zeros(()))

    def margin(self, image: torch.Tensor) -> torch.Tensor:
        return (image * self.weight).flatten(1).sum(1) + self.bias

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        margin = self.margin(image)
        return torch.stack((torch.zeros_like(margin), margin), 1)


class VoxelMargin(nn.Module):
    """A two-class segmenter by a 1x1 convolution: every voxel is a linear classifier over its channels."""

    def __init__(self, channels: int, rank: int, seed: int = 0) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn((channels, *[1] * rank), generator=source))

    def margin(self, image: torch.Tensor) -> torch.Tensor:
        return (image * self.weight).sum(1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        margin = self.margin(image)
        return torch.stack((torch.zeros_like(margin), margin), 1)


def largest_margin_change(weight: torch.Tensor, eps: float, norm: float) -> torch.Tensor:
    """``max w . d`` over the ball of radius eps, by the dual norm, over all elements of `weight`."""
    dual = {math.inf: 1, 2: 2, 1: math.inf}[norm]
    return eps * torch.linalg.vector_norm(weight.flatten(), ord=dual)
