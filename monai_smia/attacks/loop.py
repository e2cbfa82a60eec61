# SPDX-License-Identifier: Apache-2.0
"""The one loop behind every attack that follows gradients, and what a named attack hands to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from monai_smia.attacks.gradients import AtIterate, Gradient
from monai_smia.attacks.objectives import Objective
from monai_smia.attacks.query import Query
from monai_smia.attacks.steps import Step
from monai_smia.attacks.threat_models import ThreatModel
from monai_smia.attacks.trial import Trial

Observer = Callable[[Trial, Any], None]
"""``observer(trial, prediction)`` after each gradient; ``None`` unless predicted at ``trial.adversarial``."""


@dataclass(frozen=True)
class Recipe:
    """A named attack, taken apart.

    Attributes:
        objective: what is increased.
        step: how we move, step size included.
        steps: how often.
        gradient: where the gradient is taken.
    """

    objective: Objective
    step: Step
    steps: int
    gradient: Gradient = field(default_factory=AtIterate)


def ascend(
    recipe: Recipe,
    query: Query,
    threat: ThreatModel,
    image: torch.Tensor,
    target: Any,
    start: torch.Tensor,
    observe: Observer,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps along the objective's gradient from `start`, each projected to the threat model.

    A sample's gradient that is not finite counts as zero: it spoils neither the sample's memory nor its batch mates.

    Returns:
        The last adversarial image, ``BCHW[D]``, and how many of each sample's gradients were not finite, ``(B,)``.
    """
    z, state, memory = start, recipe.step.init(start), recipe.gradient.init(start)
    bad = torch.zeros(len(image), dtype=torch.long, device=image.device)
    previous = update = None
    for t in range(recipe.steps):
        adversarial = threat.apply(image, z)
        trial = Trial(
            image=image,
            adversarial=adversarial,
            step=t,
            steps=recipe.steps,
            previous=previous,
            update=update,
            predict=query.predict,
            project=lambda x: threat.project(image, x),
            restrict=threat.restrict,
        )

        def ask(at: torch.Tensor, view: Any = None, trial: Trial = trial) -> tuple[torch.Tensor, Any]:
            gradient, prediction = query.gradient(recipe.objective, at, target, trial, view)
            gradient, spoilt = finite_only(gradient)
            bad.add_(spoilt)
            return gradient, prediction

        gradient, prediction, memory = recipe.gradient.update(ask, adversarial, memory)
        observe(trial, prediction)
        usable = threat.feasible(gradient, z)
        update, state = recipe.step.update(usable, state)
        update = threat.spend(update, usable, z)
        previous, z = adversarial, threat.project(image, z + update)
    return threat.apply(image, z), bad


def finite_only(gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient, zero for each sample in which it is not finite, and which samples those are, ``(B,)`` bool."""
    finite = gradient.flatten(1).isfinite().all(1)
    return torch.where(finite.reshape(-1, *[1] * (gradient.ndim - 1)), gradient, 0.0), ~finite
