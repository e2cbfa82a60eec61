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
from monai.losses import (
    FocalLoss,
    GlobalMutualInformationLoss,
    JukeboxLoss,
    LocalNormalizedCrossCorrelationLoss,
    PerceptualLoss,
    SSIMLoss,
)
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks.loss_parts import ACTIVATION_MODULES, is_of_monai, loss_parts

LossFunction = Callable[..., Any]

ACTIVATIONS = ("softmax", "sigmoid", "none")
_SOFTMAX = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
_SIGMOID = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss, nn.SoftMarginLoss)
_REGRESSION = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.GaussianNLLLoss,
    nn.PoissonNLLLoss,
    GlobalMutualInformationLoss,
    JukeboxLoss,
    LocalNormalizedCrossCorrelationLoss,
    PerceptualLoss,
    SSIMLoss,
)
_SOFTMAX_FUNCTIONS = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)
_SIGMOID_FUNCTIONS = (F.binary_cross_entropy_with_logits, F.multilabel_soft_margin_loss, F.soft_margin_loss)
_REGRESSION_FUNCTIONS = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
_DEFAULT_IGNORED = -100  # torch's, of every cross-entropy


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
    """Whether the loss compares numbers, for which labels and success by class have no meaning.

    It does where every loss of torch's and MONAI's inside it is one of regression or of the similarity of images.
    """
    parts = [part for part in loss_parts(loss_function) if not isinstance(part, ACTIVATION_MODULES)]
    return bool(parts) and all(isinstance(part, _REGRESSION) or part in _REGRESSION_FUNCTIONS for part in parts)


def ignore_index(loss_function: LossFunction) -> int | None:
    """The label value that the loss leaves out, as torch's cross-entropy does; ``None`` where it has none.

    Of a loss made of several it is the one that was set; torch's default of -100 gives way to it.

    Raises:
        ValueError: when losses inside it leave out different values.
    """
    if isinstance(loss_function, functools.partial) and "ignore_index" in loss_function.keywords:
        return int(loss_function.keywords["ignore_index"])
    own = getattr(core_loss(loss_function), "ignore_index", None)
    if isinstance(own, int):
        return own
    found = {value for part in loss_parts(loss_function) for value in _ignored_by(part)}
    chosen = found - {_DEFAULT_IGNORED} or found
    if len(chosen) > 1:
        raise ValueError(
            f"loss_function: expected one ignore_index in all of {_named(loss_function)}; got {sorted(chosen)}"
        )
    return next(iter(chosen), None)


def _ignored_by(part: Any) -> list[int]:
    """The label values that one loss of torch's or MONAI's leaves out."""
    if part in (F.cross_entropy, F.nll_loss):
        return [_DEFAULT_IGNORED]
    values = [getattr(loss, "ignore_index", None) for loss in (part, getattr(part, "dice", None))]
    return [value for value in values if isinstance(value, int)]


def label_range(loss_function: LossFunction) -> tuple[float, float]:
    """Lowest and highest label of a decision that each channel makes of its own: 0 and 1, but for the soft margin."""
    signed = any(
        isinstance(part, nn.SoftMarginLoss) or part is F.soft_margin_loss for part in loss_parts(loss_function)
    )
    return (-1.0 if signed else 0.0), 1.0


def activations_said(loss_function: LossFunction) -> dict[str, str]:
    """Every activation that a loss inside this one implies, with the name of that loss.

    More than one is a contradiction. None leaves it to the number of channels. MONAI's losses without a flag say
    "none" only where nothing else speaks: beside a loss on logits their activation is applied before them.
    """
    parts = loss_parts(loss_function)
    losses = [(part, _activation_by(part)) for part in parts if not isinstance(part, ACTIVATION_MODULES)]
    said = {activation: _named(part) for part, activation in losses if activation in ("softmax", "sigmoid")}
    strict = [part for part, _ in losses if isinstance(part, nn.BCELoss) or part is F.binary_cross_entropy]
    if not said:  # a loss on probabilities behind an activation module of the same wrapper is one on logits
        for part in parts:
            if isinstance(part, ACTIVATION_MODULES):
                said["sigmoid" if "Sigmoid" in type(part).__name__ else "softmax"] = _named(part)
        if said:
            return said
    if strict:
        said["none"] = _named(strict[0])
    elif not said:
        said = {activation: _named(part) for part, activation in losses if activation == "none"}
    return said


