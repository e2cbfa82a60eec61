# SPDX-License-Identifier: Apache-2.0
"""`decision_margin`: how far each sample is from a wrong decision, on the network's raw outputs."""

from __future__ import annotations

from typing import Any

import torch

from monai_smia.attacks.heads import is_binary, labels, main_output, true_class


def decision_margin(prediction: Any, target: torch.Tensor, activation: str, ignored: int | None = None) -> torch.Tensor:
    r"""The lead of the best wrong answer, above zero where the decision is wrong.

    .. math:: m = \max_{k \ne y} z_k - z_y \quad\text{(softmax)}, \qquad m = (1 - 2y)\, z \quad\text{(sigmoid)}

    z are the raw outputs, logits or, for ``activation="none"``, probabilities (less 1/2 where each channel decides on
    its own). A classifier's labels count by their worst, so that m is above zero exactly where `Misclassification`
    holds; a dense output's voxels by their mean.

    Args:
        prediction: ``BC[HWD]``, or a sequence that starts with it.
        target: labels, as indices with or without a channel axis, or one-hot.
        activation: the head, ``"softmax"``, ``"sigmoid"`` or ``"none"``.
        ignored: label value left out of the mean.

    Returns:
        ``(B,)``; 0 for a sample of which every label is ignored.

    Example:
        >>> decision_margin(torch.tensor([[2.0, 0.5, 1.0]]), torch.tensor([0]), "softmax")
        tensor([-1.])
        >>> decision_margin(torch.tensor([[2.0, 0.5]]), torch.tensor([[1.0, 0.0]]), "sigmoid")
        tensor([0.5000])
    """
    output = main_output(prediction)
    if is_binary(activation, output.shape[1], target.shape == output.shape):
        signed = output - 0.5 if activation == "none" else output
        margin = torch.where(labels(target, output, activation), -signed, signed).flatten(1)
        return margin.amax(1) if output.ndim == 2 else margin.mean(1)
    index, valid = true_class(target, output, activation, ignored)
    wrong = output.scatter(1, index, -torch.inf).amax(1, keepdim=True)
    margin = torch.where(valid, wrong - output.gather(1, index), 0.0).flatten(1)
    return margin.sum(1) / valid.flatten(1).sum(1).clamp_min(1)
