# SPDX-License-Identifier: Apache-2.0
"""`CW`: Carlini and Wagner's minimum-norm attack in L2, over a variable that cannot leave the bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.hunt import Hunt
from monai_smia.attacks.minimum_norm import MinimumNormAttack, as_positive, wide

_INSIDE = 1 - 1e-6  # a voxel on its bound would stand at infinity
_DECAYS = (0.9, 0.999)
_TINY = 1e-8


@dataclass(frozen=True)
class TanhRange:
    r"""Images as :math:`x = m + h \tanh w`, with m the middle of the bounds and h half their width."""

    low: torch.Tensor
    high: torch.Tensor

    def inverse(self, image: torch.Tensor) -> torch.Tensor:
        """The w of an image, finite also on the bounds."""
        place = (2 * image - self.low - self.high) / (self.high - self.low)
        return torch.atanh(place.clamp(-1, 1) * _INSIDE)

    def moved(self, w: torch.Tensor, origin: torch.Tensor) -> torch.Tensor:
        """The change of the image from `origin` to `w`, exactly 0 where they are the same."""
        return (torch.tanh(w) - torch.tanh(origin)) * (self.high - self.low) / 2

    def slope(self, w: torch.Tensor) -> torch.Tensor:
        """Derivative of the image."""
        return (1 - torch.tanh(w).square()) * (self.high - self.low) / 2


@dataclass(frozen=True)
class Adam:
    """State of Adam's descent (Kingma, Ba, 2015), no sample's coupled to another's."""

    mean: torch.Tensor
    square: torch.Tensor
    count: int = 0

    def update(self, gradient: torch.Tensor) -> tuple[torch.Tensor, Adam]:
        """The direction of the next step, and the state after it."""
        a, b = _DECAYS
        new = Adam(a * self.mean + (1 - a) * gradient, b * self.square + (1 - b) * gradient.square(), self.count + 1)
        scale = (new.square / (1 - b**new.count)).sqrt() + _TINY
        return new.mean / (1 - a**new.count) / scale, new


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class CW(MinimumNormAttack):
    r"""Carlini and Wagner: Adam on distance plus c times the missing margin, with a binary search over c.

    .. math:: \min_w \Big\|\frac{x'(w) - x}{u - l}\Big\|_2^2 + c\, \max(-f(x'(w)), 0), \qquad
              x'(w) = \frac{l + u}{2} + \frac{u - l}{2} \tanh w

    f is the classifier's margin (best other class minus label), or for dense outputs the sum over voxels of the margin
    cut off at 0, with success as the criterion says. Every sample has a c of its own: ten times it while no search
    succeeded, then half-way between the largest that failed and the smallest that succeeded. The loop is its own,
    because of that search and because it descends in w. Voxels that stand on a bound hardly move, as in the paper.

    Args:
        bounds: ``(low, high)`` intensity range, needed here.
        steps: Adam's steps in one search, each a forward and a backward pass.
        searches: values of c that are tried.
        step_size: Adam's learning rate, in w, without a unit.
        initial_c: first c, in score units: scores are compared with the squared distance over the squared width of
            `bounds`.

    Raises:
        ValueError: at construction, without `bounds`.

    Example:
        >>> import torch
        >>> weights = torch.tensor([[3.0, 4.0], [-1.0, -1.25]])
        >>> def network(x):
        ...     return x.flatten(1) @ weights.T - torch.tensor([2.0, 0.0])
        >>> image = torch.tensor([[[0.5, 0.4]]])  # its distance to the border is 2.1 / 6.6
        >>> attack = CW(torch.nn.CrossEntropyLoss(), bounds=(0.0, 1.0), steps=100)
        >>> result = attack(network, image, torch.tensor([0]))
        >>> bool(result.success), float((result.adversarial - image).norm()) < 1.05 * 2.1 / 6.6
        (True, True)

    Reference: Carlini, Wagner, "Towards evaluating the robustness of neural networks", IEEE S&P 2017,
    https://arxiv.org/abs/1608.04644. Deviations: distance over the width of `bounds`, so that c and the step size mean
    the same in every unit; no confidence, no early abort and fewer steps (the paper takes 10000); dense outputs.
    """

    norms: ClassVar[tuple[float, ...]] = (2.0,)

    norm: float | str = 2.0
    steps: int = 200
    searches: int = 9
    step_size: float = 0.01
    initial_c: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bounds is None:
            raise ValueError("bounds: CW moves inside the intensity range; expected (low, high), got None")
        checks.as_count("steps", self.steps)
        checks.as_count("searches", self.searches)
        for name in ("step_size", "initial_c"):
            as_positive(name, getattr(self, name))

    def search(self, hunt: Hunt) -> tuple[torch.Tensor, torch.Tensor]:
        threat, image = hunt.setting.threat, hunt.setting.image
        space, margin = self._space(image), self.margin
        width, origin = wide(self.span(image), image), space.inverse(image)
        bad = torch.zeros(len(image), dtype=torch.long, device=image.device)
        c = torch.full((len(image),), self.initial_c, dtype=image.dtype, device=image.device)
        low, high, best = torch.zeros_like(c), torch.full_like(c, math.inf), None
        for trial in range(self.searches):
            w, state = origin, Adam(torch.zeros_like(origin), torch.zeros_like(origin))
            reached = torch.zeros_like(bad, dtype=torch.bool)
            for t in range(self.steps):
                at = threat.project(image, image + space.moved(w, origin))
                gradient, prediction, spoilt = hunt.gradient(
                    margin, at, trial * self.steps + t, self.searches * self.steps
                )
                bad += spoilt
                seen = self.look(hunt, at, prediction)
                best = seen if best is None else best.or_better(seen)
                reached |= seen.success
                # over c where that is large: Adam's direction stays, and no square of a gradient overflows
                missing = wide(c.clamp_max(1.0) * margin.voxels(prediction) * ~(seen.margin > 0), image)
                slope = 2 * (at - image) / width.square() / wide(c.clamp_min(1.0), image) - missing * gradient
                direction, state = state.update(threat.restrict(slope * space.slope(w)))
                w = w - self.step_size * direction
            high = torch.where(reached, torch.minimum(high, c), high)
            low = torch.where(reached, low, torch.maximum(low, c))
            c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)
        assert best is not None
        return best.image, bad

    def _space(self, image: torch.Tensor) -> TanhRange:
        assert self.bounds is not None
        low, high = (checks.spread("bounds", value, image, samples=False) for value in self.bounds)
        return TanhRange(torch.as_tensor(low).to(image), torch.as_tensor(high).to(image))
