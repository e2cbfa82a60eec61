# SPDX-License-Identifier: Apache-2.0
"""The loop of FMN and DDN: steps along the unit gradient of the margin, in a ball that follows every success."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.hunt import Hunt
from monai_smia.attacks.minimum_norm import MinimumNormAttack, Sight, as_positive, size_of, wide


def anneal(first: float, last: float, progress: float) -> float:
    """Cosine from `first` at progress 0 to `last` at 1."""
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class AdaptiveNormAttack(MinimumNormAttack, ABC):
    """Base of the two. Its loop is its own, because the ball of every sample follows that sample's successes.

    Args:
        steps: number of iterations, each a forward and a backward pass; one forward pass more judges the last image.
        gamma: relative change of the ball's radius in a step, in (0, 1).
        step_size: L2 length of the first step, in the network's input units; it falls as a cosine to a hundredth.
            ``None`` is the width of `bounds`, or of each sample's intensities where unbounded: 1 for images in [0, 1].
    """

    steps: int = 100
    gamma: float = 0.05
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.as_count("steps", self.steps)
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma: expected a number in (0, 1); got {self.gamma!r}")
        if self.step_size is not None:
            self._set(step_size=as_positive("step_size", self.step_size))

    @abstractmethod
    def first_radius(self, image: torch.Tensor) -> torch.Tensor:
        """Radius before the first step, ``(B,)``."""

    @abstractmethod
    def next_radius(
        self, radius: torch.Tensor, seen: Sight, best: Sight, gradient: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """Radius for the step that leaves from `seen`, ``(B,)``; `best` includes it."""

    @abstractmethod
    def resize(self, delta: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        """The change brought to the ball, ``BCHW[D]``."""

    def search(self, hunt: Hunt) -> tuple[torch.Tensor, torch.Tensor]:
        threat, image = hunt.setting.threat, hunt.setting.image
        margin, radius, best = self.margin, self.first_radius(image), None
        length = self.span(image) if self.step_size is None else torch.full_like(radius, self.step_size)
        bad = torch.zeros(len(image), dtype=torch.long, device=image.device)
        at = self.start(hunt.setting)
        for t in range(self.steps):
            gradient, prediction, spoilt = hunt.gradient(margin, at, t, self.steps)
            bad += spoilt
            seen = self.look(hunt, at, prediction)
            best = seen if best is None else best.or_better(seen)
            radius = self.next_radius(radius, seen, best, gradient, t / self.steps)
            slope = size_of(gradient, 2)
            step = length * anneal(1.0, 0.01, t / self.steps) / torch.where(slope > 0, slope, torch.ones_like(slope))
            delta = at - image + wide(step, image) * gradient
            at = threat.project(image, image + self.resize(delta, radius))
        assert best is not None
        return best.or_better(self.look(hunt, at)).image, bad
