# SPDX-License-Identifier: Apache-2.0
"""`Query`: everything an attack asks of the network, counted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from monai.inferers import SimpleInferer

from monai_smia.attacks.checks import check_batch_of, check_network_rank
from monai_smia.attacks.diversity import View
from monai_smia.attacks.nested import map_tensors
from monai_smia.attacks.objectives import Objective
from monai_smia.attacks.trial import Trial

FLOAT16_SCALE = 1024.0  # a gradient under 6e-8 is zero in float16


@runtime_checkable
class WindowInferer(Protocol):
    """What an inferer that predicts window by window may offer an attack, see `GradientSlidingWindowInferer`."""

    def within(self, mask: torch.Tensor) -> Callable[..., Any]:
        """The inferer for an image that may change inside `mask` only, which spares it gradients elsewhere."""

    def beside(self, inputs: torch.Tensor, other: torch.Tensor, network: Callable[..., Any]) -> tuple[Any, Any]:
        """Predictions at both images in one pass; only the first carries a gradient."""


class Query:
    """Predictions and gradients of one network through one inferer.

    Args:
        network: any callable, image to prediction.
        inferer: a MONAI inferer; ``None`` calls the network.
        amp: precision of the gradient passes; ``None`` leaves the caller's autocast as it is.
        dtype: what the network is given; an attack's own arithmetic is in single precision at least.
        check: called once, with the first prediction, to refuse a target that does not fit it.
        mask: where the image may change; gradients elsewhere are not looked at. ``None`` for everywhere.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        inferer: Any,
        amp: torch.dtype | None,
        dtype: torch.dtype,
        check: Callable[[Any], None],
        mask: torch.Tensor | None = None,
    ) -> None:
        self.network = network
        self.inferer: Any = inferer
        if type(inferer) is SimpleInferer:
            self.inferer = None
        self.narrowed = self.inferer
        if mask is not None and self._by_windows:
            self.narrowed = self.inferer.within(mask)
        self.amp = amp
        self.dtype = dtype
        self.check = check
        self.forward_passes = 0
        self.backward_passes = 0

    def predict(self, image: torch.Tensor) -> Any:
        """The prediction of the gradient passes, in single precision at least; differentiable if `image` is."""
        return self._predict(image, self.amp)

    @torch.no_grad()
    def judge(self, image: torch.Tensor) -> Any:
        """The prediction without a graph, in single precision where `amp` lowers that of the gradient passes."""
        return self._predict(image, None if self.amp is None else torch.float32)

    def gradient(
        self, objective: Objective, at: torch.Tensor, target: Any, trial: Trial, view: View | None = None
    ) -> tuple[torch.Tensor, Any]:
        """Gradient of the objective with respect to the image `at`, and the prediction there, detached.

        Raises:
            RuntimeError: when no gradient reaches the image, or an operation of the network overwrote what it needs.
        """
        leaf = at.detach().requires_grad_()
        scale = FLOAT16_SCALE if self._precision(leaf) == torch.float16 else 1.0

        def differentiate(values: torch.Tensor, retain_graph: bool = False) -> torch.Tensor:
            if not values.requires_grad:
                raise RuntimeError(
                    "network: expected a prediction that depends differentiably on the image; no gradient reaches it "
                    "(is there a detach, an argmax or a no_grad inside?)"
                )
            self.backward_passes += 1
            total = values.sum() * scale if scale != 1 else values.sum()
            (gradient,) = torch.autograd.grad(total, leaf, retain_graph=retain_graph)
            return gradient / scale if scale != 1 else gradient

        trial = objective.prepare(trial)
        other = objective.beside(trial)
        try:
            if view is not None:
                trial = self._ask(trial, other)
                prediction = view.undo(self.predict(view.apply(leaf)))
            elif other is not None and self._by_windows:
                prediction, asked = self._predict_beside(leaf, other)
                trial = replace(trial, asked=asked)
            else:
                trial = self._ask(trial, other)
                prediction = self._predict(leaf, self.amp, self.narrowed)
            gradient = objective.gradient(prediction, target, trial, differentiate)
        except RuntimeError as error:
            if "inplace operation" in str(error) or "in-place operation" in str(error):
                raise RuntimeError(
                    "network: an operation overwrites in place a tensor that its gradient needs (often a softmax "
                    "or an activation with inplace=True at the end); expected a network that autograd can follow"
                ) from error
            if "use_reentrant" in str(error):
                raise RuntimeError(
                    "network: its activation checkpointing gives gradients to parameters only; expected "
                    "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
                ) from error
            if "appears to not have been used in the graph" in str(error):
                raise RuntimeError("network: expected a prediction that depends on the image; it does not") from error
            raise
        return gradient.detach(), map_tensors(prediction, torch.Tensor.detach)

    @property
    def _by_windows(self) -> bool:
        return isinstance(self.inferer, WindowInferer)

    @torch.no_grad()
    def _ask(self, trial: Trial, other: torch.Tensor | None) -> Trial:
        """The trial with the prediction that its objective asks for beside the iterate's."""
        return trial if other is None else replace(trial, asked=self.predict(other))

    def _predict_beside(self, image: torch.Tensor, other: torch.Tensor) -> tuple[Any, Any]:
        """Predictions at both, in one pass of an inferer that can."""
        self.forward_passes += 2
        with self._autocast(image, self.amp):
            pair = self.narrowed.beside(self._given(image), self._given(other), self.network)
        first, second = (map_tensors(prediction, _widened) for prediction in pair)
        if self.forward_passes == 2:
            self.check(first)
        return first, second

    def _predict(self, image: torch.Tensor, precision: torch.dtype | None, inferer: Any = None) -> Any:
        self.forward_passes += 1
        inferer = self.inferer if inferer is None else inferer
        try:
            with self._autocast(image, precision):
                if inferer is None:
                    prediction = self.network(self._given(image))
                else:
                    prediction = inferer(self._given(image), self.network if self._by_windows else self._cloned)
        except (RuntimeError, ValueError, IndexError) as error:
            if self.forward_passes == 1:
                check_network_rank(self.network, image, error)
            raise
        if self.forward_passes == 1:
            check_batch_of(prediction, image)
            self.check(prediction)
        return map_tensors(prediction, _widened)

    def _given(self, image: torch.Tensor) -> torch.Tensor:
        """A copy, so that a network that changes its input changes neither the iterate nor a leaf of the graph."""
        return image.clone() if image.dtype == self.dtype else image.to(self.dtype)

    def _cloned(self, *args: Any, **kwargs: Any) -> Any:
        """The network for inferers: they weight its output in place, which a softmax's gradient does not survive."""
        return map_tensors(self.network(*args, **kwargs), torch.clone)

    def _precision(self, image: torch.Tensor) -> torch.dtype:
        """What the network computes its gradient in: the attack's choice, else the caller's autocast, else its own."""
        if self.amp is not None:
            return self.amp
        kind = image.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype

    def _autocast(self, image: torch.Tensor, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
        if dtype is None:
            return nullcontext()
        return torch.autocast(
            image.device.type, dtype=dtype if dtype != torch.float32 else None, enabled=dtype != torch.float32
        )


def _widened(prediction: torch.Tensor) -> torch.Tensor:
    """In single precision at least."""
    return prediction.float() if prediction.dtype in (torch.float16, torch.bfloat16) else prediction
