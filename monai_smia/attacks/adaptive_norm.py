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
from monai_smia.attacks.threat_models import LpBall

DUAL = {math.inf: 1.0, 2.0: 2.0, 1.0: math.inf}
"""The norm of a gradient that a step of unit length in each norm gains."""


def anneal(first: float, last: float, progress: float) -> float:
    """Cosine from `first` at progress 0 to `last` at 1."""
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class AdaptiveNormAttack(MinimumNormAttack, ABC):
    r"""Base of the two. Its loop is its own, because the ball of every sample follows that sample's successes.

    Args:
        steps: number of iterations, each a forward and a backward pass; one forward pass more judges the last image.
        gamma: relative change of the ball's radius in a step, in (0, 1).
        step_size: L2 length of the first step, in the network's input units; it falls as a cosine to a hundredth.
            ``None`` follows the ball, whatever the size of the image and its unit: its radius in L2, and in Linf
            :math:`\sqrt{N}` times that for N voxels, both falling in the same way; in L1 it falls from
            :math:`\sqrt{N}` times the radius to :math:`N^{-3/4}` of it.
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
    def next_radius(
        self, radius: torch.Tensor, seen: Sight, best: Sight, border: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """Radius for the step that leaves from `seen`, ``(B,)``.

        Args:
            radius: of the step before, ``(B,)``; ``inf`` before the first.
            seen: where the step leaves from.
            best: the best so far, `seen` included.
            border: distance to the border of the linearised network, from the clean image; ``inf`` without a slope.
            progress: share of the steps that are done.
        """

    @abstractmethod
    def resize(self, threat: LpBall, image: torch.Tensor, delta: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        """The change brought to the ball of this radius, ``BCHW[D]``."""

    def search(self, hunt: Hunt) -> tuple[torch.Tensor, torch.Tensor]:
        threat, image = hunt.setting.threat, hunt.setting.image
        margin, best = self.margin, None
        radius = torch.full((len(image),), math.inf, dtype=image.dtype, device=image.device)
        bad = torch.zeros(len(image), dtype=torch.long, device=image.device)
        at = self.start(hunt.setting)
        for t in range(self.steps):
            gradient, prediction, spoilt = hunt.gradient(margin, at, t, self.steps)
            bad += spoilt
            seen = self.look(hunt, at, prediction)
            best = seen if best is None else best.or_better(seen)
            steepness = size_of(threat.feasible(gradient, at), DUAL[float(self.norm)])
            border = torch.where(steepness > 0, seen.size + seen.margin.abs() / steepness, math.inf)
            radius = self.next_radius(radius, seen, best, border, t / self.steps)
            slope = size_of(gradient, 2)
            unit = gradient / wide(torch.where(slope > 0, slope, torch.ones_like(slope)), image)
            step = self._length(radius, image, t / self.steps)
            delta = at - image + wide(step, image) * unit
            at = threat.project(image, image + self.resize(threat, image, delta, radius))
        assert best is not None
        return best.or_better(self.look(hunt, at)).image, bad

    def _length(self, radius: torch.Tensor, image: torch.Tensor, progress: float) -> torch.Tensor:
        """L2 length of a step, ``(B,)``, finite. A fixed one would reach less far in a larger image."""
        falling, voxels = anneal(1.0, 0.01, progress), image[0].numel()
        if self.step_size is not None:
            return torch.full_like(radius, self.step_size * falling)
        # the unit gradient moves a typical voxel by 1 / sqrt(N): in Linf by the radius then. How many voxels an L1
        # optimum changes is not known: from a step that gives one all of the radius to a fraction of each one's share
        share = {math.inf: falling * voxels**0.5, 2.0: falling, 1.0: voxels ** max(0.5 - 5 * progress, -0.75)}
        length = radius * share[float(self.norm)]
        return length.clamp_max(torch.finfo(image.dtype).max ** 0.25)  # whose square can be summed over all voxels
