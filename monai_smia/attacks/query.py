# SPDX-License-Identifier: Apache-2.0
"""`Query`: everything an attack asks of the network, counted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from monai.inferers import SimpleInferer

from monai_smia.attacks.diversity import View
from monai_smia.attacks.nested import map_tensors
from monai_smia.attacks.objectives import Objective
from monai_smia.attacks.trial import Trial

FLOAT16_SCALE = 1024.0  # a gradient under 6e-8 is zero in float16


class Query:
    """Predictions and gradients of one network through one inferer.

    Args:
        network: any callable, image to prediction.
        inferer: a MONAI inferer; ``None`` calls the network.
        amp: precision of the gradient passes; ``None`` leaves the caller's autocast as it is.
        dtype: what the network is given; an attack's own arithmetic is in single precision at least.
        check: called once, with the first prediction, to refuse a target that does not fit it.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        inferer: Any,
        amp: torch.dtype | None,
        dtype: torch.dtype,
        check: Callable[[Any], None],
    ) -> None:
        self.network = network
        self.inferer = None if type(inferer) is SimpleInferer else inferer
        self.amp = amp
        self.dtype = dtype
        self.check = check
        self.forward_passes = 0
        self.backward_passes = 0

    def predict(self, image: torch.Tensor) -> Any:
        """The prediction of the gradient passes, in single precision at least; differentiable if `image` is."""
        return self._predict(image, self._autocast(image, self.amp))

    @torch.no_grad()
    def judge(self, image: torch.Tensor) -> Any:
        """The prediction without a graph, in single precision where `amp` lowers that of the gradient passes."""
        return self._predict(image, self._autocast(image, None if self.amp is None else torch.float32))

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
        try:
            prediction = self.predict(leaf) if view is None else view.undo(self.predict(view.apply(leaf)))
            gradient = objective.gradient(prediction, target, trial, differentiate)
        except RuntimeError as error:
            if "inplace operation" in str(error) or "in-place operation" in str(error):
                raise RuntimeError(
                    "network: an operation overwrites in place a tensor that its gradient needs (often a softmax "
                    "or an activation with inplace=True at the end); expected a network that autograd can follow"
                ) from error
            if "appears to not have been used in the graph" in str(error):
                raise RuntimeError("network: expected a prediction that depends on the image; it does not") from error
            raise
        return gradient.detach(), map_tensors(prediction, torch.Tensor.detach)

    def _predict(self, image: torch.Tensor, precision: AbstractContextManager[Any]) -> Any:
        self.forward_passes += 1
        with precision:
            # a copy, so that a network that changes its input changes neither the iterate nor a leaf of the graph
            given = image.clone() if image.dtype == self.dtype else image.to(self.dtype)
            prediction = self.network(given) if self.inferer is None else self.inferer(given, self._cloned)
        if self.forward_passes == 1:
            self.check(prediction)
        return map_tensors(prediction, lambda x: x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)

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
