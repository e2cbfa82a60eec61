# SPDX-License-Identifier: Apache-2.0
"""`DDN`: decoupled direction and norm, a minimum-norm attack in L2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.adaptive_norm import AdaptiveNormAttack
from monai_smia.attacks.minimum_norm import Sight, as_positive, size_of, wide
from monai_smia.attacks.threat_models import LpBall


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class DDN(AdaptiveNormAttack):
    r"""Decoupled direction and norm: the margin's gradient turns the perturbation, success alone sets its length.

    .. math:: \varepsilon_t = (1 \mp \gamma)\, \varepsilon_{t-1}, \qquad
              u = \delta_t + \alpha_t \frac{\nabla f}{\|\nabla f\|_2}, \qquad
              \delta_{t+1} = \varepsilon_t \frac{u}{\|u\|_2}

    minus where :math:`x + \delta_t` succeeds, plus where it does not. f is the classifier's margin (best other class
    minus label), or for dense outputs the mean over voxels of the margin cut off at 0, with success as the criterion
    says.

    Args:
        initial_norm: :math:`\varepsilon_0`, in the network's input units; the paper's is 1 for images in [0, 1].
            ``None`` is :math:`1 + \gamma` times the distance to the border of the linearised network, and until a
            first success the radius is that at least: from a fixed one a large image's border would not be
            reached in `steps`.

    Example:
        >>> import torch
        >>> weights = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> image = torch.tensor([[[0.1, 0.05]]])  # its distance to the border is 0.5 / 5
        >>> result = DDN(torch.nn.CrossEntropyLoss())(lambda x: x.flatten(1) @ weights.T, image, torch.tensor([0]))
        >>> bool(result.success), 0.1 <= float((result.adversarial - image).norm()) <= 0.105
        (True, True)

    Reference: Rony, Hafemann, Oliveira, Ben Ayed, Sabourin, Granger, "Decoupling direction and norm for efficient
    gradient-based L2 adversarial attacks and defenses", CVPR 2019, https://arxiv.org/abs/1811.09600. Deviations:
    follows the margin, not the cross-entropy, whose gradient mixes all classes and all labels; a gradient of zero does
    not move the image (the published code takes a random one); the last image is judged, too; no quantisation to grey
    levels; dense outputs.
    """

    norms: ClassVar[tuple[float, ...]] = (2.0,)

    norm: float | str = 2.0
    initial_norm: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial_norm is not None:
            self._set(initial_norm=as_positive("initial_norm", self.initial_norm))

    def next_radius(
        self, radius: torch.Tensor, seen: Sight, best: Sight, border: torch.Tensor, progress: float
    ) -> torch.Tensor:
        followed = radius * torch.where(seen.success, 1 - self.gamma, 1 + self.gamma)
        if self.initial_norm is None:  # until a first success at least across the border, which may be far
            across = border * (1 + self.gamma)
            first = torch.where(border.isfinite(), across, self.span(seen.image))
            further = torch.where(border.isfinite(), torch.maximum(followed, across), followed)
            followed = torch.where(best.success, followed, further)
        else:
            first = torch.full_like(radius, self.initial_norm)
        return self._capped(torch.where(radius.isfinite(), followed, first), seen.image)

    def resize(self, threat: LpBall, image: torch.Tensor, delta: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        size = size_of(delta, 2)
        return delta * wide(radius / torch.where(size > 0, size, torch.ones_like(size)), delta)

    def _capped(self, radius: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Not over the budget, or over the channels' budgets together: what is outside would take steps to shrink."""
        eps = torch.as_tensor(checks.spread("eps", self.eps, image)).to(image)
        return torch.minimum(radius, size_of(eps.reshape(len(eps) if eps.ndim else 1, -1), 2))
