# SPDX-License-Identifier: Apache-2.0
"""Steps: from a gradient to a direction, as a chain of small parts without state of their own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch

from monai_smia.attacks.argument_kinds import check_kinds
from monai_smia.attacks.balls import faint_norm_of, grouped


class Step(ABC):
    """How we move: ``init(z) -> state``, ``update(gradient, state) -> (direction, state)``."""

    def __post_init__(self) -> None:
        if is_dataclass(self):
            check_kinds(self)

    def init(self, z: torch.Tensor) -> Any:
        """The state before the first update; ``None`` for a part that keeps none."""
        return None

    @abstractmethod
    def update(self, gradient: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """The direction for this gradient, ``BCHW[D]``, and the state for the next one."""


@dataclass(frozen=True)
class Chain(Step):
    """Parts one after the other; each gets the direction of the one before."""

    parts: Sequence[Step]

    def init(self, z: torch.Tensor) -> Any:
        return tuple(part.init(z) for part in self.parts)

    def update(self, gradient: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        states = []
        for part, old in zip(self.parts, state, strict=True):
            gradient, new = part.update(gradient, old)
            states.append(new)
        return gradient, tuple(states)


@dataclass(frozen=True)
class Normalize(Step):
    """Each sample's gradient divided by its own Lp norm; a zero gradient stays zero.

    Args:
        norm: 2 or 1.
        mean: divide by the norm per voxel instead (for L1 the mean magnitude).
        per_channel: every channel by its own norm.
    """

    norm: float
    mean: bool = False
    per_channel: bool = False

    def update(self, gradient: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        flat = grouped(gradient, self.per_channel)
        size = flat.abs().mean(-1, keepdim=True) if self.mean and self.norm == 1 else faint_norm_of(flat, self.norm)
        return (flat / torch.where(size > 0, size, torch.ones_like(size))).reshape(gradient.shape), state


@dataclass(frozen=True)
class Momentum(Step):
    """``m <- decay * m + g``, and m is the direction."""

    decay: float

    def init(self, z: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(z)

    def update(self, gradient: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        momentum = gradient + self.decay * state
        return momentum, momentum


@dataclass(frozen=True)
class Sign(Step):
    """The sign of every component: steepest ascent in Linf."""

    def update(self, gradient: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        return gradient.sign(), state


@dataclass(frozen=True)
class Largest(Step):
    """Signs of the largest components, together of L1 norm 1: steepest ascent in L1, spread over more than one voxel.

    One voxel alone, the steepest direction of all, would meet its bound at once in a large image.

    Args:
        share: share of a sample's components that move, of those that are not zero, in (0, 1], rounded down; at least
            one.
        per_channel: in every channel by itself.

    Reference: Tramer, Boneh, "Adversarial training and robustness for multiple perturbations" (SLIDE), NeurIPS 2019,
    https://arxiv.org/abs/1904.13000.
    """

    share: float = 0.01
    per_channel: bool = False

    def update(self, gradient: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        flat = grouped(gradient, self.per_channel)
        magnitude = flat.abs()
        count = (self.share * (magnitude > 0).sum(-1, keepdim=True)).long().clamp_min(1)
        least = magnitude.sort(dim=-1, descending=True).values.gather(-1, count - 1)
        chosen = (magnitude >= least) & (magnitude > 0)
        direction = flat.sign() * chosen / chosen.sum(-1, keepdim=True).clamp_min(1)
        return direction.reshape(gradient.shape), state


@dataclass(frozen=True)
class Smooth(Step):
    """The gradient filtered, as with a `Gaussian`."""

    kernel: Callable[[torch.Tensor], torch.Tensor]

    def update(self, gradient: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        return self.kernel(gradient), state


@dataclass(frozen=True)
class Restrict(Step):
    """The direction where a change is allowed, zero elsewhere: after a part that spreads it over the mask's edge."""

    restrict: Callable[[torch.Tensor], torch.Tensor]

    def update(self, gradient: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        return self.restrict(gradient), state


@dataclass(frozen=True)
class Scale(Step):
    """The direction times a number, or times a tensor that broadcasts against ``BCHW[D]``."""

    factor: torch.Tensor | float

    def update(self, gradient: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        return self.factor * gradient, state


def steepest(norm: float, per_channel: bool = False) -> Step:
    """Steepest ascent of unit length in the Lp norm: sign for Linf, unit vector for L2, largest voxels for L1."""
    if norm == math.inf:
        return Sign()
    return Normalize(2, per_channel=per_channel) if norm == 2 else Largest(per_channel=per_channel)
