# SPDX-License-Identifier: Apache-2.0
"""`Setting` and `Hunt`: what the search of one call works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks.loop import Observer, finite_only
from monai_smia.attacks.objectives import Objective
from monai_smia.attacks.query import Query
from monai_smia.attacks.threat_models import LpBall
from monai_smia.attacks.trial import Trial


@dataclass(frozen=True)
class Setting:
    """One call, as `Attack.compose` sees it.

    Attributes:
        image: clean image, ``BCHW[D]``, plain tensor.
        threat: the ball, resolved for this image.
        generator: source of all randomness of the call.
        spacing: millimetres per voxel of each sample, ``None`` where the image carries no affine.
        voxel_volumes: mm³ (2-D: mm²) of a voxel of each sample, one where all agree.
    """

    image: torch.Tensor
    threat: LpBall
    generator: torch.Generator
    spacing: tuple[tuple[float, ...], ...] | None
    voxel_volumes: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Hunt:
    """What the search of one call works with.

    Attributes:
        query: the network; every prediction and gradient is counted there.
        setting: the call.
        target: the labels.
        losses: a prediction's loss, ``(B,)``, without a graph.
        succeeds: a prediction's success by the attack's criterion, ``(B,)`` bool.
        observe: to be called after each gradient, or after each step of an attack that has none.
    """

    query: Query
    setting: Setting
    target: Any
    losses: Callable[[Any], torch.Tensor]
    succeeds: Callable[[Any], torch.Tensor]
    observe: Observer

    def gradient(
        self, objective: Objective, at: torch.Tensor, step: int, steps: int
    ) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """One gradient, for loops of their own; observed.

        Args:
            objective: what is increased.
            at: iterate, ``BCHW[D]``.
            step, steps: which of how many.

        Returns:
            The gradient where the mask allows a change, zero for a sample of which it is not finite; the prediction;
            which samples' gradients were not finite, ``(B,)`` bool.
        """
        threat, image = self.setting.threat, self.setting.image
        trial = Trial(
            image=image,
            adversarial=at,
            step=step,
            steps=steps,
            previous=None,
            update=None,
            predict=self.query.predict,
            project=lambda x: threat.project(image, x),
            restrict=threat.restrict,
        )
        gradient, prediction = self.query.gradient(objective, at, self.target, trial)
        gradient, bad = finite_only(gradient)
        self.observe(trial, prediction)
        return threat.restrict(gradient), prediction, bad
