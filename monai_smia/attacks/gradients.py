# SPDX-License-Identifier: Apache-2.0
"""Gradients: where and how often the network is asked for the direction of one step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks.diversity import RandomResize
from monai_smia.attacks.steps import Chain, Momentum, Restrict, Step
from monai_smia.attacks.threat_models import Size

Ask = Callable[..., tuple[torch.Tensor, Any]]
"""``ask(image, view=None) -> (gradient, prediction)``: the objective's gradient there; the prediction is detached."""


class Gradient(ABC):
    """How a step's gradient is found; its memory is passed like that of a `Step`."""

    def init(self, z: torch.Tensor) -> Any:
        """The state before the first step; ``None`` where nothing is remembered."""
        return None

    @abstractmethod
    def update(self, ask: Ask, adversarial: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any, Any]:
        """``(gradient, prediction, state)``; the prediction is ``None`` unless it was made at `adversarial` itself."""


@dataclass(frozen=True)
class AtIterate(Gradient):
    """The gradient at the iterate."""

    def update(self, ask: Ask, adversarial: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any, Any]:
        gradient, prediction = ask(adversarial)
        return gradient, prediction, state


@dataclass(frozen=True)
class LookAhead(Gradient):
    r"""Nesterov: the gradient where momentum would carry the iterate, already accumulated.

    .. math:: g_{t+1} = \mu g_t + \frac{\nabla J(x_t + \alpha \mu g_t)}{\|\nabla J\|}

    Args:
        decay: :math:`\mu`.
        step_size: :math:`\alpha`, in network input units.
        unit: divides a gradient by its norm.
        restrict: zeroes what the mask forbids to change.
    """

    decay: float
    step_size: Size
    unit: Step
    restrict: Callable[[torch.Tensor], torch.Tensor]

    @property
    def accumulate(self) -> Chain:
        """From a gradient to the momentum."""
        return Chain([Restrict(self.restrict), self.unit, Momentum(self.decay)])

    def init(self, z: torch.Tensor) -> Any:
        return torch.zeros_like(z), self.accumulate.init(z)

    def update(self, ask: Ask, adversarial: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any, Any]:
        momentum, inner = state
        gradient, _ = ask(adversarial + self.step_size * self.decay * momentum)
        momentum, inner = self.accumulate.update(gradient, inner)
        return momentum, None, (momentum, inner)


@dataclass(frozen=True)
class VarianceTuned(Gradient):
    r"""The gradient at the iterate, corrected by how the last one differed from the mean of its neighbourhood.

    .. math:: \hat g_t = \nabla J(x_t) + v_t, \qquad
              v_{t+1} = \frac{1}{N} \sum_{i=1}^{N} \nabla J(x_t + r_i) - \nabla J(x_t)

    Args:
        neighbours: N.
        draw: a random :math:`r_i` for an image, ``BCHW[D]``.
    """

    neighbours: int
    draw: Callable[[torch.Tensor], torch.Tensor]

    def init(self, z: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(z)

    def update(self, ask: Ask, adversarial: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, Any, Any]:
        gradient, prediction = ask(adversarial)
        total = torch.zeros_like(gradient)
        for _ in range(self.neighbours):
            total = total + ask(adversarial + self.draw(adversarial))[0]
        return gradient + state, prediction, total / self.neighbours - gradient


@dataclass(frozen=True)
class Diverse(Gradient):
    """The gradient through a randomly resized and padded view of the iterate, drawn anew for every sample and step.

    Args:
        resize: the random view.
        generator: its source.
    """

    resize: RandomResize
    generator: torch.Generator

    def update(self, ask: Ask, adversarial: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any, Any]:
        gradient, _ = ask(adversarial, self.resize.draw(adversarial, self.generator))
        return gradient, None, state
