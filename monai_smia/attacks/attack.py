# SPDX-License-Identifier: Apache-2.0
"""`Attack`: the call that everyone makes, and what its subclasses fill in."""

from __future__ import annotations

import dataclasses
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, final

import torch
from monai.data import MetaTensor
from monai.utils import convert_to_dst_type

from monai_smia.attacks import checks
from monai_smia.attacks.argument_kinds import check_kinds, check_names
from monai_smia.attacks.criteria import Criterion, default_criterion
from monai_smia.attacks.freezing import frozen, unwrap
from monai_smia.attacks.heads import LossFunction
from monai_smia.attacks.hunt import Hunt, Setting
from monai_smia.attacks.loop import Observer, Recipe, ascend
from monai_smia.attacks.losses import check_loss, per_sample
from monai_smia.attacks.query import Query
from monai_smia.attacks.result import AttackResult
from monai_smia.attacks.saturation import warn_of_saturation
from monai_smia.attacks.spacing import spacing_of
from monai_smia.attacks.threat_models import LpBall, Size


@dataclass(frozen=True)
class Verdict:
    """A candidate image and how the network judged it."""

    adversarial: torch.Tensor
    loss: torch.Tensor
    success: torch.Tensor

    def better_of(self, other: Verdict, targeted: bool) -> Verdict:
        """Per sample the one that succeeds; among equals the one with the higher loss (lower where targeted)."""
        gain = (self.loss - other.loss) if targeted else (other.loss - self.loss)
        gains = (gain > 0) | (self.loss.isnan() & ~other.loss.isnan())
        swap = (other.success & ~self.success) | ((other.success == self.success) & gains)
        wide = swap.reshape(-1, *[1] * (self.adversarial.ndim - 1))
        return Verdict(
            torch.where(wide, other.adversarial, self.adversarial),
            torch.where(swap, other.loss, self.loss),
            torch.where(swap, other.success, self.success),
        )


