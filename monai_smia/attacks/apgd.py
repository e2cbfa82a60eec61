# SPDX-License-Identifier: Apache-2.0
"""`APGD`: PGD that finds its own step size, on any of several objectives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.attack import Attack, Verdict
from monai_smia.attacks.heads import ACTIVATIONS, is_regression
from monai_smia.attacks.hunt import Hunt, Setting
from monai_smia.attacks.margins import OBJECTIVES, CrossEntropy, Decisions, HeadObjective, named_objective
from monai_smia.attacks.objectives import Objective
from monai_smia.attacks.pacing import Halving, Pace, Progress, Sparse

ROUNDING = 1e-6  # of shares that add up to 1


@dataclass(frozen=True)
class Peak:
    """Each sample's point of the highest value, from which it can go on without asking again."""

    x: torch.Tensor
    gradient: torch.Tensor
    value: torch.Tensor

    def where(self, chosen: torch.Tensor, other: Peak) -> Peak:
        """This one for the samples chosen, ``(B,)`` bool, else the other."""
        wide = chosen.reshape(-1, *[1] * (self.x.ndim - 1))
        return Peak(
            torch.where(wide, self.x, other.x),
            torch.where(wide, self.gradient, other.gradient),
            torch.where(chosen, self.value, other.value),
        )


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class APGD(Attack):
    r"""PGD with momentum whose step starts at 2 eps and is halved, from the best point on, where it brings nothing.

    .. math:: z = \Pi(x_k + \eta_k \operatorname{steepest}(\nabla L(x_k))), \qquad
              x_{k+1} = \Pi\big(x_k + \alpha (z - x_k) + (1 - \alpha)(x_k - x_{k-1})\big)

    After :math:`w_j = \lceil p_j N \rceil` steps (`checkpoints`) a sample's step is halved, and it goes back to its
    point of the highest L, if fewer than :math:`\rho` of the steps since :math:`w_{j-1}` increased L, or if the step
    was not halved there and L found no new peak since. Each sample does so for itself. An L1 budget takes sparse steps
    instead, see `Sparse`.

    What is returned is for each sample the best of all iterates inside the ball, the start included: one that succeeds
    by `criterion` before one that does not, among equals the one with the highest `loss_function` (the lowest where
    targeted), whatever `objective` is.

    A run costs `steps` backward and ``steps + 1`` forward passes, one more forward for each stage of `radii` but the
    last and one for `runner_up`; the attack's verdict adds two.

    Args:
        steps: N, number of gradients of a run.
        objective: L: ``"loss"`` (`loss_function`), ``"ce"`` (cross-entropy of the head), ``"dlr"`` (difference of
            logits ratio, for 3 classes or more), ``"margin"`` (difference of logits, for any head), and for dense
            outputs ``"mask-ce"``, ``"mask-ce-balanced"`` and ``"js"``; see `CrossEntropy`, `DLR`, `Margin`,
            `MaskedCrossEntropy`, `JensenShannon`. For the last three the cross-entropy of all voxels, not L, says
            whether a step brought something: their own values also fall when a voxel does.
        rho: :math:`\rho`, share of steps that must have increased L, in [0, 1].
        momentum: :math:`\alpha`, weight of the new step against the last one's, in (0, 1]; 1 is none. Not for L1.
        random_start: start from a uniform draw of the ball instead of the image.
        runner_up: k: ``"dlr"`` or ``"margin"`` is towards the k-th most likely wrong class of the clean image, for each
            sample, label or voxel; ``None`` is away from the label. Success is still that of an untargeted attack.
        radii: stages ``((share of the steps, radius over eps), ...)``; each starts at the best point of the one
            before, projected, with a step size of its own. Shares add up to 1 and the last radius is 1. ``()`` is one
            stage. SEA has ``((0.3, 2.0), (0.3, 1.5), (0.4, 1.0))``; AutoAttack in L1 3, 2 and 1 times eps.
        activation: the head: ``"softmax"``, ``"sigmoid"``, ``"none"`` (probabilities); ``"auto"`` reads it from the
            loss.

    Raises:
        ValueError: at construction, for arguments that contradict each other and for a regression loss with any
            objective but ``"loss"``; at the call, when the head has too few classes for `objective` or `runner_up`.

    Example:
        >>> import torch
        >>> attack = APGD(torch.nn.CrossEntropyLoss(), eps=0.25, bounds=(0.0, 1.0), steps=10, objective="margin")
        >>> weights = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
        >>> image = torch.tensor([[[0.5, 0.5]]])
        >>> attack(lambda x: x.flatten(1) @ weights.T, image, torch.tensor([0])).adversarial
        tensor([[[0.2500, 0.7500]]])

    Reference: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML 2020, https://arxiv.org/abs/2003.01690 (algorithm 1). L1: the same, "Mind the box", ICML 2021,
    https://arxiv.org/abs/2103.01208. Dense objectives and radii: Croce, Singh, Hein, "Towards reliable evaluation and
    fast training of robust semantic segmentation models", ECCV 2024, https://arxiv.org/abs/2306.12941. Deviations: the
    random start is uniform in the ball (the authors' code puts it on the sphere, in L1 a projected Gaussian); a point
    whose gradient is not finite is no peak; where the authors' code differs from algorithm 1 (``<=`` for ``<``, and the
    first step after a return compared with the point left) the algorithm is followed; a stage of `radii` starts at the
    peak of the one before, as AutoAttack's do, where SEA takes the point of the lowest accuracy.
    """

    steps: int = 100
    objective: str = "loss"
    rho: float = 0.75
    momentum: float = 0.75
    random_start: bool = True
    runner_up: int | None = None
    radii: Any = ()
    activation: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.as_count("steps", self.steps)
        checks.one_of("objective", self.objective, OBJECTIVES)
        checks.one_of("activation", self.activation, ("auto", *ACTIVATIONS))
        if not 0 <= self.rho <= 1:
            raise ValueError(f"rho: expected a share in [0, 1]; got {self.rho!r}")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"momentum: expected a number in (0, 1]; got {self.momentum!r}")
        if self.objective != "loss" and is_regression(self.loss_function):
            raise ValueError(
                f"objective: {self.objective!r} reads classes, which the regression loss {self.loss_function!r} has "
                "not; expected 'loss'"
            )
        if self.runner_up is not None:
            checks.as_count("runner_up", self.runner_up)
            if self.targeted or self.objective not in ("dlr", "margin"):
                raise ValueError(
                    "runner_up: expected None, or an untargeted attack on 'dlr' or 'margin'; got "
                    f"{self.runner_up} with objective={self.objective!r}, targeted={self.targeted}"
                )
        self._set(radii=_as_radii(self.radii))

    @property
    def is_random(self) -> bool:
        return self.random_start

    def start(self, setting: Setting) -> torch.Tensor:
        return setting.threat.init(setting.image, setting.generator if self.random_start else None)

    def search(self, hunt: Hunt) -> tuple[torch.Tensor, torch.Tensor]:
        setting = hunt.setting
        objective = self._objective(hunt)
        measure = self._measure(objective, hunt)
        bad = torch.zeros(len(setting.image), dtype=torch.long, device=setting.image.device)
        peak, best, done = None, setting.image, 0
        for steps, factor in _stages(self.radii, self.steps):
            threat = dataclasses.replace(setting.threat, eps=setting.threat.eps * factor)
            stage = dataclasses.replace(hunt, setting=dataclasses.replace(setting, threat=threat))
            start = self.start(stage.setting) if peak is None else threat.project(setting.image, peak)
            peak, best, spoilt = self._climb(stage, objective, measure, start, steps, done)
            bad, done = bad + spoilt, done + steps
        return best, bad

    def _climb(
        self,
        hunt: Hunt,
        objective: Objective,
        measure: Callable[[Any, torch.Tensor], torch.Tensor],
        start: torch.Tensor,
        steps: int,
        done: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One stage. Its peak of the objective, its best iterate, and each sample's gradients that were not finite."""
        threat, image = hunt.setting.threat, hunt.setting.image
        pace: Pace = Sparse.begin(threat, image) if threat.norm == 1 else Halving.begin(image, self.rho, self.momentum)
        marks = {mark for mark in pace.marks(steps) if mark < steps}
        rises = torch.zeros(len(image), dtype=torch.long, device=image.device)
        bad, last = rises, 0
        x, previous = start, None
        now = peak = None
        best: Verdict | None = None
        for t in range(steps):
            gradient, prediction, spoilt = hunt.gradient(objective, x, done + t, self.steps)
            bad = bad + spoilt
            verdict = _judged(hunt, x, prediction)
            best = verdict if best is None else best.better_of(verdict, self.targeted)
            value = measure(prediction, verdict.loss)
            point = Peak(x, gradient, value.masked_fill(spoilt | value.isnan(), -math.inf))
            if now is None or peak is None:
                peak = point
            else:
                rises = rises + (point.value > now.value)
                peak = point.where(point.value > peak.value, peak)
            now = point
            if t in marks:
                pace, back = pace.look_back(Progress(rises, t - last, peak.value, peak.x - image))
                now = peak.where(back, now)
                rises, last = torch.zeros_like(rises), t
            x, previous = pace.step(threat, image, now.x, previous, now.gradient), now.x
        assert best is not None
        assert peak is not None
        prediction = hunt.query.judge(x)
        verdict = _judged(hunt, x, prediction)
        value = measure(prediction, verdict.loss)
        higher = (value > peak.value).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(higher, x, peak.x), best.better_of(verdict, self.targeted).adversarial, bad

    def _objective(self, hunt: Hunt) -> Objective:
        """What is increased in this run; towards a runner-up the clean image is asked for it."""
        towards = None
        if self.runner_up is not None:
            prediction = hunt.query.judge(hunt.setting.image)
            decisions = Decisions.read(prediction, hunt.target, self.loss_function, self.activation)
            towards = decisions.runner_up(self.runner_up)
        return named_objective(self.objective, self.loss_function, self.targeted, self.activation, towards)

    def _measure(self, objective: Objective, hunt: Hunt) -> Callable[[Any, torch.Tensor], torch.Tensor]:
        """``measure(prediction, loss) -> (B,)``: the value that shows progress, without a graph."""
        if not isinstance(objective, HeadObjective):
            return lambda prediction, loss: -loss if self.targeted else loss
        progress = objective
        if self.objective in ("mask-ce", "mask-ce-balanced", "js"):
            progress = CrossEntropy(self.loss_function, self.targeted, self.activation)

        def measure(prediction: Any, loss: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return progress.value(prediction, hunt.target)

        return measure


def _judged(hunt: Hunt, x: torch.Tensor, prediction: Any) -> Verdict:
    return Verdict(x, hunt.losses(prediction), hunt.succeeds(prediction))


def _as_radii(radii: Any) -> tuple[tuple[float, float], ...]:
    """Pairs (share of the steps, radius over eps); shares that add up to 1, radii from 1 on, the last of them 1."""
    pairs = checks.as_numbers("radii", radii) if isinstance(radii, Sequence) and not isinstance(radii, str) else None
    good = isinstance(pairs, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(v, float) for v in pair) for pair in pairs
    )
    stages: tuple[tuple[float, float], ...] = pairs if good else ((0.0, 0.0),)  # type: ignore[assignment]
    if stages and not (
        all(share > 0 and factor >= 1 for share, factor in stages)
        and abs(sum(share for share, _ in stages) - 1) < ROUNDING
        and stages[-1][1] == 1
    ):
        raise ValueError(
            "radii: expected pairs (share of the steps, radius over eps) whose shares add up to 1 and whose radii are "
            f"at least 1, the last one 1; or () for none; got {radii!r}"
        )
    return stages


def _stages(radii: tuple[tuple[float, float], ...], steps: int) -> list[tuple[int, float]]:
    """Steps and radius over eps of every stage: shares rounded down, the last stage takes the rest.

    A stage without a step is left out; the last one always has one.
    """
    stages: list[tuple[int, float]] = []
    left = steps
    for share, factor in radii[:-1]:
        count = min(math.floor(share * steps + ROUNDING), left - 1)
        if count:
            stages.append((count, factor))
            left -= count
    return [*stages, (left, 1.0)]
