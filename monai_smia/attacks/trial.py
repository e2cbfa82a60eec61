# SPDX-License-Identifier: Apache-2.0
"""`Trial`: what an objective may look at besides the prediction and the target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Trial:
    """One iteration of an attack, as its objective, its gradient and its observers see it.

    Attributes:
        image: clean image, ``BCHW[D]``, in the network's input units.
        adversarial: current iterate, ``BCHW[D]``, detached.
        step: index of the iteration, from 0.
        steps: number of iterations.
        previous: the iterate before the last step; ``None`` at the first iteration.
        update: the last step before projection, so that ``adversarial = project(previous + update)``.
        predict: network and inferer; every call is counted as a forward pass.
        project: brings any image back to the threat model (budget, mask, bounds).
        restrict: zeroes a gradient where the mask forbids a change.
        asked: what the objective asked of the network beside the iterate's own prediction, see `Objective`.
    """

    image: torch.Tensor
    adversarial: torch.Tensor
    step: int
    steps: int
    previous: torch.Tensor | None
    update: torch.Tensor | None
    predict: Callable[[torch.Tensor], Any]
    project: Callable[[torch.Tensor], torch.Tensor]
    restrict: Callable[[torch.Tensor], torch.Tensor]
    asked: Any = None

    @property
    def progress(self) -> float:
        """``t / T``, in [0, 1)."""
        return self.step / self.steps
