# SPDX-License-Identifier: Apache-2.0
"""Paces: how APGD steps, how far, and which samples go back to their best point at a checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch

from monai_smia.attacks.balls import grouped
from monai_smia.attacks.steps import steepest
from monai_smia.attacks.threat_models import LpBall

SPARSE_START = 0.2  # share of the coordinates that the first L1 steps move
SPARSE_CUT = 1.5  # a step moves the coordinates that the best point changed, divided by this; and so shrink the steps
SPARSE_LEAST = 0.1  # of the first step size


def checkpoints(steps: int) -> tuple[int, ...]:
    r"""After how many steps APGD looks back, :math:`w_j = \lceil p_j N \rceil`.

    .. math:: p_0 = 0, \quad p_1 = 0.22, \quad p_{j+1} = p_j + \max(p_j - p_{j-1} - 0.03,\; 0.06)

    Example:
        >>> checkpoints(100)
        (22, 41, 57, 70, 80, 87, 93, 99)
    """
    marks, percent, width = [], 22, 22
    while percent <= 100:
        marks.append(-(-percent * steps // 100))
        width = max(width - 3, 6)
        percent += width
    return tuple(sorted(set(marks)))


@dataclass(frozen=True)
class Progress:
    """What a checkpoint looks at, for each sample.

    Attributes:
        rises: steps since the last checkpoint that increased the objective, ``(B,)``.
        window: steps since the last checkpoint.
        peak: highest value so far, ``(B,)``.
        change: the image of that value less the clean one, ``BCHW[D]``.
    """

    rises: torch.Tensor
    window: int
    peak: torch.Tensor
    change: torch.Tensor


class Pace(ABC):
    """Immutable; a checkpoint answers with the next one."""

    @abstractmethod
    def marks(self, steps: int) -> tuple[int, ...]:
        """After how many steps there is a checkpoint."""

    @abstractmethod
    def step(
        self,
        threat: LpBall,
        image: torch.Tensor,
        x: torch.Tensor,
        previous: torch.Tensor | None,
        gradient: torch.Tensor,
    ) -> torch.Tensor:
        """The next iterate, inside the threat model; `previous` is the one before `x`, `None` at the first step."""

    @abstractmethod
    def look_back(self, progress: Progress) -> tuple[Pace, torch.Tensor]:
        """The pace from here on, and which samples go back to their best point, ``(B,)`` bool."""


def _wide(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Halving(Pace):
    r"""Steepest steps with momentum in Linf and L2, halved where they bring nothing.

    .. math:: z = \Pi(x_k + \eta\, \operatorname{steepest}(g)), \qquad
              x_{k+1} = \Pi\big(x_k + \alpha (z - x_k) + (1 - \alpha)(x_k - x_{k-1})\big)

    :math:`\eta` starts at 2 eps. At a checkpoint it is halved, and the sample goes back, where fewer than
    :math:`\rho` of the steps since the last one increased the objective, or where it was not halved there and no new
    peak came since.

    Args:
        rho: share of steps that must have increased the objective, in [0, 1].
        momentum: :math:`\alpha`, in (0, 1]; the first step has 1.
        scale: step size over eps, ``(B,)``.
        halved: whether the last checkpoint halved it, ``(B,)`` bool.
        peak: highest value at the last checkpoint, ``(B,)``; ``None`` before the first.
    """

    rho: float
    momentum: float
    scale: torch.Tensor
    halved: torch.Tensor
    peak: torch.Tensor | None = None

    @classmethod
    def begin(cls, image: torch.Tensor, rho: float, momentum: float) -> Halving:
        some = torch.zeros(len(image), dtype=torch.bool, device=image.device)
        return cls(rho, momentum, torch.full_like(some, 2.0, dtype=image.dtype), some)

    def marks(self, steps: int) -> tuple[int, ...]:
        return checkpoints(steps)

    def step(
        self,
        threat: LpBall,
        image: torch.Tensor,
        x: torch.Tensor,
        previous: torch.Tensor | None,
        gradient: torch.Tensor,
    ) -> torch.Tensor:
        kind = steepest(threat.norm, threat.per_channel)
        direction, _ = kind.update(gradient, kind.init(gradient))
        z = threat.project(image, x + threat.eps * _wide(self.scale, x) * direction)
        if previous is None:
            return z
        return threat.project(image, x + self.momentum * (z - x) + (1 - self.momentum) * (x - previous))

    def look_back(self, progress: Progress) -> tuple[Pace, torch.Tensor]:
        back = progress.rises < self.rho * progress.window
        if self.peak is not None:
            back = back | (~self.halved & (progress.peak <= self.peak))
        scale = torch.where(back, self.scale / 2, self.scale)
        return replace(self, scale=scale, halved=back, peak=progress.peak), back


@dataclass(frozen=True)
class Sparse(Pace):
    r"""Signs of the largest components in L1, as many as the best point suggests, projected to ball and bounds at once.

    .. math:: x_{k+1} = \Pi\Big(x_k + \eta\, \frac{s}{\|s\|_1}\Big), \qquad
              s = \operatorname{sign}(g) \text{ on its largest components, else } 0

    :math:`\eta` starts at eps, and s with a fifth of the coordinates. At a checkpoint s gets the number of coordinates
    that the best point changed, divided by 1.5. Where that number fell by 5 % the step size is eps again and the sample
    goes back; elsewhere the step is divided by 1.5, down to eps / 10. Numbers of coordinates are rounded down, to
    one at least.

    Args:
        scale: step size over eps, ``(B,)``.
        moves: how many components of each ball move, ``(B, G, 1)``.
        changed: how many coordinates the best point changed at the last checkpoint, ``(B,)``; at first all.

    Reference: Croce, Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021,
    https://arxiv.org/abs/2103.01208. Deviations: the authors' code rounds numbers of coordinates up, and so never
    gets from two to one, the optimum of a linear network; bounds are those given, not [0, 1]; with an eps for each
    channel every channel has its own coordinates.
    """

    scale: torch.Tensor
    moves: torch.Tensor
    changed: torch.Tensor

    @classmethod
    def begin(cls, threat: LpBall, image: torch.Tensor) -> Sparse:
        allowed = grouped(threat.restrict(torch.ones_like(image)), threat.per_channel).sum(2, keepdim=True)
        whole = allowed.flatten(1).sum(1)
        return cls(torch.ones_like(whole), SPARSE_START * allowed, whole)

    def marks(self, steps: int) -> tuple[int, ...]:
        every = max(4 * steps // 100, 1)
        return tuple(range(every, steps, every))

    def step(
        self,
        threat: LpBall,
        image: torch.Tensor,
        x: torch.Tensor,
        previous: torch.Tensor | None,
        gradient: torch.Tensor,
    ) -> torch.Tensor:
        flat = grouped(gradient, threat.per_channel)
        magnitude = flat.abs()
        rank = self.moves.long().clamp(1, flat.shape[2]) - 1
        least = magnitude.sort(dim=-1, descending=True).values.gather(-1, rank)
        signs = flat.sign() * (magnitude >= least)
        direction = (signs / signs.abs().sum(-1, keepdim=True).clamp_min(1)).reshape(x.shape)
        moved = x + threat.eps * _wide(self.scale, x) * direction
        return threat.project(image, moved)

    def look_back(self, progress: Progress) -> tuple[Pace, torch.Tensor]:
        groups = grouped(progress.change != 0, self.moves.shape[1] > 1)
        count = groups.sum(2, keepdim=True).to(self.moves)
        changed = count.flatten(1).sum(1)
        sparser = changed < 0.95 * self.changed
        scale = torch.where(sparser, 1.0, (self.scale / SPARSE_CUT).clamp_min(SPARSE_LEAST))
        return Sparse(scale, count / SPARSE_CUT, changed), sparser
