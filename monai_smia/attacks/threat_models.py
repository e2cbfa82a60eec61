# SPDX-License-Identifier: Apache-2.0
"""Threat models: what the adversary may do."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from monai_smia.attacks.balls import NORMS, clamp, grouped, norm_of, project_ball, project_ball_in_box, sample_ball

Size = torch.Tensor | float


class ThreatModel(ABC):
    """The set of adversarial images, over a parameter z of which an attack takes steps."""

    @abstractmethod
    def init(self, image: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """The z to start from: the image itself, or a random point of the set where a generator is given."""

    @abstractmethod
    def apply(self, image: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The adversarial image that z stands for."""

    @abstractmethod
    def project(self, image: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The z of the set next to the one given."""

    def restrict(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient over the coordinates that may change; the others zero, before anything is normalised."""
        return gradient

    def feasible(self, gradient: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The gradient over the coordinates that a step from z can use; `restrict` unless a set knows better."""
        return self.restrict(gradient)

    def spend(self, update: torch.Tensor, gradient: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The step from z with the part that the set would cut off put to use; as it is unless a set knows better.

        Args:
            update: the step, ``BCHW[D]``.
            gradient: what `feasible` gave for it.
            z: where it leaves from.
        """
        return update


@dataclass(frozen=True)
class LpBall(ThreatModel):
    r"""Images within an Lp ball around the clean one, inside the intensity bounds, changed only where the mask allows.

    .. math:: \{x' : \|x' - x\|_p \le \varepsilon,\; l \le x' \le u,\; x'_i = x_i \text{ for } i \notin M\}

    z is the adversarial image itself. The projection goes to the ball, then to the bounds; as the clean image is
    inside the bounds, the result is inside both. In L1 it goes to the nearest point inside both.

    Args:
        eps: radius, in the network's input units: a number, or a tensor that broadcasts against ``BCHW[D]``. With one
            value per channel each channel has a ball of its own.
        norm: ``inf``, 2 or 1.
        bounds: lowest and highest intensity, each a number or a tensor that broadcasts against ``BCHW[D]``; ``None``
            for none.
        mask: boolean, broadcasts against ``BCHW[D]``; ``None`` allows a change everywhere.

    Example:
        >>> ball = LpBall(eps=0.1, bounds=(0.0, 1.0))
        >>> ball.project(torch.tensor([[[0.5, 0.95]]]), torch.tensor([[[0.9, 2.0]]]))
        tensor([[[0.6000, 1.0000]]])
    """

    eps: Size
    norm: float = math.inf
    bounds: tuple[Size, Size] | None = None
    mask: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.eps, torch.Tensor):
            if isinstance(self.eps, bool) or not isinstance(self.eps, (int, float)):
                raise TypeError(f"eps: expected a number, or a tensor; got {self.eps!r}")
            if not (0 <= self.eps <= sys.float_info.max or self.eps == math.inf):  # infinity is no limit
                raise ValueError(f"eps: expected a number >= 0; got {self.eps!r}")
            object.__setattr__(self, "eps", float(self.eps))  # torch has no whole numbers over 64 bits
        if not isinstance(self.norm, (int, float)) or self.norm not in NORMS:
            raise ValueError(f"norm: expected inf, 2 or 1; got {self.norm!r}")

    def init(self, image: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        if generator is None:
            return image.clone()
        return self._confine(image, image + self.draw(image, generator))

    def draw(self, image: torch.Tensor, generator: torch.Generator, factor: float = 1.0) -> torch.Tensor:
        """A change drawn uniformly from the ball of radius ``factor * eps``, zero where the mask forbids one."""
        where = None if self.mask is None else self._flatten(self.mask.expand_as(image))
        radius = self._radius() * factor
        return sample_ball(self._flatten(image), radius, self.norm, generator, where).reshape(image.shape)

    def gaussian(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Gaussian noise of this size: standard deviation eps for Linf, length eps for L2 and L1."""
        noise = torch.randn(image.shape, generator=generator, dtype=image.dtype, device=generator.device).to(
            image.device
        )
        noise = self.restrict(noise)
        if self.norm != math.inf:
            flat = self._flatten(noise)
            noise = (flat / norm_of(flat, self.norm).clamp_min(torch.finfo(flat.dtype).tiny)).reshape(image.shape)
        return self.project(image, image + noise * self.eps)

    def apply(self, image: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return z

    def project(self, image: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        if self.norm == math.inf:
            delta = clamp(z - image, -self.eps, self.eps)
        else:
            delta = self._project(image, self._flatten(self.restrict(z - image))).reshape(image.shape)
        return self._confine(image, image + delta)

    def restrict(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient if self.mask is None else torch.where(self.mask, gradient, torch.zeros_like(gradient))

    def feasible(self, gradient: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """As `restrict`; of an L1 ball also without the voxels that are at a bound and would leave it.

        An L1 step takes the few voxels of the largest gradient. Those at their bound would be taken again and again,
        to no effect; in L2 and Linf every voxel has its own share of the step, and the projection is enough.
        """
        gradient = self.restrict(gradient)
        if self.norm != 1 or self.bounds is None:
            return gradient
        low, high = self.bounds
        stuck = ((gradient > 0) & (z >= high)) | ((gradient < 0) & (z <= low))
        return torch.where(stuck, torch.zeros_like(gradient), gradient)

    def spend(self, update: torch.Tensor, gradient: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """In L1 with bounds, what a step has left over at the bounds goes to the voxels of the next largest gradient.

        An L1 step gives a few voxels more than most have room for. Were the rest lost, every step would refill the
        voxels that the last projection took a little from, and no other would ever get its share. No voxel is moved
        further than the step moves its furthest one.
        """
        if self.norm != 1 or self.bounds is None:
            return update
        low, high = self.bounds
        step, slope = self._flatten(update), self._flatten(gradient)
        up, down = self._flatten((high - z).clamp_min(0)), self._flatten((z - low).clamp_min(0))
        taken = torch.minimum(step.abs(), torch.where(step > 0, up, down))
        left = (step.abs() - taken).sum(-1, keepdim=True)
        most = step.abs().amax(-1, keepdim=True)
        free = torch.where((step == 0) & (slope != 0), torch.minimum(torch.where(slope > 0, up, down), most), 0.0)
        order = torch.where(free > 0, slope.abs(), 0.0).argsort(dim=-1, descending=True)
        room = free.gather(-1, order)
        given = torch.minimum((left - (room.cumsum(-1) - room)).clamp_min(0), room)
        spilt = torch.zeros_like(step).scatter(-1, order, given) * slope.sign()
        return (step.sign() * taken + spilt).reshape(update.shape)

    def _project(self, image: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """A flat change, to the L2 ball, or to the L1 ball and the bounds."""
        if self.norm == 2 or self.bounds is None:
            return project_ball(change, self._radius(), self.norm)
        low, high = (self._flatten(torch.as_tensor(bound).to(image) - image) for bound in self.bounds)
        return project_ball_in_box(change, self._radius(), low, high)

    def _confine(self, image: torch.Tensor, adversarial: torch.Tensor) -> torch.Tensor:
        if self.bounds is not None:
            adversarial = clamp(adversarial, *self.bounds)
        return adversarial if self.mask is None else torch.where(self.mask, adversarial, image)

    @property
    def per_channel(self) -> bool:
        """Whether every channel has a ball of its own."""
        return isinstance(self.eps, torch.Tensor) and self.eps.ndim > 1 and self.eps.shape[1] > 1

    def _flatten(self, image: torch.Tensor) -> torch.Tensor:
        return grouped(image, self.per_channel)

    def _radius(self) -> Size:
        return self.eps.flatten(2) if isinstance(self.eps, torch.Tensor) and self.eps.ndim > 2 else self.eps
