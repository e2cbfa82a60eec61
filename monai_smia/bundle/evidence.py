# SPDX-License-Identifier: Apache-2.0
"""What is known of an output's activation: from the loss, the postprocessing, the values and the label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from monai.transforms import Activations, Activationsd, AsDiscrete, AsDiscreted, Lambda, Lambdad
from monai.utils import CommonKeys

from monai_smia.attacks.heads import LossFunction, activations_said, infer_activation
from monai_smia.bundle.fitting import name_of

SUM_TOLERANCE = 1e-3  # of rows of probabilities: half precision, or blended windows
BOUNDED = 64  # as many values in [0, 1] are no accident of logits


@dataclass(frozen=True)
class Evidence:
    """One source's word on an output.

    Attributes:
        source: who says it, for a sentence.
        activation: ``"softmax"``, ``"sigmoid"``, ``"none"`` for probabilities.
        exclusive: whether a voxel (or an image) has one class of several; ``None`` where the source does not say.
        sure: whether another sure source that says otherwise is a contradiction.
    """

    source: str
    activation: str
    exclusive: bool | None = None
    sure: bool = True


def from_loss(loss_function: LossFunction | None) -> Evidence | None:
    """The loss's own flags or type; ``None`` where they leave it to the number of channels, or contradict."""
    if loss_function is None or len(activations_said(loss_function)) > 1:
        return None
    said = {infer_activation(loss_function, channels) for channels in (1, 2)}
    if len(said) > 1:
        return None
    activation = said.pop()
    return Evidence(f"the loss {name_of(loss_function)}", activation, True if activation == "softmax" else None)


def from_postprocessing(postprocessing: Any, output: torch.Tensor) -> Evidence | None:
    """`Activations` and `AsDiscrete` of the prediction, alone, in a list or composed; other callables are passed over.

    `AsDiscrete` alone is a hint, not sure: its argmax leaves open what the values are; a threshold between 0 and 1 is
    one of probabilities if the values are in [0, 1], any other one of logits.

    Raises:
        ValueError: when both softmax and sigmoid are applied.
    """
    flags = [flag for transform in _transforms(postprocessing) for flag in _flags(transform)]
    activations = [flag for flag in flags if flag[0] in ("softmax", "sigmoid")]
    if len({name for name, _ in activations}) > 1:
        raise ValueError(f"postprocessing: expected softmax or sigmoid; got both, {[text for _, text in activations]}")
    argmax = [text for name, text in flags if name == "argmax"]
    threshold = [text for name, text in flags if name.startswith("threshold")]
    if activations:
        name, text = activations[0]
        exclusive = True if name == "softmax" or argmax else False if threshold else None
        return Evidence(f"the postprocessing's {text}", name, exclusive)
    if argmax:
        return Evidence(f"the postprocessing's {argmax[0]}", "softmax", True, sure=False)
    if threshold:
        value = next(float(name.split()[1]) for name, _ in flags if name.startswith("threshold"))
        activation = "none" if 0 < value < 1 and _bounded(output) else "sigmoid"
        return Evidence(f"the postprocessing's {threshold[0]}", activation, False, sure=False)
    return None


def from_values(output: torch.Tensor) -> Evidence | None:
    """Probabilities: rows that sum to 1 are sure; many values that all lie in [0, 1] are a hint."""
    if not _bounded(output):
        return None
    if output.shape[1] > 1 and bool(((output.float().sum(1) - 1).abs() < SUM_TOLERANCE).all()):
        return Evidence("the output, whose channels sum to 1 everywhere", "none", True)
    if output.numel() >= BOUNDED:
        return Evidence(f"the output, whose {output.numel()} values all lie in [0, 1]", "none", sure=False)
    return None


def from_label(label: torch.Tensor | None, output: torch.Tensor) -> Evidence | None:
    """The label's shape: one channel is sigmoid, indices and one-hot are softmax, several classes at once sigmoid."""
    if label is None:
        return None
    if output.shape[1] == 1:
        return Evidence("the output's single channel", "sigmoid", sure=False)
    if label.shape != output.shape:
        return Evidence("the label, which holds class indices", "softmax", True, sure=False)
    if one_class_each(label):
        return Evidence("the label, which is one-hot", "softmax", True, sure=False)
    return Evidence("the label, which holds several classes, or none, at once", "sigmoid", False, sure=False)


def from_channels(output: torch.Tensor) -> Evidence:
    """The rule where nothing else is known."""
    channels = output.shape[1]
    rule = "nothing but the number of channels (one means sigmoid, more mean softmax)"
    return Evidence(rule, "sigmoid" if channels == 1 else "softmax", channels > 1, sure=False)


def not_understood(postprocessing: Any) -> str | None:
    """The first step of the postprocessing that changes the prediction in a way of its own, by name.

    MONAI's transforms are understood, but for functions handed to them.
    """
    for transform in _transforms(postprocessing):
        keys = getattr(transform, "keys", None)
        if keys is not None and not callable(keys) and set(keys) <= {CommonKeys.IMAGE, CommonKeys.LABEL}:
            continue
        own = not type(transform).__module__.startswith("monai.")
        if own or isinstance(transform, (Lambda, Lambdad)):
            return str(getattr(transform, "__name__", type(transform).__name__))
    return None


def one_class_each(label: torch.Tensor) -> bool:
    """Whether the channels of a label ``BC...`` are in [0, 1] and sum to 1 everywhere."""
    inside = bool(((label >= 0) & (label <= 1)).all())
    return inside and bool(((label.float().sum(1) - 1).abs() < SUM_TOLERANCE).all())


def _bounded(output: torch.Tensor) -> bool:
    return bool(((output >= 0) & (output <= 1)).all())


def _transforms(value: Any) -> Iterator[Any]:
    """The transforms of a composition or a list, in order."""
    inner = getattr(value, "transforms", value)
    if isinstance(inner, (tuple, list)):
        for item in inner:
            yield from _transforms(item)
    elif value is not None:
        yield value


def _flags(transform: Any) -> Iterator[tuple[str, str]]:
    """What a transform does to the prediction, each with a text that shows it."""
    name = type(transform).__name__
    if isinstance(transform, (Activations, Activationsd)):
        for flag in ("softmax", "sigmoid"):
            if any(value for value in _of_prediction(transform, getattr(transform, flag))):
                yield flag, f"{name}({flag}=True)"
    elif isinstance(transform, (AsDiscrete, AsDiscreted)):
        if any(value for value in _of_prediction(transform, transform.argmax)):
            yield "argmax", f"{name}(argmax=True)"
        for value in _of_prediction(transform, transform.threshold):
            if value is not None:
                yield f"threshold {value}", f"{name}(threshold={value})"


def _of_prediction(transform: Any, values: Any) -> list[Any]:
    """A transform's argument for the key ``"pred"``; without such a key for all but image and label."""
    keys = getattr(transform, "keys", None)
    if keys is None:
        return [values]
    pairs = list(zip(keys, values, strict=True))
    if CommonKeys.PRED in keys:
        return [value for key, value in pairs if key == CommonKeys.PRED]
    return [value for key, value in pairs if key not in (CommonKeys.IMAGE, CommonKeys.LABEL)]