def infer_activation(loss_function: LossFunction, channels: int) -> str:
    """The activation between the network's raw output and a probability, read from the loss.

    Args:
        loss_function: a MONAI or torch loss, or one that holds some; their types or their
            ``softmax``/``sigmoid``/``use_softmax`` flags decide.
        channels: channels of the prediction; where the loss does not say, one channel means sigmoid and more mean
            softmax.

    Returns:
        ``"softmax"``, ``"sigmoid"``, or ``"none"`` where the loss takes probabilities, as `DiceLoss` without a flag
        does.

    Raises:
        ValueError: when losses inside it imply different activations, naming both.

    Example:
        >>> infer_activation(nn.ModuleList([nn.BCEWithLogitsLoss()]), 3)
        'sigmoid'
    """
    said = activations_said(loss_function)
    if len(said) > 1:
        (one, first), (other, second) = list(said.items())[:2]
        raise ValueError(
            f"loss_function: {_named(loss_function)} holds both {first} ({one!r}) and {second} ({other!r}); expected "
            "`activation` to be given, or for an attack that takes none a `criterion` such as "
            f"Misclassification({one!r})"
        )
    return next(iter(said), "sigmoid" if channels == 1 else "softmax")


def _activation_by(part: Any) -> str | None:
    """What one loss of torch's or MONAI's implies; ``None`` where it leaves it to the number of channels."""
    if isinstance(part, _SOFTMAX) or part in _SOFTMAX_FUNCTIONS:
        return "softmax"
    if isinstance(part, _SIGMOID) or part in _SIGMOID_FUNCTIONS:
        return "sigmoid"
    if isinstance(part, nn.BCELoss) or part is F.binary_cross_entropy:
        return "none"
    inside = list(part.modules()) if isinstance(part, nn.Module) else []
    own = [module for module in inside if is_of_monai(module)]
    for name in ("sigmoid", "softmax"):
        if any(getattr(module, flag, False) is True for module in own for flag in (name, f"pre_{name}")):
            return name
    for module in own:
        if isinstance(module, FocalLoss):
            return "softmax" if module.use_softmax else "sigmoid"
    logits = any(isinstance(module, (*_SOFTMAX, *_SIGMOID)) for module in inside)
    flagged = any(hasattr(module, "softmax") and getattr(module, "other_act", None) is None for module in own)
    return "none" if flagged and not logits else None


def _named(loss_function: Any) -> str:
    return str(getattr(loss_function, "__name__", type(loss_function).__name__))


def activation_of(activation: str, loss_function: LossFunction, prediction: torch.Tensor) -> str:
    """The activation given, or the loss's where that is ``"auto"``."""
    return infer_activation(loss_function, prediction.shape[1]) if activation == "auto" else activation


def main_output(prediction: Any, advice: str | None = None) -> torch.Tensor:
    """The tensor that is judged: the prediction, or the first of several (deep supervision's full resolution).

    Its channel axis is the second; a classifier's that was squeezed away, ``(B,)`` or a single number, is put back.

    Args:
        prediction: the network's output.
        advice: what to do where there is no such tensor, for the error.

    Raises:
        TypeError: when there is no such tensor, as for a detector's dictionaries.
    """
    first = prediction[0] if isinstance(prediction, (tuple, list)) and prediction else prediction
    if isinstance(first, torch.Tensor):
        return first if first.ndim > 1 else first.reshape(-1, 1)
    raise TypeError(
        "prediction: expected a tensor, or a sequence that starts with one, to read classes from; "
        f"got {type(prediction).__name__}. {advice or _ADVICE}"
    )


_ADVICE = (
    "Wrap the network so that it returns the tensor, such as lambda x: network(x)['out'], or take what reads no "
    "classes: PGD with a `criterion`, a `divergence` of your own"
)


def is_binary(activation: str, channels: int, multilabel: bool) -> bool:
    """Whether each channel is a decision of its own."""
    return activation == "sigmoid" or (activation == "none" and (channels == 1 or multilabel))


def is_per_channel(target: torch.Tensor, prediction: torch.Tensor, activation: str) -> bool:
    """Whether the label has a value for each channel: one-hot, or several at once; else it holds class indices.

    Raises:
        ValueError: when its shape fits no layout of labels, naming both shapes.
    """
    batch, channels, *spatial = prediction.shape
    if target.shape == prediction.shape and (channels > 1 or is_binary(activation, channels, True)):
        return True
    if tuple(target.shape) not in ((batch, *spatial), (batch, 1, *spatial)):
        raise ValueError(
            f"target: expected labels {(batch, *spatial)} or {(batch, 1, *spatial)}, or one-hot "
            f"{tuple(prediction.shape)}, "
            f"for a prediction of shape {tuple(prediction.shape)}; got {tuple(target.shape)}"
        )
    return channels == 1 and is_binary(activation, channels, False)


def labels(target: torch.Tensor, prediction: torch.Tensor, activation: str, ignored: int | None = None) -> torch.Tensor:
    """`target` in canonical form, from indices with or without a channel axis, or from one-hot.

    A label that is `ignored` stays as it is among class indices, and is "no" of a binary decision.

    Raises:
        ValueError: when the shape fits none of them, naming both shapes.
    """
    channels = prediction.shape[1]
    binary = is_binary(activation, channels, target.shape == prediction.shape)
    if is_per_channel(target, prediction, activation):
        if not binary:
            return target.max(1).indices
        yes = target > 0.5 if ignored is None else (target > 0.5) & ~_equals(target, ignored)
        return yes.reshape(prediction.shape)
    index = _index(target, prediction)
    if not binary:
        return index
    if ignored is not None:
        left_out = index == ignored
        return F.one_hot(index.masked_fill(left_out, 0), channels).movedim(-1, 1).bool() & ~left_out.unsqueeze(1)
    return F.one_hot(index, channels).movedim(-1, 1).bool()