@dataclass(frozen=True, repr=False, eq=False)
class Attack(ABC):
    """Base of all attacks: immutable arguments, one final call.

    Args:
        loss_function: any MONAI or torch loss on (prediction, target); it is evaluated sample by sample.
        eps: budget, in the network's input units: a number, one per channel ``(C,)`` or one per sample
            ``(B, 1)``.
        norm: norm of the budget: ``inf`` (in JSON ``"inf"``), 2 or 1.
        bounds: ``(low, high)`` intensity range of the network's input, numbers or one per channel; ``None`` for
            unbounded.
        targeted: whether `target` is to be reached instead of left.
        restarts: independent runs, of which each sample keeps its best; more than one needs a random start.
        criterion: what counts as success; ``None`` takes a wrong decision for classifiers and a mean Dice under 0.5
            for dense outputs (their opposite where targeted).
        amp: precision of the gradient passes (``torch.bfloat16``, ``torch.float16`` or the name); the image, the
            projections and the verdict stay in single precision. ``None`` leaves the caller's autocast as it is.

    Raises:
        TypeError, ValueError: at construction, naming the argument, what was expected and what came.
    """

    loss_function: LossFunction
    _: KW_ONLY
    eps: Any
    norm: float | str = math.inf
    bounds: Any = None
    targeted: bool = False
    restarts: int = 1
    criterion: Criterion | None = None
    amp: torch.dtype | str | None = None

    def __new__(cls, *args: Any, **arguments: Any) -> Any:
        check_names(cls, arguments)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_kinds(self)
        check_loss(self.loss_function)
        _refuse_network(self.loss_function)
        if self.criterion is not None and not (callable(self.criterion) and not isinstance(self.criterion, type)):
            raise TypeError(f"criterion: expected a callable (prediction, target), or None; got {self.criterion!r}")
        self._set(
            eps=checks.as_numbers("eps", self.eps, low=0.0),
            norm=checks.as_norm(self.norm),
            bounds=checks.as_bounds(self.bounds),
            restarts=checks.as_count("restarts", self.restarts),
            amp=checks.as_amp(self.amp),
        )
        if self.restarts > 1 and not self.is_random:
            raise ValueError(f"restarts: {self.restarts} runs without random_start are all the same; expected 1")

    @property
    @abstractmethod
    def is_random(self) -> bool:
        """Whether two runs may differ."""

    @property
    def keeps_best(self) -> bool:
        """Whether the best iterate is returned, not the last."""
        return False

    def start(self, setting: Setting) -> torch.Tensor:
        """The image that the first step leaves from, inside the threat model: the clean one unless overridden."""
        return setting.threat.init(setting.image, None)

    def compose(self, setting: Setting) -> Recipe:
        """The parts of this attack, for one call. An attack with a loop of its own overrides `search` instead."""
        raise NotImplementedError(f"{type(self).__name__}: expected compose or search to be overridden")

    def search(self, hunt: Hunt) -> tuple[torch.Tensor, torch.Tensor]:
        """One run: the one loop over the parts of `compose`, unless an attack has a loop of its own.

        Returns:
            An image of the threat model, ``BCHW[D]``, and each sample's number of gradients that were not finite,
            ``(B,)`` int.
        """
        setting = hunt.setting
        recipe, start = self.compose(setting), self.start(setting)
        return ascend(recipe, hunt.query, setting.threat, setting.image, hunt.target, start, hunt.observe)

    @final
    def __call__(
        self,
        network: Callable[..., Any],
        image: torch.Tensor,
        target: Any,
        *,
        inferer: Any = None,
        mask: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Observer | None = None,
    ) -> AttackResult:
        """Attack `network` at `image`.

        Args:
            network: any callable from image to prediction. An `nn.Module` is frozen for the call (evaluation mode, no
                parameter gradients) and restored exactly, also after an exception. One whose batch normalisation keeps
                no running statistics makes a sample depend on its batch mates: attack one image at a time then.
            image: ``BCHW[D]``, floating, in the network's input units; a tensor or `MetaTensor`. It is not changed.
                One in half precision is attacked in single precision; rounding the result may pass eps or a bound by
                its last bit.
            target: labels as MONAI's loaders give them: ``(B,)``, ``(B, 1, H, W[, D])`` or one-hot.
            inferer: a MONAI inferer, ``inferer(inputs, network)``; ``None`` calls the network.
            mask: where the image may change, broadcasts against ``BCHW[D]``, zeros and ones; ``None`` for everywhere.
                A sample in which it is empty stays as it is, and the log names it.
            generator: source of randomness; ``None`` is a fixed seed, so that a second call gives the first one's bits.
                The global random state is never used.
            callback: ``callback(trial, prediction)`` after each gradient, to observe or to show progress.

        Returns:
            The adversarial image and what it did, see `AttackResult`.

        Raises:
            TypeError, ValueError: naming the argument, before any pass where that can be known, with the network
                restored.
            RuntimeError: naming the network, when no gradient reaches the image.
        """
        with torch.inference_mode(False):
            plain, labels, allowed = (_plain(value) for value in (image, target, mask))
            checks.check_image(plain)
            checks.check_batch("target", labels, plain)
            work = plain if plain.dtype in (torch.float32, torch.float64) else plain.float()
            grid = spacing_of(image)
            setting = Setting(
                work,
                self._threat(work, allowed),
                torch.Generator(work.device).manual_seed(0) if generator is None else generator,
                None if grid is None else grid.rows,
                None if grid is None else grid.volumes,
            )
            network = unwrap(network)
            with frozen(network), torch.enable_grad():
                outcome = self._run(network, inferer, setting, labels, plain.dtype, callback)
        adversarial = (
            convert_to_dst_type(outcome.adversarial, image)[0] if isinstance(image, MetaTensor) else outcome.adversarial
        )
        return dataclasses.replace(outcome, adversarial=adversarial)

    def _run(
        self,
        network: Callable[..., Any],
        inferer: Any,
        setting: Setting,
        target: Any,
        dtype: torch.dtype,
        callback: Observer | None,
    ) -> AttackResult:
        image = setting.image
        clean: list[Any] = []
        activation = getattr(self, "activation", "auto")

        def succeeds(prediction: Any) -> Criterion:
            return self.criterion or default_criterion(self.loss_function, prediction, self.targeted, activation)

        def check(prediction: Any) -> None:
            if self.criterion is None or hasattr(self, "activation"):
                checks.check_rank(self.loss_function, prediction, image)
            checks.check_target(self.loss_function, prediction, target, activation, self.criterion)
            succeeds(prediction)

        def losses(prediction: Any) -> torch.Tensor:
            with torch.no_grad():
                return per_sample(self.loss_function, prediction, target, len(image))

        def decided(prediction: Any) -> torch.Tensor:
            return succeeds(prediction)(prediction, target)

        def judged(adversarial: torch.Tensor, prediction: Any) -> Verdict:
            return Verdict(adversarial, losses(prediction), decided(prediction))

        query = Query(network, inferer, checks.as_amp(self.amp), dtype, check, setting.threat.mask)
        best = None
        bad = torch.zeros(len(image), dtype=torch.long, device=image.device)
        for _ in range(self.restarts):
            candidates: list[Verdict] = []

            def observe(trial: Any, prediction: Any, candidates: list[Verdict] = candidates) -> None:
                if trial.step == 0 and not self.is_random and prediction is not None and self.amp is None:
                    clean.append(prediction)
                if self.keeps_best:
                    at_iterate = query.judge(trial.adversarial) if prediction is None else prediction
                    undecided = torch.zeros(len(image), dtype=torch.bool, device=image.device)
                    reached = Verdict(trial.adversarial, losses(at_iterate), undecided)
                    candidates[:] = [candidates[0].better_of(reached, self.targeted) if candidates else reached]
                if callback is not None:
                    callback(trial, prediction)

            last, nonfinite = self.search(Hunt(query, setting, target, losses, decided, observe))
            bad += nonfinite
            verdict = judged(last, query.judge(last))
            if candidates:
                undecided = dataclasses.replace(verdict, success=torch.zeros_like(verdict.success))
                kept = undecided.better_of(candidates[0], self.targeted).adversarial
                verdict = judged(kept, query.judge(kept))
            best = verdict if best is None else best.better_of(verdict, self.targeted)
        assert best is not None
        unharmed = clean[0] if clean else query.judge(image)
        before = judged(image, unharmed)
        warn_of_saturation(self.loss_function, unharmed, target, activation, self.targeted, best.success)
        everyone = torch.ones(len(image), dtype=torch.long, device=image.device)
        return AttackResult(
            adversarial=best.adversarial.to(dtype),
            clean_loss=before.loss,
            loss=best.loss,
            clean_success=before.success,
            success=best.success,
            forward_passes=everyone * query.forward_passes,
            backward_passes=everyone * query.backward_passes,
            nonfinite_gradients=bad,
        )

    def _threat(self, image: torch.Tensor, mask: torch.Tensor | None) -> LpBall:
        return LpBall(
            eps=checks.spread("eps", self.eps, image),
            norm=float(self.norm),
            bounds=checks.fit_bounds(self.bounds, image),
            mask=None if mask is None else checks.check_mask(mask, image),
        )

    def _set(self, **values: Any) -> None:
        """Store validated arguments; only construction may."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        shown = [_shown(self.loss_function)]
        for item in dataclasses.fields(self)[1:]:
            value = getattr(self, item.name)
            if value != item.default:
                shown.append(f"{item.name}={_shown(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class GradientAttack(Attack, ABC):
    """Base of the attacks that take `steps` steps of `step_size` along gradients.

    Args:
        steps: number of iterations.
        step_size: length of a step in `norm`, in the network's input units, shaped like `eps`;
            ``None`` is ``2.5 * eps / steps``.
        random_start: start from a uniform draw of the ball instead of the image.
        keep: ``"last"`` returns the last iterate, ``"best"`` for each sample the one with the highest loss (the
            lowest where targeted), the start included.
    """

    steps: int = 10
    step_size: Any = None
    random_start: bool = False
    keep: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.as_count("steps", self.steps)
        checks.one_of("keep", self.keep, ("last", "best"))
        if self.step_size is not None:
            self._set(step_size=checks.as_numbers("step_size", self.step_size, low=0.0))

    @property
    def is_random(self) -> bool:
        return self.random_start

    @property
    def keeps_best(self) -> bool:
        return self.keep == "best"

    def start(self, setting: Setting) -> torch.Tensor:
        return setting.threat.init(setting.image, setting.generator if self.random_start else None)

    def stride(self, setting: Setting) -> Size:
        """The step size that broadcasts against the image."""
        if self.step_size is None:
            return setting.threat.eps * 2.5 / self.steps
        return checks.spread("step_size", self.step_size, setting.image)


def _refuse_network(loss_function: Any) -> None:
    """A callable that cannot take a prediction and a target is no loss: often the network, as other libraries have it.

    Raises:
        TypeError: saying where the network goes.
    """
    called = loss_function.forward if isinstance(loss_function, torch.nn.Module) else loss_function
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # one that is not written in Python
        return
    try:
        signature.bind(None, None)
    except TypeError:
        shown = type(loss_function).__name__ if isinstance(loss_function, torch.nn.Module) else repr(loss_function)
        raise TypeError(
            f"loss_function: expected a loss on (prediction, target); got {shown}, which does not take two. "
            "The network goes into the call: attack(network, image, target)"
        ) from None


def _plain(value: Any) -> Any:
    """A tensor without metadata, graph or inference flag; anything else as it is."""
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(item) for item in value)
    if not isinstance(value, torch.Tensor):
        return value
    value = value.as_tensor() if isinstance(value, MetaTensor) else value
    return value.clone() if value.is_inference() else value.detach()


def _shown(value: Any) -> str:
    """Text that rebuilds a stored argument."""
    if isinstance(value, float) and math.isinf(value):
        return '"inf"'
    if isinstance(value, torch.nn.Module):
        return " ".join(repr(value).split())
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name and callable(value) else repr(value)
