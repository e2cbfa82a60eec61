# SPDX-License-Identifier: Apache-2.0
"""`ParametrizedAttack`: gradient steps on a parameter that the image depends on, instead of on the image itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from monai_smia.attacks.attack import GradientAttack
from monai_smia.attacks.balls import clamp
from monai_smia.attacks.hunt import Hunt, Setting
from monai_smia.attacks.objectives import Deviation
from monai_smia.attacks.steps import Chain, Scale, Step, steepest
from monai_smia.attacks.threat_models import LpBall, ThreatModel


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class ParametrizedAttack(GradientAttack, ABC):
    r"""Base of the attacks whose variable z is not the image.

    .. math:: z_{t+1} = \Pi\big(z_t + \alpha \operatorname{steepest}(J_A^\top \nabla_{x_t} J(f(x_t), y))\big),
              \qquad x_t = A(x, z_t)

    A is the threat model's ``apply`` and :math:`J_A` its Jacobian. The loop is one of its own because the gradient that
    the network gives belongs to the image and has to be pulled back to z.
    """

    @abstractmethod
    def threat_model(self, setting: Setting, progress: float) -> ThreatModel:
        """What z stands for, after the share `progress` of all steps, in [0, 1]; 1 for the image that is returned."""

    def direction(self, setting: Setting) -> Step:
        """From a gradient with respect to z to a step."""
        norm, per_channel = setting.threat.norm, setting.threat.per_channel
        return Chain([steepest(norm, per_channel), Scale(self.stride(setting))])

    def penalty(self, setting: Setting, adversarial: torch.Tensor) -> torch.Tensor | None:
        """What is subtracted from the objective without asking the network, ``(B,)``, differentiable."""
        return None

    def search(self, hunt: Hunt) -> tuple[torch.Tensor, torch.Tensor]:
        setting, image = hunt.setting, hunt.setting.image
        objective, step = Deviation(self.loss_function, self.targeted), self.direction(setting)
        nonfinite = torch.zeros(len(image), dtype=torch.long, device=image.device)
        z = self.threat_model(setting, 0.0).init(image, setting.generator if self.random_start else None)
        state = step.init(z)
        for t in range(self.steps):
            threat = self.threat_model(setting, t / self.steps)
            leaf = z.detach().requires_grad_()
            adversarial = _apply(threat, image, leaf)
            gradient, _, bad = hunt.gradient(objective, adversarial.detach(), t, self.steps)
            nonfinite += bad
            with _full_precision(image):
                value = (gradient * adversarial).sum()
                penalty = self.penalty(setting, adversarial)
                if penalty is not None:
                    value = value - penalty.sum()
                (slope,) = torch.autograd.grad(value, leaf)
            slope = torch.where(bad.reshape(-1, *[1] * (slope.ndim - 1)), 0.0, slope)
            usable = threat.feasible(slope, z.detach())
            update, state = step.update(usable, state)
            z = threat.project(image, z + threat.spend(update, usable, z.detach()))
        return _apply(self.threat_model(setting, 1.0), image, z.detach()), nonfinite


def _full_precision(image: torch.Tensor) -> torch.autocast:
    """Without the caller's autocast, whose rounding would leave the budget and the clean voxels."""
    return torch.autocast(image.device.type, enabled=False)


def _apply(threat: ThreatModel, image: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    with _full_precision(image):
        return threat.apply(image, z)


def confined(ball: LpBall, image: torch.Tensor, adversarial: torch.Tensor) -> torch.Tensor:
    """`adversarial` inside the ball's bounds, and the image itself where its mask forbids a change; differentiable."""
    if ball.bounds is not None:
        adversarial = clamp(adversarial, *ball.bounds)
    return adversarial if ball.mask is None else torch.where(ball.mask, adversarial, image)


def only_linf(name: str, norm: float | str, meaning: str) -> None:
    """Refuse a norm for a budget that is no Lp ball of the image."""
    if norm != float("inf"):
        raise ValueError(f"norm: the budget of {name} is {meaning}, no Lp ball of the image; expected inf; got {norm}")
