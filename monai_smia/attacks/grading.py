# SPDX-License-Identifier: Apache-2.0
"""Clinical goal of a grader: carry a grade across a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.data import MetaTensor

from monai_smia.attacks import checks
from monai_smia.attacks.clinical import ClinicalGoal
from monai_smia.attacks.heads import LossFunction, main_output

READINGS = ("argmax", "expected", "count", "value")


@dataclass(frozen=True, repr=False)
class CrossGrade(ClinicalGoal):
    r"""A predicted grade at or above a threshold, or under it.

    .. math:: g(f(x')) \ge \tau \;\text{ (up)}, \qquad g(f(x')) < \tau \;\text{ (down)}

    Its loss is `GradeDistance`, whose sign tells whether the threshold is crossed, whichever grade is reached.

    Args:
        threshold: :math:`\tau`, in grades, which count from 0: 2 is "referable" where grades 2 and above are referred.
            Rounded regressions cross at halves.
        direction: ``"up"`` or ``"down"``.
        reading: how the grade g is read. ``"argmax"``: the likeliest of exclusive grades ``(B, C)``; ``"expected"``:
            their mean by probability; ``"count"``: of channels "grade at least 1, 2, ..." how many say yes;
            ``"value"``: the output itself, ``(B,)`` or ``(B, 1)``.
        probabilities: whether the network ends in its softmax or sigmoid; not looked at for ``"value"``.

    Raises:
        TypeError, ValueError: at construction, naming the argument; at the call for outputs of another shape, or
            where no grade lies on one side of the threshold.

    Example:
        >>> goal = CrossGrade(2, direction="up")
        >>> goal.target(torch.tensor([0, 3]))
        tensor([2, 3])
        >>> logits = torch.tensor([[1.0, 3.0, 2.5, 0.0], [0.0, 1.0, 0.0, 4.0]])
        >>> goal(logits, None), goal.loss()(logits, None)
        (tensor([False,  True]), tensor([ 0.5000, -3.0000]))
    """

    threshold: float
    direction: str = field(kw_only=True)
    reading: str = field(default="argmax", kw_only=True)
    probabilities: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not (isinstance(self.threshold, (int, float)) and math.isfinite(self.threshold)):
            raise ValueError(f"threshold: expected a finite number of grades; got {self.threshold!r}")
        checks.one_of("direction", self.direction, ("up", "down"))
        checks.one_of("reading", self.reading, READINGS)

    @property
    def unit(self) -> str:
        return "grade"

    @property
    def first(self) -> int:
        """The lowest whole grade at or above the threshold."""
        return math.ceil(self.threshold)

    def loss(self, loss_function: LossFunction | None = None) -> LossFunction:
        """`GradeDistance`; the network's own is not needed, but may be used instead with this goal's target."""
        return GradeDistance(self)

    def target(self, label: torch.Tensor, prediction: Any = None) -> torch.Tensor:
        """The grade of each sample where it lies across already, else the nearest whole one that does.

        Args:
            label: grades, ``(B,)`` or ``(B, 1)``.
            prediction: where given, its grades are taken, not the label's.
        """
        label = label.as_tensor() if isinstance(label, MetaTensor) else label
        if label.ndim not in (1, 2) or (label.ndim == 2 and label.shape[1] != 1):
            raise ValueError(f"label: expected grades (B,) or (B, 1); got {tuple(label.shape)}")
        grade = label if prediction is None else self.measure(prediction).reshape(label.shape)
        nearest = self.first if self.direction == "up" else self.first - 1
        return torch.where(self._across(grade), grade, torch.full_like(grade, nearest)).to(label.dtype)

    def measure(self, prediction: Any, target: Any = None) -> torch.Tensor:
        """The grade, ``(B,)``, floating."""
        scores = self._scores(prediction)
        if self.reading == "argmax":
            return scores.max(1).indices.to(scores.dtype)
        if self.reading == "count":
            return (scores > 0).sum(1).to(scores.dtype)
        if self.reading == "expected":
            return scores.softmax(1) @ torch.arange(scores.shape[1], dtype=scores.dtype, device=scores.device)
        return scores

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        return self._across(self.measure(prediction))

    def distance(self, prediction: Any) -> torch.Tensor:
        """What is left to the threshold, ``(B,)``, differentiable, see `GradeDistance`."""
        scores = self._scores(prediction)
        if self.reading == "argmax":
            left = scores[:, : self.first].max(1).values - scores[:, self.first :].max(1).values
        elif self.reading == "count":
            left = -scores.sort(1, descending=True).values[:, self.first - 1]
        elif self.reading == "expected":
            offset = torch.arange(scores.shape[1], dtype=scores.dtype, device=scores.device) - self.threshold
            weighted = scores + offset.abs().log()
            left = weighted[:, offset < 0].logsumexp(1) - weighted[:, offset > 0].logsumexp(1)
        else:
            left = self.threshold - scores
        return left if self.direction == "up" else -left

    def _across(self, grade: torch.Tensor) -> torch.Tensor:
        return grade >= self.threshold if self.direction == "up" else grade < self.threshold

    def _scores(self, prediction: Any) -> torch.Tensor:
        """Logits ``(B, C)``, or values ``(B,)``."""
        output = main_output(prediction)
        if self.reading == "value":
            if output.ndim > 2 or (output.ndim == 2 and output.shape[1] != 1):
                raise ValueError(f"prediction: expected values (B,) or (B, 1); got {tuple(output.shape)}")
            return output.reshape(len(output))
        if output.ndim != 2:
            raise ValueError(f"prediction: expected grades (B, C); got {tuple(output.shape)}")
        top = output.shape[1] if self.reading == "count" else output.shape[1] - 1
        if not 0 < self.threshold <= top or (self.reading == "expected" and self.threshold == top):
            raise ValueError(
                f"threshold: expected one inside the grades 0 to {top} of the prediction; got {self.threshold:g}"
            )
        if not self.probabilities:
            return output
        tiny = torch.finfo(output.dtype).tiny
        log_p = output.clamp_min(tiny).log()
        return log_p - (1 - output).clamp_min(tiny).log() if self.reading == "count" else log_p


@dataclass(frozen=True)
class GradeDistance:
    r"""How far the grader is from the threshold of a `CrossGrade`, on the scale of its logits or of its value.

    For the way up; the way down is its negative. With z the logits,

    .. math::
        \text{argmax: } & \max_{k < \tau} z_k - \max_{k \ge \tau} z_k \\
        \text{expected: } & \log \sum_{k < \tau} (\tau - k)\, e^{z_k} - \log \sum_{k > \tau} (k - \tau)\, e^{z_k} \\
        \text{count: } & - z_{(\lceil \tau \rceil)}, \text{ the } \lceil \tau \rceil \text{-th largest logit} \\
        \text{value: } & \tau - f(x)

    Each is under 0 where the threshold is crossed and above 0 where it is not, and has a slope also where the
    probabilities round to 0 and 1. The expected grade :math:`\sum_k k\, p_k` is at least :math:`\tau` where
    :math:`\sum_k (k - \tau)\, p_k \ge 0`, whose positive and negative terms are compared here.

    Args:
        goal: the threshold and how grades are read.
    """

    goal: CrossGrade

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        """The distance of each sample, ``(B,)``; the target is not looked at."""
        return self.goal.distance(prediction)