def _index(target: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """Class indices ``(B, *spatial)``."""
    return target.reshape(len(prediction), *prediction.shape[2:]).long()


def counted(target: torch.Tensor, prediction: torch.Tensor, activation: str, ignored: int | None) -> torch.Tensor:
    """Which decisions count, ``(B, C', *spatial)`` bool: those whose label is not `ignored`.

    Of a label with a value for each of several channels MONAI's rule holds besides: a class index leaves out the voxels
    of that class, any other value but torch's default those without a class.
    """
    channels = prediction.shape[1]
    binary = is_binary(activation, channels, target.shape == prediction.shape)
    shape = prediction.shape if binary else (len(prediction), 1, *prediction.shape[2:])
    if ignored is None:
        return torch.ones(shape, dtype=torch.bool, device=prediction.device)
    if not is_per_channel(target, prediction, activation):
        return (_index(target, prediction) != ignored).unsqueeze(1).expand(shape)
    if channels == 1:
        return ~_equals(target, ignored).reshape(shape)
    valid = torch.ones(shape, dtype=torch.bool, device=prediction.device)
    if 0 <= ignored < channels:
        return valid & (target[:, ignored : ignored + 1] <= 0.5)
    if ignored != _DEFAULT_IGNORED:
        valid = valid & (target != 0).any(1, keepdim=True)
    return valid & ~_equals(target, ignored) if binary else valid


def counted_like(target: torch.Tensor, prediction: torch.Tensor, activation: str, ignored: int | None) -> torch.Tensor:
    """Which entries of the label count, in its own shape."""
    valid = counted(target, prediction, activation, ignored)
    same = target.shape == prediction.shape
    return valid.expand(target.shape) if same else valid[:, :1].reshape(target.shape)


def _equals(target: torch.Tensor, value: int) -> torch.Tensor:
    """Where the label is this value; in bytes -100 would be 156."""
    return (target if target.is_floating_point() else target.long()) == value


def true_class(
    target: torch.Tensor, prediction: torch.Tensor, activation: str, ignored: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The index of each decision's true class in `log_probabilities`, and whether it counts, ``(B, C', *spatial)``.

    A decision whose label is `ignored` has class 0 and does not count.
    """
    index, valid = labels(target, prediction, activation, ignored), counted(target, prediction, activation, ignored)
    index = (~index).long() if index.dtype == torch.bool else index.unsqueeze(1)  # class 0 of a binary pair is "yes"
    return torch.where(valid, index, torch.zeros_like(index)), valid


def mean_of_valid(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The mean of each sample over the decisions that count, ``(B,)``; 0 where none does, whatever the others hold."""
    kept = torch.where(valid, values, torch.zeros_like(values)).flatten(1)
    return kept.sum(1) / valid.expand_as(values).flatten(1).sum(1).clamp_min(1)


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


def scores(prediction: torch.Tensor, activation: str, multilabel: bool) -> torch.Tensor:
    r"""Log-odds up to a constant for each decision, ``(B, K, C', *spatial)``: the scale of every margin.

    Logits are that already, of a binary decision against 0. Of probabilities they are recovered: :math:`\log p`, of a
    binary decision against :math:`\log(1 - p)`. A probability of exactly 0 or 1, as single precision makes of a sigmoid
    beyond a logit of 17, has lost them and has no slope.
    """
    if activation == "none":
        return log_probabilities(prediction, activation, multilabel)
    if is_binary(activation, prediction.shape[1], multilabel):
        return torch.stack((prediction, torch.zeros_like(prediction)), 1)
    return prediction.unsqueeze(2)


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """``KL(p || q)`` of log-probabilities ``(B, K, C', *spatial)``, summed over classes; 0 times infinity is 0."""
    p = log_p.exp()
    there = p > 0
    gap = torch.where(there, log_p, 0.0) - torch.where(there, log_q, 0.0)
    return (p * gap).sum(1)


def like_target(hard: torch.Tensor, target: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """Canonical labels `hard` in the shape and dtype that `target` has, so that the user's loss reads both alike."""
    if hard.dtype != torch.bool:
        if target.shape == prediction.shape:
            hard = F.one_hot(hard, prediction.shape[1]).movedim(-1, 1)
    elif target.shape != prediction.shape:
        hard = hard.long().argmax(1) if prediction.shape[1] > 1 else hard[:, 0]
    return hard.reshape(target.shape).to(target.dtype)
