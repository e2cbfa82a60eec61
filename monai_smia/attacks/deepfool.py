# SPDX-License-Identifier: Apache-2.0
"""`DeepFool`: to the nearest border of the linearised network, in L2 and Linf."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.border_margin import BorderMargin
from monai_smia.attacks.hunt import Hunt
from monai_smia.attacks.loop import finite_only
from monai_smia.attacks.minimum_norm import MinimumNormAttack, as_positive, size_of, wide
from monai_smia.attacks.objectives import Differentiate, Objective
from monai_smia.attacks.trial import Trial

_LEAST = 1e-4  # of the perturbation: the shortest step


@dataclass(frozen=True)
class NearestBorder(Objective):
    """Instead of a gradient, the smallest step to a border of the linearised network; one forward pass, D backward.

    Args:
        margin: gives the values whose zeros are the borders.
        candidates: how many of them, the nearest to zero by value, are linearised.
        norm: ``inf`` or 2.
    """

    margin: BorderMargin
    candidates: int
    norm: float

    def __call__(self, prediction: Any, target: Any, trial: Trial) -> torch.Tensor:
        return self.margin(prediction, target, trial)

    def gradient(self, prediction: Any, target: Any, trial: Trial, differentiate: Differentiate) -> torch.Tensor:
        values = self.margin.nearest(prediction, target, self.candidates)
        step = torch.zeros_like(trial.adversarial)
        length = torch.full((len(step),), math.inf, dtype=step.dtype, device=step.device)
        spoilt = torch.zeros(len(step), dtype=torch.bool, device=step.device)
        for index, value in enumerate(values.unbind(1)):
            slope = differentiate(value, retain_graph=index + 1 < values.shape[1])
            slope, bad = finite_only(slope)
            slope, spoilt = trial.restrict(slope), spoilt | bad
            steepness = size_of(slope, 1 if self.norm == math.inf else 2)
            border = value.detach().to(step).abs() / steepness  # NaN, as inf, is no border
            nearer = border < length
            direction = slope.sign() if self.norm == math.inf else slope / wide(steepness, slope)
            step = torch.where(wide(nearer, step), wide(border, step) * direction, step)
            length = torch.where(nearer, border, length)
        return step.masked_fill(wide(spoilt, step), math.nan)  # reported as a gradient that is not finite


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class DeepFool(MinimumNormAttack):
    r"""DeepFool: step after step to the nearest border of the network's linearisation, until the criterion is met.

    .. math:: x_{t+1} = \Pi\Big(x_t + (1 + \eta) \frac{|f_k|}{\|\nabla f_k\|_q}\, d_k\Big), \qquad
              k = \operatorname{argmin}_k \frac{|f_k|}{\|\nabla f_k\|_q}, \qquad
              d_k = \frac{\nabla f_k}{\|\nabla f_k\|_2} \text{ (L2)},\; \operatorname{sign} \nabla f_k
              \text{ (Linf)}

    :math:`f_k` is class k's score minus the label's; for a multi-label classifier label k's margin; for dense outputs,
    and towards a target, the one value of `BorderMargin`: the mean over voxels of the margin cut off at 0. q is the
    dual of the norm. The loop is its own, because every sample stops by itself and every class has its gradient.

    Args:
        steps: largest number of iterations, each a forward pass and up to `candidates` backward passes; the attack ends
            when every sample succeeded.
        overshoot: :math:`\eta`, not negative: what crosses the border after stepping to it.
        candidates: classes that are linearised, those that score highest.

    Example:
        >>> import torch
        >>> weights = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> image = torch.tensor([[[0.1, 0.05]]])  # its distance to the border is 0.5 / 5
        >>> result = DeepFool(torch.nn.CrossEntropyLoss())(lambda x: x.flatten(1) @ weights.T, image, torch.tensor([0]))
        >>> bool(result.success), round(float((result.adversarial - image).norm()), 4)  # 1.02 times the distance
        (True, 0.102)

    Reference: Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool deep neural networks",
    CVPR 2016, https://arxiv.org/abs/1511.04599. Deviations: overshoots at every step, as the authors' code does, not
    once at the end; the highest `candidates` classes are those of the iterate, not of the image; away from the label,
    not from the clean prediction; a step is at least a ten-thousandth of the perturbation, so that rounding does not
    stop it on the border (the authors' code adds 1e-4); bounds, budget and mask at every step; targeted; dense outputs.
    """

    norms: ClassVar[tuple[float, ...]] = (2.0, math.inf)

    norm: float | str = 2.0
    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.as_count("steps", self.steps)
        checks.as_count("candidates", self.candidates)
        as_positive("overshoot", self.overshoot, zero=True)

    def search(self, hunt: Hunt) -> tuple[torch.Tensor, torch.Tensor]:
        threat, image = hunt.setting.threat, hunt.setting.image
        objective = NearestBorder(self.margin, self.candidates, float(self.norm))
        bad = torch.zeros(len(image), dtype=torch.long, device=image.device)
        best, at = None, self.start(hunt.setting)
        for t in range(self.steps):
            step, prediction, spoilt = hunt.gradient(objective, at, t, self.steps)
            bad += spoilt
            seen = self.look(hunt, at, prediction)
            best = seen if best is None else best.or_better(seen)
            if bool(best.success.all()):
                return best.image, bad
            length = size_of(step, float(self.norm))
            longer = (_LEAST * seen.size / length).clamp_min(1.0).nan_to_num(1.0, posinf=1.0)
            onward = threat.project(image, at + (1 + self.overshoot) * wide(longer, image) * step)
            at = torch.where(wide(best.success, image), at, onward)
        assert best is not None
        return best.or_better(self.look(hunt, at)).image, bad
