# SPDX-License-Identifier: Apache-2.0
"""`Examination`: one network on one batch, and the attacks that the checks compare, each made once.

There are two looks. The first is cheap: a short attack, one walk with strides that grow from eps to the whole intensity
range, a few queries. What it gives ground to suspect is made again as a plain attack before anything is said.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from monai_smia.attacks import BIM, Attack, AttackResult, Criterion, LpBall, Square, Transfer, Trial
from monai_smia.attacks.checks import as_amp, as_bounds, as_norm, as_numbers, check_mask, fit_bounds, spread
from monai_smia.attacks.criteria import default_criterion
from monai_smia.attacks.heads import LossFunction, is_regression, main_output
from monai_smia.attacks.loop import finite_only
from monai_smia.attacks.losses import per_sample
from monai_smia.attacks.objectives import Deviation
from monai_smia.attacks.query import Query
from monai_smia.attacks.steps import steepest
from monai_smia.doctor.log_odds import decides, log_odds, log_odds_map

QUICK = 5  # steps of the first look
STRIDE = 0.45  # of eps: at the edge of the ball after three steps, and no divisor of what a network may round to
STEPS = 8  # of the second: enough for a plain network's loss to settle to within a tenth, few enough for a volume
STRIDES = 6  # of the walk from eps to the end of the intensity range, whose lengths are a geometric series
POLISH = 2  # steps of a quarter of eps after the attack's last one
QUERIES = 9  # on a plain network far behind gradients, which give all voxels' signs at once
DRAWS = 3
AFFECTED = 0.25  # of the samples, and one at least: a single odd image of a batch is no finding
FLOOR = 1e-4  # of the clean score: smaller gains are near the rounding of a network in single precision


class Never(Criterion):
    """No success: for a regression, of which none was defined."""

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        values = main_output(prediction)
        return torch.zeros(len(values), dtype=torch.bool, device=values.device)


@dataclass(frozen=True)
class Outcome:
    """What images came to, per sample.

    Attributes:
        score: ``(B,)``, log-odds of a classifier, the loss of anything else; higher is better for the attack.
        success: ``(B,)`` bool, by the criterion.
        adversarial: ``BCHW[D]``.
    """

    score: torch.Tensor
    success: torch.Tensor
    adversarial: torch.Tensor

    def best(self, other: Outcome) -> Outcome:
        """Per sample the better of both; success where either had it."""
        better = other.score > self.score
        wide = better.reshape(-1, *[1] * (self.adversarial.ndim - 1))
        image = torch.where(wide, other.adversarial, self.adversarial)
        return Outcome(torch.where(better, other.score, self.score), self.success | other.success, image)


class Examination:
    """The network, frozen by the caller, with everything that a check may ask of it.

    Args:
        network: any callable; every call of it is counted and its outputs' range noted.
        image, target: the batch, without metadata.
        loss_function, eps, norm, bounds, targeted, criterion: as for `Attack`.
        inferer, mask: as for the call of an attack.
        attack: whose number is in question; ``None`` for a plain BIM.
        adversarial: what that attack gave on this batch, where it was made already.
        surrogate: a network to transfer from, or ``None``.
        saturated: voxels held at an end of the intensity range by the preprocessing, or ``None``.
        generator: source of randomness, on the CPU.
        tick: called after each forward pass.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        image: torch.Tensor,
        target: Any,
        loss_function: LossFunction,
        *,
        eps: Any,
        norm: float | str,
        bounds: Any,
        targeted: bool,
        criterion: Criterion | None,
        inferer: Any,
        mask: torch.Tensor | None,
        attack: Attack | None,
        adversarial: torch.Tensor | None,
        surrogate: Callable[..., Any] | None,
        saturated: torch.Tensor | None,
        generator: torch.Generator,
        tick: Callable[[], None],
    ) -> None:
        self.image = image if image.dtype in (torch.float32, torch.float64) else image.float()
        self.target, self.loss_function = target, loss_function
        self.inferer, self.mask = inferer, mask
        self.attack, self.surrogate, self.saturated, self.generator = attack, surrogate, saturated, generator
        self._given = adversarial
        self.targeted = targeted
        if criterion is None and is_regression(loss_function):
            criterion = Never()
        self.criterion = criterion
        self.bounds, self.norm = as_bounds(bounds), as_norm(norm)
        numbers = as_numbers("eps", eps, low=0.0)
        self.eps = torch.tensor(numbers, dtype=torch.float64)
        self.threat = LpBall(
            spread("eps", numbers, self.image),
            self.norm,
            fit_bounds(self.bounds, self.image),
            None if mask is None else check_mask(mask, self.image),
        )
        self.outputs: list[tuple[float, float, float]] = []
        """Lowest and highest output, and the largest distance of a sum over channels from 1, of every pass."""
        self.spoilt: list[torch.Tensor] = []
        """Which samples' gradients were not finite, of every step."""
        self._tick = tick
        self.module = self._network = network
        self._climbs: dict[tuple[float, int], Outcome] = {}
        self.query = Query(self.network, inferer, as_amp(None), image.dtype, lambda prediction: None)

    def network(self, *args: Any, **kwargs: Any) -> Any:
        """The network, watched."""
        prediction = self._network(*args, **kwargs)
        first = prediction[0] if isinstance(prediction, (tuple, list)) and prediction else prediction
        if isinstance(first, torch.Tensor) and first.ndim > 1 and first.numel():
            values = first.detach().float()
            off = float((values.sum(1) - 1).abs().max())
            self.outputs.append((float(values.min()), float(values.max()), off))
        self._tick()
        return prediction

    # what may be asked

    def read(self, prediction: Any, adversarial: torch.Tensor) -> Outcome:
        """Score and success of a prediction."""
        with torch.no_grad():
            criterion = self.criterion or default_criterion(self.loss_function, prediction, self.targeted)
            if decides(self.loss_function, prediction) and main_output(prediction).ndim == 2:
                score = log_odds(self.loss_function, main_output(prediction).double(), self.target)
            else:
                score = self.losses(prediction)
            return Outcome(-score if self.targeted else score, criterion(prediction, self.target), adversarial)

    def losses(self, prediction: Any) -> torch.Tensor:
        """The loss of each sample, ``(B,)``, in double precision after the fact."""
        with torch.no_grad():
            return per_sample(self.loss_function, prediction, self.target, len(self.image)).double()

    def wrong(self, image: torch.Tensor) -> torch.Tensor:
        """Share of each sample's decisions that are wrong, in the attack's sense, ``(B,)``; one forward pass."""
        output = main_output(self.query.judge(image))
        odds = log_odds_map(self.loss_function, output, self.target).flatten(1)
        return ((odds < 0) if self.targeted else (odds > 0)).double().mean(1)

    def judge(self, image: torch.Tensor) -> Outcome:
        """What the network makes of an image; one forward pass."""
        return self.read(self.query.judge(image), image)

    def look(self, image: torch.Tensor, loss_function: LossFunction | None = None) -> tuple[torch.Tensor | None, Any]:
        """Gradient of the loss, ``None`` where none reaches the image, and the prediction. One pass each way."""
        trial = Trial(image, image, 0, 1, None, None, self.query.predict, lambda x: x, lambda x: x)
        objective = Deviation(loss_function or self.loss_function, self.targeted)
        try:
            return self.query.gradient(objective, image, self.target, trial)
        except RuntimeError as error:
            if not str(error).startswith("network: expected a prediction that depends"):
                raise
            return None, self.query.judge(image)

    def gradient(self, image: torch.Tensor, loss_function: LossFunction | None = None) -> torch.Tensor | None:
        """Gradient of the loss, as it is; ``None`` where none reaches the image. One pass each way."""
        return self.look(image, loss_function)[0]

    def arguments(self, factor: float = 1.0) -> dict[str, Any]:
        """Those of an attack with so many times the budget; infinity is enough for every image of the bounds."""
        return {
            "eps": self.widest if math.isinf(factor) else self.eps * factor,
            "norm": self.norm,
            "bounds": self.bounds,
            "targeted": self.targeted,
            "criterion": self.criterion,
        }

    def run(self, attack: Attack, callback: Any = None) -> AttackResult:
        """An attack on the batch."""
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return attack(
            self.network,
            self.image,
            self.target,
            inferer=self.inferer,
            mask=self.mask,
            generator=torch.Generator(self.image.device).manual_seed(seed),
            callback=callback,
        )

    def climb(self, attack: Attack, last: bool = True) -> Outcome:
        """The best iterate of an attack, per sample; the last one too, unless the attack has shown it already."""
        seen: list[Outcome] = []

        def watch(trial: Trial, prediction: Any) -> None:
            outcome = self.read(prediction, trial.adversarial)
            seen[:] = [seen[0].best(outcome) if seen else outcome]

        result = self.run(attack, watch)
        return seen[0].best(self.judge(result.adversarial)) if last else seen[0]

    # what is asked once

    @cached_property
    def first(self) -> tuple[torch.Tensor | None, Any]:
        """Gradient and prediction at the image."""
        return self.look(self.image)

    @property
    def prediction(self) -> Any:
        """The prediction at the image."""
        return self.first[1]

    @property
    def slope(self) -> torch.Tensor | None:
        """Gradient of the loss at the image; ``None`` where none reaches it."""
        return self.first[0]

    @cached_property
    def clean(self) -> Outcome:
        return self.read(self.prediction, self.image)

    @cached_property
    def quick(self) -> list[Outcome]:
        """What each of a few steps of a plain BIM came to, the image itself first."""
        return self._follow(self.image, [(STRIDE, 1.0)] * QUICK)

    @cached_property
    def walk(self) -> list[Outcome]:
        """Strides from eps to the whole intensity range, the image itself first; ends where all have succeeded."""
        growth = max(self.widest / float(self.eps.max().clamp_min(1e-12)), 1.0) ** (1 / (STRIDES - 1))
        strides = [growth**i for i in range(STRIDES)]
        return self._follow(self.image, [(size, sum(strides[: i + 1])) for i, size in enumerate(strides)], until=True)

    @cached_property
    def polished(self) -> list[Outcome]:
        """The attack in question, then some small steps from its last image."""
        assert self.result is not None
        return self._follow(self.result.to(self.image.dtype), [(0.25, 1.0)] * POLISH)

    def _follow(
        self, start: torch.Tensor, strides: Sequence[tuple[float, float]], until: bool = False
    ) -> list[Outcome]:
        """Steps from `start`, each a length and a radius of the ball in eps; a pass each way for a step."""
        at, seen = start, list[Outcome]()
        direction = steepest(self.norm, self.threat.per_channel)
        for length, radius in strides:
            slope, prediction = self.first if at is self.image else self.look(at)
            seen.append(self.read(prediction, at))
            if slope is None or (until and bool(torch.stack([one.success for one in seen]).any(0).all())):
                return seen
            slope, spoilt = finite_only(slope)
            self.spoilt.append(spoilt)
            step, _ = direction.update(self.threat.restrict(slope), None)
            ball = dataclasses.replace(self.threat, eps=self.threat.eps * radius)
            at = ball.project(self.image, at + length * self.threat.eps * step)
        return [*seen, self.judge(at)]

    def iterated(self, factor: float = 1.0, steps: int = STEPS) -> Outcome:
        """A plain BIM with so many times the budget."""
        if (factor, steps) not in self._climbs:
            attack = BIM(self.loss_function, steps=steps, **self.arguments(factor))
            self._climbs[factor, steps] = self.climb(attack)
        return self._climbs[factor, steps]

    @cached_property
    def made(self) -> AttackResult | None:
        """The attack in question, run; ``None`` where its images were given."""
        return None if self.attack is None or self._given is not None else self.run(self.attack)

    @cached_property
    def result(self) -> torch.Tensor | None:
        """The images of the attack in question; ``None`` where there is none."""
        if self._given is not None:
            return self._given
        return None if self.made is None else self.made.adversarial

    @cached_property
    def white(self) -> Outcome:
        """What the others are compared with: the attack in question, or a plain BIM."""
        if self.result is not None:
            return self.polished[0]
        best, *others = self.quick[1:] or self.quick
        for outcome in others:
            best = best.best(outcome)
        return best

    @property
    def resisted(self) -> bool:
        """Whether the attack failed anywhere: where it succeeded there is no robustness to doubt."""
        return not bool(self.white.success.all())

    @cached_property
    def longer(self) -> Outcome | None:
        """The attack with twice the steps, or `surely` with them; ``None`` where the attack in question has none."""
        if self.attack is None:
            return self.iterated(steps=2 * STEPS)
        steps = getattr(self.attack, "steps", None)
        if not isinstance(steps, int) or steps < 2:
            return None
        attack: Any = self.attack
        return self.judge(self.run(dataclasses.replace(attack, steps=2 * steps)).adversarial.to(self.image.dtype))

    @property
    def surely(self) -> Outcome:
        """The attack in question, or a BIM of the second look."""
        return self.iterated() if self.result is None else self.white

    @property
    def one_step(self) -> Outcome:
        """FGSM: the first stride of the walk."""
        return self.walk[min(1, len(self.walk) - 1)]

    @cached_property
    def black_box(self) -> Outcome:
        return self.climb(Square(self.loss_function, queries=QUERIES, **self.arguments()), last=False)

    @cached_property
    def transferred(self) -> Outcome | None:
        if self.surrogate is None:
            return None
        attack = BIM(self.loss_function, steps=STEPS, **self.arguments())
        return self.judge(self.run(Transfer(attack, self.surrogate)).adversarial)

    @cached_property
    def noise(self) -> Outcome:
        """The best of a few draws of the ball's largest noise: every voxel up or down by eps for Linf."""
        best = self.judge(self.noisy())
        for _ in range(DRAWS - 1):
            best = best.best(self.judge(self.noisy()))
        return best

    def noisy(self) -> torch.Tensor:
        """The image with noise of the budget's size."""
        if self.norm != math.inf:
            return self.threat.gaussian(self.image, self.generator)
        signs = torch.randint(2, self.image.shape, generator=self.generator).to(self.image) * 2 - 1
        return self.threat.project(self.image, self.image + signs * self.threat.eps)

    @property
    def ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest intensity, broadcasting: the bounds, or each sample's own."""
        if self.threat.bounds is not None:
            low, high = (torch.as_tensor(end).to(self.image) for end in self.threat.bounds)
            return low, high
        axes = tuple(range(1, self.image.ndim))
        return self.image.amin(axes, keepdim=True), self.image.amax(axes, keepdim=True)

    @property
    def widest(self) -> float:
        """A radius that reaches every image of the bounds, or ten times the image's own range where there are none."""
        low, high = self.ends
        width = float((high - low).max()) * (1.0 if self.bounds is not None else 10.0)
        count = self.image[0].numel()
        return max(width, 1e-6) * (1.0 if math.isinf(self.norm) else count ** (1 / self.norm))

    # comparisons

    def gain(self, outcome: Outcome) -> torch.Tensor:
        """How much the score rose over the clean image's, ``(B,)``."""
        return outcome.score - self.clean.score

    @property
    def floor(self) -> torch.Tensor:
        """Gains under this are rounding, ``(B,)``."""
        return FLOOR * self.clean.score.abs() + 1e-6

    def outdone(self, white: Outcome, other: Outcome, factor: float) -> torch.Tensor:
        """Where `white` failed and `other` gained more than `factor` times as much, ``(B,)`` bool."""
        gain = self.gain(other)
        return ~white.success & (gain > self.floor) & (gain > factor * self.gain(white))

    def many(self, affected: torch.Tensor) -> bool:
        """Whether these samples are enough for a finding."""
        return int(affected.sum()) >= max(1, math.ceil(AFFECTED * len(affected)))

    def count(self, affected: torch.Tensor) -> str:
        return f"{int(affected.sum())} of {len(affected)} images"
