# SPDX-License-Identifier: Apache-2.0
"""Output heads: which activation a loss implies, and predictions and labels in one canonical form.

Canonical labels are class indices ``(B, *spatial)`` for a softmax head and booleans ``(B, C, *spatial)`` for a
sigmoid head; a classification head has no spatial axes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from monai.losses import FocalLoss
from torch import nn
from torch.nn import functional as F

LossFunction = Callable[..., Any]

ACTIVATIONS = ("softmax", "sigmoid", "none")
_SOFTMAX = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
_SIGMOID = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss, nn.SoftMarginLoss)
_REGRESSION = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.GaussianNLLLoss, nn.PoissonNLLLoss)
_SOFTMAX_FUNCTIONS = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)
_SIGMOID_FUNCTIONS = (F.binary_cross_entropy_with_logits, F.multilabel_soft_margin_loss, F.soft_margin_loss)
_REGRESSION_FUNCTIONS = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)


def core_loss(loss_function: LossFunction) -> LossFunction:
    """The loss that decides, inside `functools.partial` and inside MONAI's wrappers (deep supervision, masks)."""
    if isinstance(loss_function, functools.partial):
        return core_loss(loss_function.func)
    inner = getattr(loss_function, "loss", None)
    if type(loss_function).__module__.startswith("monai.") and callable(inner):
        return core_loss(inner)
    return loss_function


def takes_indices(loss_function: LossFunction) -> bool:
    """Whether the loss is one of torch's that want class indices without a channel axis."""
    core = core_loss(loss_function)
    return isinstance(core, _SOFTMAX) or core in _SOFTMAX_FUNCTIONS


def takes_floats(loss_function: LossFunction) -> bool:
    """Whether the loss is one of torch's binary ones, which want floats of the prediction's shape."""
    core = core_loss(loss_function)
    return isinstance(core, (*_SIGMOID, nn.BCELoss)) or core in (*_SIGMOID_FUNCTIONS, F.binary_cross_entropy)


def is_regression(loss_function: LossFunction) -> bool:
    """Whether the loss is one of torch's regression losses, for which labels and success by class have no meaning."""
    core = core_loss(loss_function)
    return isinstance(core, _REGRESSION) or core in _REGRESSION_FUNCTIONS


def ignore_index(loss_function: LossFunction) -> int | None:
    """The label value that the loss leaves out, as torch's cross-entropy does; ``None`` where it has none."""
    if isinstance(loss_function, functools.partial) and "ignore_index" in loss_function.keywords:
        return int(loss_function.keywords["ignore_index"])
    core = core_loss(loss_function)
    if core in (F.cross_entropy, F.nll_loss):
        return -100  # their default
    for loss in (core, getattr(core, "dice", None)):
        value = getattr(loss, "ignore_index", None)
        if isinstance(value, int):
            return value
    return None


def infer_activation(loss_function: LossFunction, channels: int) -> str:
    """The activation between the network's raw output and a probability, read from the loss.

    Args:
        loss_function: a MONAI or torch loss; its type or its ``softmax``/``sigmoid``/``use_softmax`` flags decide.
        channels: channels of the prediction; where the loss does not say, one channel means sigmoid and more mean
            softmax.

    Returns:
        ``"softmax"``, ``"sigmoid"``, or ``"none"`` where the loss takes probabilities, as `DiceLoss` without a flag
        does.
    """
    core = core_loss(loss_function)
    if isinstance(core, nn.BCELoss) or core is F.binary_cross_entropy:
        return "none"
    if isinstance(core, _SIGMOID) or core in _SIGMOID_FUNCTIONS:
        return "sigmoid"
    if takes_indices(loss_function):
        return "softmax"
    parts = list(core.modules()) if isinstance(core, nn.Module) else []
    own = [part for part in parts if type(part).__module__.startswith("monai.")]
    for name in ("sigmoid", "softmax"):
        if any(getattr(part, flag, False) is True for part in own for flag in (name, f"pre_{name}")):
            return name
    for part in own:
        if isinstance(part, FocalLoss):
            return "softmax" if part.use_softmax else "sigmoid"
    logits = any(isinstance(part, (*_SOFTMAX, *_SIGMOID)) for part in parts)
    flagged = any(hasattr(part, "softmax") and getattr(part, "other_act", None) is None for part in own)
    if flagged and not logits:
        return "none"
    return "sigmoid" if channels == 1 else "softmax"


