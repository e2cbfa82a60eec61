# SPDX-License-Identifier: Apache-2.0
"""Moves of the Square attack: where a run starts, and the next image it tries, for each norm."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch

from monai_smia.attacks.balls import norm_of
from monai_smia.attacks.hunt import Setting
from monai_smia.attacks.square_windows import Frame, pyramids, signs, tiles, uniform


class Moves(ABC):
    """Random changes of one call's images, one per sample."""

    def __init__(self, setting: Setting, source: torch.Generator) -> None:
        self.image, self.threat, self.source = setting.image, setting.threat, source
        self.frame = Frame.of(self.image, self.threat.mask)
        self.rank = self.image.ndim - 2

    @abstractmethod
    def start(self) -> torch.Tensor:
        """The first image tried, in the threat model."""

    @abstractmethod
    def propose(self, best: torch.Tensor, fraction: float) -> torch.Tensor:
        """The image to try after `best`, in the threat model.

        Args:
            best: the best image so far, ``BCHW[D]``.
            fraction: of the voxels that may change, to be in the window.
        """

    def signs(self, *spatial: int) -> torch.Tensor:
        """Random signs per sample and channel, and along the axes that are not 1."""
        return signs((*self.image.shape[:2], *spatial), self.source, self.image)


class CornerMoves(Moves):
    r"""Linf: in a window every channel goes to :math:`+\varepsilon` or :math:`-\varepsilon`.

    A draw that would change nothing, half of all where a small window has one channel, is made with the other signs.
    """

    def __init__(self, setting: Setting, source: torch.Generator) -> None:
        super().__init__(setting, source)
        eps = self.threat.eps
        self.high, self.low = (self.threat.project(self.image, self.image + sign * eps) for sign in (1.0, -1.0))

    def start(self) -> torch.Tensor:
        """Stripes along the first spatial axis, one voxel wide along all others."""
        return torch.where(self.signs(1, *self.image.shape[3:]) > 0, self.high, self.low)

    def propose(self, best: torch.Tensor, fraction: float) -> torch.Tensor:
        inside = self.frame.draw(self.frame.sides(fraction), self.source).inside()
        sign = self.signs(*[1] * self.rank)
        corner = torch.where(sign > 0, self.high, self.low)
        same = ~(inside & (corner != best)).flatten(1).any(1).reshape(-1, *[1] * (self.rank + 1))
        return torch.where(inside, torch.where(same, torch.where(sign > 0, self.low, self.high), corner), best)


class MassMoves(Moves):
    """L2 and L1: the change's size in two windows, and what the budget has left, goes to the first of them."""

    def start(self) -> torch.Tensor:
        """A grid of pyramids, of the length of the budget."""
        change = self.threat.restrict(tiles(self.frame, self.source, self.image))
        return self.threat.project(self.image, self.image + self._divided(change, self._total(change)) * self._eps())

    def propose(self, best: torch.Tensor, fraction: float) -> torch.Tensor:
        sides, device = self.frame.sides(fraction, odd=True), self.image.device
        first, second = (self.frame.draw(sides, self.source) for _ in range(2))
        split = (uniform((len(best),), self.source, device) * self.rank).long().clamp_max(self.rank - 1)
        sign = self.signs(*[1] * self.rank)
        here, there = first.inside(), second.inside()
        eta = here * pyramids(first.coordinates(), sides, split, best.dtype)
        eta = self.threat.restrict(eta.expand_as(best))
        change = best - self.image
        mixed = sign * self._unit(eta) + self._unit(change * here)
        power = self.threat.norm
        unused = (self._eps() ** power - self._total(change) ** power).clamp_min(0)
        share = unused if self.threat.per_channel else unused / best.shape[1]
        length = (self._length(change * (here | there)) ** power + share) ** (1 / power)
        moved = torch.where(here, self._unit(mixed) * length, torch.where(there, 0.0, change))
        return self.threat.project(self.image, self.image + moved)

    def _eps(self) -> torch.Tensor:
        return torch.as_tensor(self.threat.eps).to(self.image)

    def _length(self, change: torch.Tensor) -> torch.Tensor:
        """Norm of each channel, ``(B, C, 1, ...)``."""
        return norm_of(change.flatten(2), self.threat.norm).reshape(*change.shape[:2], *[1] * self.rank)

    def _total(self, change: torch.Tensor) -> torch.Tensor:
        """Norm of what has one budget: each channel, or the sample, ``(B, 1, 1, ...)``."""
        lengths = self._length(change)
        return lengths if self.threat.per_channel else norm_of(lengths.movedim(1, -1), self.threat.norm).movedim(-1, 1)

    def _unit(self, change: torch.Tensor) -> torch.Tensor:
        return self._divided(change, self._length(change))

    @staticmethod
    def _divided(change: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        return change / length.clamp_min(torch.finfo(change.dtype).tiny)


def moves(setting: Setting, source: torch.Generator) -> Moves:
    """The moves of the call's norm."""
    return CornerMoves(setting, source) if setting.threat.norm == math.inf else MassMoves(setting, source)
