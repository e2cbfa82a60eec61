# SPDX-License-Identifier: Apache-2.0
"""`FMN`: fast minimum-norm attack, in Linf, L2 and L1."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from monai_smia.attacks.adaptive_norm import AdaptiveNormAttack, anneal
from monai_smia.attacks.balls import grouped, project_ball
from monai_smia.attacks.minimum_norm import Sight, wide
from monai_smia.attacks.threat_models import LpBall

_LAST_GAMMA = 1e-4


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class FMN(AdaptiveNormAttack):
    r"""Fast minimum norm: steps on the decision margin f inside a ball that follows the distance to the border.

    .. math:: \delta_{t+1} = \Pi_{\varepsilon_t}\Big(\delta_t + \alpha_t \frac{\nabla f}{\|\nabla f\|_2}\Big), \qquad
              \varepsilon_t = \begin{cases}
              \min\big((1 - \gamma_t)\, \varepsilon_{t-1},\, \|\delta^*\|_p\big) & x + \delta_t \text{ succeeds} \\
              (1 + \gamma_t)\, \varepsilon_{t-1} & \text{another has} \\
              (1 + \gamma_t) \big(\|\delta_t\|_p + |f| / \|\nabla f\|_q\big) & \text{none has yet} \end{cases}

    :math:`\delta^*` is the smallest success so far, q the dual of p; :math:`\alpha_t` and :math:`\gamma_t` fall as
    cosines. f is the classifier's margin, or for dense outputs the mean over voxels of the margin cut off at 0, with
    success as the criterion says.

    Example:
        >>> import torch
        >>> weights = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
        >>> attack = FMN(torch.nn.CrossEntropyLoss(), bounds=(0.0, 1.0))
        >>> image = torch.tensor([[[0.7, 0.5]]])  # the border is where both are 0.6
        >>> result = attack(lambda x: x.flatten(1) @ weights.T, image, torch.tensor([0]))
        >>> bool(result.success), round(float((result.adversarial - image).abs().max()), 3)
        (True, 0.1)

    Reference: Pintor, Roli, Brendel, Biggio, "Fast minimum-norm adversarial attacks through adaptive norm constraints",
    NeurIPS 2021, https://arxiv.org/abs/2102.12827. Deviations: the radius before the first success
    has the factor :math:`1 + \gamma_t`, without which a network that is nearly linear is led to its border and not
    across; the last image is judged, too; starts from the image only; no L0; dense outputs.
    """

    def next_radius(
        self, radius: torch.Tensor, seen: Sight, best: Sight, border: torch.Tensor, progress: float
    ) -> torch.Tensor:
        gamma = anneal(self.gamma, min(self.gamma, _LAST_GAMMA), progress)
        grown = (1 + gamma) * torch.where(best.success, radius, border)
        return torch.where(seen.success, torch.minimum(radius * (1 - gamma), best.size), grown)

    def resize(self, threat: LpBall, image: torch.Tensor, delta: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        if self.norm != 1 or threat.bounds is None:
            return project_ball(grouped(delta, False), radius[:, None, None], float(self.norm)).reshape(delta.shape)
        # to ball and bounds at once, as one after the other would leave most of the radius to voxels without room
        ball = dataclasses.replace(threat, eps=wide(radius, image))
        return ball.project(image, image + delta) - image
