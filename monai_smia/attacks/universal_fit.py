# SPDX-License-Identifier: Apache-2.0
"""`UAP`: fits one perturbation to all images of a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from monai.utils import CommonKeys, optional_import

from monai_smia.attacks import checks
from monai_smia.attacks.argument_kinds import check_kinds
from monai_smia.attacks.balls import clamp
from monai_smia.attacks.freezing import frozen, unwrap
from monai_smia.attacks.heads import LossFunction
from monai_smia.attacks.loop import finite_only
from monai_smia.attacks.losses import check_loss
from monai_smia.attacks.nested import map_tensors
from monai_smia.attacks.objectives import Deviation
from monai_smia.attacks.query import Query
from monai_smia.attacks.steps import steepest
from monai_smia.attacks.threat_models import LpBall
from monai_smia.attacks.trial import Trial
from monai_smia.attacks.universal import UniversalPerturbation, as_plain

PrepareBatch = Callable[[Any], tuple[torch.Tensor, Any]]
"""``prepare_batch(batch) -> (image, target)``."""


@dataclass(frozen=True, eq=False)
class UAP:
    r"""Fits a universal perturbation: stochastic gradient ascent over batches, projected to the budget.

    .. math:: \delta_{t+1} = \Pi_\varepsilon\Big(\delta_t + \alpha \operatorname{steepest}\Big(\frac{1}{B}
              \sum_{i=1}^{B} \nabla_\delta \min\big(J(f(\operatorname{clip}(x_i + \delta_t)), y_i),\, \beta\big)
              \Big)\Big), \qquad \delta_0 = 0

    This averages over samples on purpose: one perturbation has to serve all. Samples whose gradient is not finite count
    as zero. The order of the batches is the loader's.

    Args:
        loss_function: any MONAI or torch loss on (prediction, target); it is evaluated sample by sample.
        eps: budget, in the network's input units, a number or one per channel ``(C,)``.
        norm: norm of the budget: ``inf`` (in JSON ``"inf"``), 2 or 1.
        bounds: ``(low, high)`` intensity range of the network's input; ``None`` for unbounded.
        targeted: whether the targets are to be reached instead of left.
        epochs: passes over the loader.
        step_size: of a step in `norm`, shaped like `eps`; ``None`` is ``eps / 10``.
        loss_clip: :math:`\beta`, above which a sample's loss pulls no more, so that no single image dominates (the
            paper's is 9 for a cross-entropy); ``None`` for no such limit. Not for targeted ones.
        amp: precision of the passes, as for `Attack`.

    Raises:
        TypeError, ValueError: at construction, naming the argument.

    Example:
        >>> loader = [(torch.full((2, 1, 2), 0.5), torch.tensor([0, 0]))]
        >>> weights = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
        >>> uap = UAP(torch.nn.CrossEntropyLoss(), eps=0.1, epochs=10)
        >>> uap.fit(lambda x: x.flatten(1) @ weights.T, loader, progress=False).delta
        tensor([[-0.1000,  0.1000]])

    Reference: Shafahi, Najibi, Xu, Dickerson, Davis, Goldstein, "Universal adversarial training", AAAI 2020,
    https://arxiv.org/abs/1811.11304; first found by Moosavi-Dezfooli, Fawzi, Fawzi, Frossard, "Universal adversarial
    perturbations", CVPR 2017, https://arxiv.org/abs/1610.08401. Deviations: steepest steps of the norm (the paper's
    optimiser is a choice of several); the image plus the perturbation is clipped to the bounds, and a clipped voxel has
    no slope.
    """

    loss_function: LossFunction
    _: KW_ONLY
    eps: Any
    norm: float | str = float("inf")
    bounds: Any = None
    targeted: bool = False
    epochs: int = 10
    step_size: Any = None
    loss_clip: float | None = None
    amp: torch.dtype | str | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        check_loss(self.loss_function)
        checks.as_count("epochs", self.epochs)
        values = {
            "eps": checks.as_numbers("eps", self.eps, low=0.0),
            "norm": checks.as_norm(self.norm),
            "bounds": checks.as_bounds(self.bounds),
            "amp": checks.as_amp(self.amp),
        }
        if self.step_size is not None:
            values["step_size"] = checks.as_numbers("step_size", self.step_size, low=0.0)
        if self.loss_clip is not None:
            checks.as_numbers("loss_clip", self.loss_clip)
            if self.targeted:
                raise ValueError("loss_clip: a targeted perturbation lowers the loss; expected None")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def fit(
        self,
        network: Callable[..., Any],
        loader: Iterable[Any],
        *,
        inferer: Any = None,
        prepare_batch: PrepareBatch | None = None,
        device: torch.device | str | None = None,
        start: UniversalPerturbation | None = None,
        callback: Callable[[UniversalPerturbation], None] | None = None,
        progress: bool = True,
    ) -> UniversalPerturbation:
        """Fit it to all images of a loader.

        To go on after an interrupt, save in `callback` and give what was saved as `start`: with the same batches the
        result is the one of an uninterrupted fit.

        Args:
            network: any callable from image to prediction; frozen during the fit and restored exactly, also after an
                exception or an interrupt.
            loader: batches, iterated once per epoch; all images of one shape.
            inferer: a MONAI inferer, ``inferer(inputs, network)``; ``None`` calls the network.
            prepare_batch: takes image and target out of a batch; ``None`` reads a dictionary's ``"image"`` and
                ``"label"``, or a pair.
            device: where to compute; ``None`` is that of the network's first parameter, or of the image.
            start: where to go on from; its epochs count as done.
            callback: ``callback(perturbation)`` after each epoch.
            progress: show a bar over the batches.

        Returns:
            The perturbation, on the CPU.

        Raises:
            TypeError, ValueError: naming the argument; when images differ in shape or leave the bounds, or when the
                loader is empty.
        """
        network = unwrap(network)
        where = torch.device(device) if device is not None else _device_of_network(network)
        bar_type, _ = optional_import("tqdm.auto", name="tqdm")
        found = start
        with torch.inference_mode(False), frozen(network), torch.enable_grad():
            for epoch in range(0 if start is None else start.epochs, self.epochs):
                label = f"universal perturbation {epoch + 1}/{self.epochs}"
                delta = None if found is None else found.delta
                with bar_type(loader, desc=label, disable=not progress, leave=False) as bar:
                    for batch in bar:
                        image, target = (_take if prepare_batch is None else prepare_batch)(batch)
                        place = where or image.device
                        image, target = (_moved(value, place) for value in (image, target))
                        checks.check_image(image)
                        checks.check_batch("target", target, image)
                        _check_shape(image, delta)
                        delta = self._step(network, inferer, image, target, delta)
                if delta is None:
                    raise ValueError("loader: expected at least one batch; got none")
                found = UniversalPerturbation(
                    delta.cpu(), eps=self.eps, norm=self.norm, bounds=self.bounds, epochs=epoch + 1
                )
                if callback is not None:
                    callback(found)
        assert found is not None
        return found

    def _step(
        self, network: Callable[..., Any], inferer: Any, image: torch.Tensor, target: Any, delta: torch.Tensor | None
    ) -> torch.Tensor:
        """The perturbation after one batch."""
        work = image if image.dtype in (torch.float32, torch.float64) else image.float()
        zero = torch.zeros_like(work[:1])
        delta = zero if delta is None else delta.to(work)[None]
        ball = LpBall(checks.spread("eps", self.eps, zero, samples=False), float(self.norm))
        bounds = checks.fit_bounds(self.bounds, work)
        moved = work + delta
        adversarial = moved if bounds is None else clamp(moved, *bounds)

        def check(prediction: Any) -> None:
            checks.check_target(self.loss_function, prediction, target)

        query = Query(network, inferer, checks.as_amp(self.amp), image.dtype, check)
        trial = Trial(work, adversarial, 0, 1, None, None, query.predict, lambda x: x, lambda g: g)
        objective = _Clipped(self.loss_function, self.targeted, self.loss_clip)
        gradient, _ = finite_only(query.gradient(objective, adversarial, target, trial)[0])
        slope = torch.where(adversarial == moved, gradient, 0.0).mean(0, keepdim=True)
        size = (
            ball.eps / 10 if self.step_size is None else checks.spread("step_size", self.step_size, zero, samples=False)
        )
        step, _ = steepest(ball.norm, ball.per_channel).update(slope, None)
        return ball.project(zero, delta + size * step)[0]


@dataclass(frozen=True)
class _Clipped(Deviation):
    """``min(J, limit)``."""

    limit: float | None = None

    def __call__(self, prediction: Any, target: Any, trial: Trial) -> torch.Tensor:
        value = super().__call__(prediction, target, trial)
        return value if self.limit is None else value.clamp_max(self.limit)


def _take(batch: Any) -> tuple[torch.Tensor, Any]:
    """Image and target of a batch as MONAI's loaders give it."""
    if isinstance(batch, Mapping):
        keys = (CommonKeys.IMAGE.value, CommonKeys.LABEL.value)
        missing = [key for key in keys if key not in batch]
        if missing:
            raise ValueError(f"loader: expected the keys {keys} in a batch; got {sorted(map(str, batch))}")
        return batch[keys[0]], batch[keys[1]]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise ValueError(
        f"loader: expected batches that are dictionaries or pairs of image and target; got {type(batch).__name__}; "
        "give a prepare_batch"
    )


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors without metadata, on the device, that autograd can keep also where inference mode made them."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        plain = as_plain(tensor)
        return (plain.clone() if plain.is_inference() else plain.detach()).to(device)

    return map_tensors(value, moved)


def _check_shape(image: torch.Tensor, delta: torch.Tensor | None) -> None:
    if delta is not None and image.shape[1:] != delta.shape:
        expected, got = tuple(delta.shape), tuple(image.shape[1:])
        raise ValueError(f"loader: expected images of one shape, {expected} as the perturbation; got {got}")


def _device_of_network(network: Callable[..., Any]) -> torch.device | None:
    parameter = next(network.parameters(), None) if isinstance(network, torch.nn.Module) else None
    return None if parameter is None else parameter.device