def activation_of(activation: str, loss_function: LossFunction, prediction: torch.Tensor) -> str:
    """The activation given, or the loss's where that is ``"auto"``."""
    return infer_activation(loss_function, prediction.shape[1]) if activation == "auto" else activation


def main_output(prediction: Any) -> torch.Tensor:
    """The tensor that is judged: the prediction, or the first of several (deep supervision's full resolution).

    Raises:
        TypeError: when there is no such tensor, as for a detector's dictionaries.
    """
    if isinstance(prediction, torch.Tensor):
        return prediction
    if isinstance(prediction, (tuple, list)) and prediction and isinstance(prediction[0], torch.Tensor):
        return prediction[0]
    raise TypeError(
        "prediction: expected a tensor, or a sequence that starts with one, to read classes from; "
        f"got {type(prediction).__name__}. Give a `criterion` and an attack that need no classes."
    )


def is_binary(activation: str, channels: int, multilabel: bool) -> bool:
    """Whether each channel is a decision of its own."""
    return activation == "sigmoid" or (activation == "none" and (channels == 1 or multilabel))


def labels(target: torch.Tensor, prediction: torch.Tensor, activation: str) -> torch.Tensor:
    """`target` in canonical form, from indices with or without a channel axis, or from one-hot.

    Raises:
        ValueError: when the shape fits none of them, naming both shapes.
    """
    batch, channels, *spatial = prediction.shape
    binary = is_binary(activation, channels, target.shape == prediction.shape)
    if target.shape == prediction.shape and (binary or channels > 1):
        return target > 0.5 if binary else target.max(1).indices
    if tuple(target.shape) == (batch, 1, *spatial):
        target = target[:, 0]
    if tuple(target.shape) != (batch, *spatial):
        raise ValueError(
            f"target: expected labels {(batch, *spatial)} or {(batch, 1, *spatial)}, or one-hot "
            f"{tuple(prediction.shape)}, "
            f"for a prediction of shape {tuple(prediction.shape)}; got {tuple(target.shape)}"
        )
    if not binary:
        return target.long()
    if channels == 1:
        return target.unsqueeze(1) > 0.5
    return F.one_hot(target.long(), channels).movedim(-1, 1).bool()


def true_class(
    target: torch.Tensor, prediction: torch.Tensor, activation: str, ignored: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The index of each decision's true class in `log_probabilities`, and whether it counts, ``(B, C', *spatial)``.

    A decision whose label is `ignored` has class 0 and does not count.
    """
    index = labels(target, prediction, activation)
    index = (~index).long() if index.dtype == torch.bool else index.unsqueeze(1)  # class 0 of a binary pair is "yes"
    valid = torch.ones_like(index, dtype=torch.bool) if ignored is None else index != ignored
    return torch.where(valid, index, torch.zeros_like(index)), valid


def decisions(prediction: torch.Tensor, activation: str, multilabel: bool) -> torch.Tensor:
    """The predicted labels in canonical form."""
    if is_binary(activation, prediction.shape[1], multilabel):
        return prediction > (0.5 if activation == "none" else 0.0)
    return prediction.max(1).indices  # argmax(1) takes ten times as long on a CPU


def log_probabilities(prediction: torch.Tensor, activation: str, multilabel: bool) -> torch.Tensor:
    """Log-probabilities ``(B, K, C', *spatial)``: K classes of one decision, or 2 for each of C' binary ones."""
    if is_binary(activation, prediction.shape[1], multilabel):
        if activation == "none":
            tiny = torch.finfo(prediction.dtype).tiny
            return torch.stack((prediction, 1 - prediction), 1).clamp_min(tiny).log()
        return torch.stack((F.logsigmoid(prediction), F.logsigmoid(-prediction)), 1)
    if activation == "none":
        return prediction.clamp_min(torch.finfo(prediction.dtype).tiny).log().unsqueeze(2)
    return prediction.log_softmax(1).unsqueeze(2)


def like_target(hard: torch.Tensor, target: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """Canonical labels `hard` in the shape and dtype that `target` has, so that the user's loss reads both alike."""
    if hard.dtype != torch.bool:
        if target.shape == prediction.shape:
            hard = F.one_hot(hard, prediction.shape[1]).movedim(-1, 1)
    elif target.shape != prediction.shape:
        hard = hard.long().argmax(1) if prediction.shape[1] > 1 else hard[:, 0]
    return hard.reshape(target.shape).to(target.dtype)
