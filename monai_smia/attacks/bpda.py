# SPDX-License-Identifier: Apache-2.0
"""`BPDA`: a step without a useful gradient, with that of an approximation in its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from monai.data import MetaTensor
from torch import nn
from torch.autograd.function import once_differentiable

Function = Callable[[torch.Tensor], torch.Tensor]


class _Substitute(torch.autograd.Function):
    """The value of a step, the gradient of its approximation."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, step: Function, approximation: Function | None) -> torch.Tensor:
        value = step(x.detach().clone())
        value = value.as_tensor() if isinstance(value, MetaTensor) else value
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise TypeError(f"forward: expected a step that returns a floating tensor; got {kind}")
        if approximation is None and value.shape != x.shape:
            raise ValueError(
                f"backward: the identity fits a step that keeps the shape; got {tuple(x.shape)} in, "
                f"{tuple(value.shape)} out. Give an approximation"
            )
        ctx.approximation = approximation
        ctx.save_for_backward(x)
        return value

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (x,) = ctx.saved_tensors
        (gradient,) = gradients
        if ctx.approximation is None:
            return gradient.to(x.dtype), None, None
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = ctx.approximation(leaf)
        if value.shape != gradient.shape:
            raise ValueError(
                f"backward: expected an approximation that returns {tuple(gradient.shape)}, as the step does; "
                f"got {tuple(value.shape)}"
            )
        return torch.autograd.grad(value, leaf, gradient.to(value.dtype))[0], None, None


class BPDA(nn.Module):
    r"""Backward pass differentiable approximation: the value of one function, the gradient of another.

    .. math:: y = g(x), \qquad \nabla_x := \nabla_x\, \hat g(x), \qquad \hat g(x) \approx g(x)

    A layer of a network, or a preprocessing in front of one: ``nn.Sequential(BPDA(denoise), network)``. Any rank. The
    step runs without a graph on a copy of its input, so that it may leave torch on the way.

    Args:
        forward: g, the step as it is, tensor to floating tensor.
        backward: :math:`\hat g`, a differentiable approximation with outputs of the same shape; ``None`` is the
            identity, for steps with :math:`g(x) \approx x`. Its own parameters get no gradient.

    Raises:
        TypeError: when one of them is not callable, or the step returns something else than a floating tensor.
        ValueError: when the shapes disagree.

    Example:
        >>> x = torch.tensor([0.2, 0.7], requires_grad=True)
        >>> y = BPDA(torch.round, torch.sin)(x)
        >>> y.tolist(), torch.equal(torch.autograd.grad(y.sum(), x)[0], x.detach().cos())
        ([0.0, 1.0], True)

    Reference: Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security: circumventing defenses to
    adversarial examples", ICML 2018, https://arxiv.org/abs/1802.00420.
    """

    def __init__(self, forward: Function, backward: Function | None = None) -> None:
        super().__init__()
        for name, function in (("forward", forward), ("backward", backward)):
            if not callable(function) and not (name == "backward" and function is None):
                raise TypeError(f"{name}: expected a callable, tensor to tensor; got {type(function).__name__}")
        self.step = forward
        self.approximation = backward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The step's output at `x`; its gradient is the approximation's."""
        value: torch.Tensor = _Substitute.apply(x, self.step, self.approximation)  # type: ignore[no-untyped-call]
        return value


def straight_through_round(step: float = 1.0) -> BPDA:
    """Rounding to multiples of `step`, with the gradient of the identity: quantisation that an attack sees through.

    Args:
        step: distance of the levels, in the units of the tensor that is rounded, above 0; ``1 / 255`` for eight bits on
            [0, 1].

    Example:
        >>> x = torch.tensor([0.26, 0.60], requires_grad=True)
        >>> y = straight_through_round(0.5)(x)
        >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
        ([0.5, 0.5], [1.0, 1.0])
    """
    if not (isinstance(step, (int, float)) and math.isfinite(step) and step > 0):
        raise ValueError(f"step: expected a finite number > 0; got {step!r}")
    return BPDA(partial(_rounded, step=step))


def _rounded(x: torch.Tensor, step: float) -> torch.Tensor:
    return (x / step).round() * step
