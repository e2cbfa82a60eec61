# SPDX-License-Identifier: Apache-2.0
"""`decision_margin`: how far each sample is from a wrong decision, in log-odds."""

from __future__ import annotations

from typing import Any

import torch

from monai_smia.attacks.heads import main_output, mean_of_valid, true_class
from monai_smia.attacks.margins import Decisions


def decision_margin(prediction: Any, target: torch.Tensor, activation: str, ignored: int | None = None) -> torch.Tensor:
    r"""The lead of the best wrong answer, above zero where the decision is wrong.

    .. math:: m = \max_{k \ne y} z_k - z_y \quad\text{(softmax)}, \qquad m = (1 - 2y)\, z \quad\text{(sigmoid)}

    z are log-odds: the raw outputs where they are logits, recovered from probabilities for ``activation="none"``. A
    classifier's labels count by their worst, so that m is above zero exactly where `Misclassification` holds; a dense
    output's voxels by their mean.

    Args:
        prediction: ``BC[HWD]``, or a sequence that starts with it.
        target: labels, as indices with or without a channel axis, or one-hot.
        activation: the head, ``"softmax"``, ``"sigmoid"`` or ``"none"``.
        ignored: label value left out.

    Returns:
        ``(B,)``; 0 for a sample of which every label is ignored.

    Example:
        >>> decision_margin(torch.tensor([[2.0, 0.5, 1.0]]), torch.tensor([0]), "softmax")
        tensor([-1.])
        >>> decision_margin(torch.tensor([[2.0, 0.5]]), torch.tensor([[1.0, 0.0]]), "sigmoid")
        tensor([0.5000])
    """
    output = main_output(prediction)
    index, valid = true_class(target, output, activation, ignored)
    decided = Decisions(output, activation, target.shape == output.shape, index, valid)
    margins = decided.gaps().max(1).values
    if output.ndim > 2:
        return mean_of_valid(margins, valid)
    worst = margins.masked_fill(~valid, -torch.inf).amax(1)
    return torch.where(valid.any(1), worst, 0.0)
