# SPDX-License-Identifier: Apache-2.0
"""`warn_of_saturation`: says where an attack failed because probabilities have rounded to 0 and 1."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch

from monai_smia.attacks.heads import LossFunction, activations_said, is_per_channel, is_regression, main_output
from monai_smia.attacks.margins import Decisions


def saturated(decided: Decisions, targeted: bool = False) -> torch.Tensor:
    r"""Samples of which every decision rests on a probability that is 0 in this precision, without a slope, ``(B,)``.

    It is that of the wrong classes, or of the target. In single precision :math:`1 - \sigma(z)` is 0 from a logit of 17
    on, and :math:`\sigma(z)` from -88 on; of logits nothing is lost.

    Example:
        >>> sure = torch.tensor([[20.0], [5.0]]).sigmoid()
        >>> saturated(Decisions.read(sure, torch.tensor([1, 1]), torch.nn.BCELoss(), "auto")).tolist()
        [True, False]
    """
    if decided.activation != "none":
        return torch.zeros(len(decided.output), dtype=torch.bool, device=decided.output.device)
    log_p = decided.log_probabilities().detach()
    wanted = decided.of_label(log_p) if targeted else decided.rivals(log_p).max(1).values
    gone = wanted <= math.log(torch.finfo(log_p.dtype).tiny) * (1 - 1e-6)
    return (gone | ~decided.valid).flatten(1).all(1) & decided.valid.flatten(1).any(1)


def warn_of_saturation(
    loss_function: LossFunction,
    prediction: Any,
    target: Any,
    activation: str,
    targeted: bool,
    success: torch.Tensor,
) -> None:
    """A warning where an attack failed on samples that were `saturated` at the clean image."""
    head = activation
    if activation == "auto":
        said = activations_said(loss_function)
        head = next(iter(said)) if len(said) == 1 else "auto"
    first = prediction[0] if isinstance(prediction, (tuple, list)) and prediction else prediction
    if head != "none" or is_regression(loss_function):
        return
    if not isinstance(first, torch.Tensor) or not isinstance(target, torch.Tensor) or hasattr(prediction, "_fields"):
        return
    try:
        is_per_channel(target, main_output(prediction), head)
    except ValueError:  # a label of another kind, for a criterion of one's own
        return
    lost = saturated(Decisions.read(prediction, target, loss_function, head), targeted) & ~success
    if bool(lost.any()):
        warnings.warn(
            f"prediction: the attack failed on {int(lost.sum())} of {len(lost)} samples whose probabilities are "
            f"exactly 0 and 1 in {first.dtype}, so that no gradient is left: that is no robustness. Attack the network "
            "without its last sigmoid or softmax, with a loss on logits, or in double precision",
            stacklevel=4,
        )
