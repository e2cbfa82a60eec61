# SPDX-License-Identifier: Apache-2.0
"""What the attacks that look for the smallest successful perturbation have in common."""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.argument_kinds import in_range
from monai_smia.attacks.attack import Attack
from monai_smia.attacks.balls import NORMS, faint_norm_of, grouped
from monai_smia.attacks.border_margin import BorderMargin
from monai_smia.attacks.heads import ACTIVATIONS, is_regression
from monai_smia.attacks.hunt import Hunt


def size_of(delta: torch.Tensor, norm: float) -> torch.Tensor:
    """Lp norm of each sample over all its axes, ``(B,)``, also where the squares of an L2 norm would vanish."""
    return faint_norm_of(grouped(delta, False), norm).flatten()


def wide(value: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """One value per sample, ``(B,)``, in a shape that broadcasts against the image."""
    return value.reshape(-1, *[1] * (image.ndim - 1))


def as_positive(name: str, value: Any, zero: bool = False) -> float:
    """A single finite number over 0, or also 0 itself."""
    value = float(in_range(name, value, 0.0, above=not zero))
    if 0 < value < torch.finfo(torch.float32).tiny:
        raise ValueError(f"{name}: expected a number that is not 0 in single precision; got {value!r}")
    return value


@dataclass(frozen=True)
class Sight:
    """An image of a search, as the network judged it; one value per sample.

    Attributes:
        image: ``BCHW[D]``.
        size: norm of its change, in the network's input units.
        success: whether it meets the criterion.
        margin: value of `BorderMargin`.
    """

    image: torch.Tensor
    size: torch.Tensor
    success: torch.Tensor
    margin: torch.Tensor

    @property
    def rank(self) -> torch.Tensor:
        """The size of a success, ``inf`` without one."""
        return torch.where(self.success, self.size, math.inf)

    def or_better(self, other: Sight) -> Sight:
        """Per sample the smaller success; where neither is one, the higher margin, the first among equals."""
        nearer = ~self.success & ~other.success & (other.margin > self.margin)
        swap = (other.rank < self.rank) | nearer
        return Sight(
            torch.where(wide(swap, self.image), other.image, self.image),
            torch.where(swap, other.size, self.size),
            self.success | other.success,
            torch.where(swap, other.margin, self.margin),
        )


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class MinimumNormAttack(Attack, ABC):
    r"""Base of the attacks that return the smallest perturbation that succeeds.

    .. math:: \min_{x'} \|x' - x\|_p \quad \text{such that } x' \text{ meets the criterion}, \quad
              x' \in B_\varepsilon(x) \cap [l, u], \quad x'_i = x_i \text{ for } i \notin M

    Of every sample the smallest success that was seen comes back: the image itself where the criterion is met before
    the attack, and where none was found inside the budget the image that came nearest to one. With an `eps` per channel
    every channel is held to its own, and the norm that is made small is that of all channels together. `loss_function`
    is read for the head and reported.

    Args:
        eps: largest perturbation allowed, in the network's input units; ``inf`` (in JSON ``"inf"``) for no limit.
        activation: the head: ``"softmax"``, ``"sigmoid"``, ``"none"`` (probabilities); ``"auto"`` reads it from the
            loss.

    Raises:
        ValueError: at construction, for a norm that the attack has no rule for, and for a regression loss (there are no
            decisions to cross).
    """

    norms: ClassVar[tuple[float, ...]] = NORMS

    eps: Any = math.inf
    activation: str = "auto"

    def __post_init__(self) -> None:
        unlimited = isinstance(self.eps, (str, float)) and self.eps in ("inf", math.inf)
        if unlimited:
            self._set(eps=0.0)  # the base wants a finite budget
        super().__post_init__()
        if unlimited:
            self._set(eps=math.inf)
        checks.one_of("activation", self.activation, ("auto", *ACTIVATIONS))
        if self.norm not in self.norms:
            raise ValueError(
                f"norm: {type(self).__name__} is for {' and '.join(f'{norm:g}' for norm in self.norms)}; "
                f"got {self.norm:g}"
            )
        if is_regression(self.loss_function):
            raise ValueError(
                f"loss_function: {type(self).__name__} crosses the border of a decision; got the regression loss "
                f"{self.loss_function!r}"
            )

    @property
    def is_random(self) -> bool:
        return False

    @property
    def margin(self) -> BorderMargin:
        """What is positive once a decision is as wanted."""
        return BorderMargin(self.loss_function, self.targeted, self.activation, self.criterion)

    def look(self, hunt: Hunt, at: torch.Tensor, prediction: Any = None) -> Sight:
        """The image `at` and how the network judges it: asked where there is no prediction, or `amp` made it coarse."""
        if prediction is None or self.amp is not None:
            prediction = hunt.query.judge(at)
        with torch.no_grad():
            margin = self.margin.value(prediction, hunt.target)
        return Sight(at, size_of(at - hunt.setting.image, float(self.norm)), hunt.succeeds(prediction), margin)

    def span(self, image: torch.Tensor) -> torch.Tensor:
        """Width of the intensities, ``(B,)``: of `bounds`, averaged over channels, else of each sample; 1 if that is 0.

        Lengths that the papers state for images in [0, 1] are multiplied by it.
        """
        if self.bounds is not None:
            width = torch.tensor(self.bounds[1], dtype=image.dtype) - torch.tensor(self.bounds[0], dtype=image.dtype)
            return width.mean().to(image.device).expand(len(image))
        flat = image.flatten(1)
        width = flat.amax(1) - flat.amin(1)
        return torch.where(width > 0, width, torch.ones_like(width))
