# SPDX-License-Identifier: Apache-2.0
"""`decide_head`: from all that is known of an output to one activation, or to a contradiction named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks.checks import one_of
from monai_smia.attacks.heads import ACTIVATIONS, LossFunction, activations_said, ignore_index, infer_activation
from monai_smia.bundle.evidence import (
    Evidence,
    from_channels,
    from_label,
    from_loss,
    from_postprocessing,
    from_values,
    not_understood,
    one_class_each,
)
from monai_smia.bundle.fitting import converts_indices

MEANING = {
    "softmax": "logits, one class of several (softmax)",
    "sigmoid": "logits, each channel a decision of its own (sigmoid)",
    "none": "probabilities already",
}


@dataclass(frozen=True)
class Head:
    """What an output means.

    Attributes:
        activation: between output and probability, ``"none"`` where it holds probabilities.
        exclusive: whether one of several channels is chosen (argmax); never with one channel.
        indices: whether the label holds class indices for several channels; without a label, whether it would.
        why: who says so, for a sentence.
    """

    activation: str
    exclusive: bool
    indices: bool
    why: str


def decide_head(
    output: torch.Tensor,
    label: torch.Tensor | None,
    *,
    loss_function: LossFunction | None = None,
    postprocessing: Any = None,
    activation: str | None = None,
) -> Head:
    """The head of an output ``BC[HW[D]]``, from the first of loss, postprocessing, values and label that says it.

    Args:
        output: raw output of one batch.
        label: its label, with the output's axes: its shape, or ``(B, 1, ...)``.
        loss_function: the bundle's.
        postprocessing: the bundle's.
        activation: what a person says; it settles a contradiction between the sources.

    Raises:
        ValueError: when two of them contradict each other, naming both; when the label's values fit no such head; when
            nothing but the number of channels is known and the postprocessing reads them in a way of its own.
    """
    channels = output.shape[1]
    loss, post = from_loss(loss_function), from_postprocessing(postprocessing, output)
    values = from_values(output)
    found = [item for item in (loss, post, values, from_label(label, output), from_channels(output)) if item]
    if activation is None:
        if channels > 1 and not (loss or post or values):
            _refuse_to_guess(loss_function, postprocessing, output, label)
        chosen = _agreed(found)
        _check_channels(chosen, post, channels)
    else:
        chosen = Evidence("`activation`", one_of("activation", activation, ACTIVATIONS))
    matching = label is not None and label.shape == output.shape
    exclusive = channels > 1 and (
        chosen.activation == "softmax"
        or (label is not None and not matching)
        or any(item is not None and item.exclusive is True for item in (post, values))
        or (label is None and loss_function is not None and converts_indices(loss_function) is True)
    )
    head = Head(chosen.activation, exclusive, exclusive and not matching, chosen.source)
    if label is not None:
        ignored = None if loss_function is None else ignore_index(loss_function)
        cuts = loss_function is not None and bool(converts_indices(loss_function))
        _check_label(head, label if ignored is None else label[label != ignored], label, output, cuts)
    return head


def _refuse_to_guess(loss_function: LossFunction | None, postprocessing: Any, output: torch.Tensor, label: Any) -> None:
    """The number of channels, or a label of indices, says nothing where the bundle reads them in its own way."""
    if loss_function is not None and len(activations_said(loss_function)) > 1:
        infer_activation(loss_function, output.shape[1])  # raises, naming both
    step = not_understood(postprocessing)
    if step is not None and (label is None or label.shape != output.shape):
        raise ValueError(
            f"activation: the postprocessing's {step} makes something of its own of the {output.shape[1]} channels of "
            "the prediction, which need not be classes (they may be flows or distances), and no loss says what they "
            f"are; expected `activation`, one of {', '.join(map(repr, ACTIVATIONS))}, or a loss with the bundle"
        )


def _agreed(found: list[Evidence]) -> Evidence:
    """The first sure source, or else the first at all."""
    sure = [item for item in found if item.sure]
    for other in sure[1:]:
        if other.activation != sure[0].activation:
            raise ValueError(
                f"activation: {sure[0].source} says {MEANING[sure[0].activation]}, but {other.source} says "
                f"{MEANING[other.activation]}; expected one of them to be changed, or `activation` to be given"
            )
    return sure[0] if sure else found[0]


def _check_channels(chosen: Evidence, post: Evidence | None, channels: int) -> None:
    """Contradictions that are no matter of activation alone: with one channel, and between softmax and a threshold."""
    one_of_several = next((item for item in (chosen, post) if item and item.activation == "softmax"), None)
    if channels == 1 and one_of_several is not None:
        raise ValueError(
            f"activation: {one_of_several.source} chooses one of several channels, but the prediction has 1, of which "
            "a softmax is always 1; expected sigmoid, or more channels"
        )
    threshold = post is not None and not post.sure and post.exclusive is False
    if post is not None and threshold and chosen.activation == "softmax":
        raise ValueError(
            f"activation: {chosen.source} says {MEANING['softmax']}, but {post.source} decides each channel of its "
            "own; expected one of them to be changed, or `activation` to be given"
        )


def _check_label(head: Head, counted: torch.Tensor, label: torch.Tensor, output: torch.Tensor, cuts: bool) -> None:
    """The values of the label, of which `counted` are those that the loss does not ignore.

    Fractions, as of labels stored as JPEG, are let pass where the loss cuts them off (`cuts`), as MONAI's do.
    """
    low, high = (float(counted.min()), float(counted.max())) if counted.numel() else (0.0, 0.0)
    if head.indices:
        whole = cuts or not counted.is_floating_point() or bool((counted == counted.round()).all())
        if not whole or low < 0 or high >= output.shape[1]:
            raise ValueError(
                f"label: {head.why} makes this a choice of one of {output.shape[1]} channels; expected class indices "
                f"from 0 to {output.shape[1] - 1}; got values from {low:g} to {high:g}"
                f"{'' if whole else ', not all whole'}"
            )
    elif low < 0 or high > 1:
        raise ValueError(
            f"label: {head.why} makes this a decision by channel; expected values from 0 to 1; "
            f"got values from {low:g} to {high:g}"
        )
    elif head.exclusive and counted.numel() == label.numel() and not one_class_each(label):
        raise ValueError(
            f"activation: {head.why} says one class of several, but the label {tuple(label.shape)} holds several "
            "classes, or none, at once; expected a sigmoid head, or a label whose channels sum to 1"
        )
