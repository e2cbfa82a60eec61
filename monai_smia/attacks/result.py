# SPDX-License-Identifier: Apache-2.0
"""`AttackResult`: what an attack gives back."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AttackResult:
    """Outcome of one attack on a batch. All fields but `adversarial` have one value per sample.

    Attributes:
        adversarial: ``BCHW[D]``; type, shape, dtype, device and metadata of the image given; detached.
        clean_loss: ``(B,)``, the loss function at the clean image.
        loss: ``(B,)``, the loss function at `adversarial`. An untargeted attack raises it, a targeted one lowers it.
        clean_success: ``(B,)`` bool, the criterion at the clean image (already wrong before the attack).
        success: ``(B,)`` bool, the criterion at `adversarial`.
        forward_passes: ``(B,)`` int, predictions asked of the network, those for the verdict included.
        backward_passes: ``(B,)`` int, gradients taken with respect to the image.
        nonfinite_gradients: ``(B,)`` int, gradients that held NaN or infinity and counted as zero.
    """

    adversarial: torch.Tensor
    clean_loss: torch.Tensor
    loss: torch.Tensor
    clean_success: torch.Tensor
    success: torch.Tensor
    forward_passes: torch.Tensor
    backward_passes: torch.Tensor
    nonfinite_gradients: torch.Tensor


@dataclass(frozen=True)
class GoalResult(AttackResult):
    """Outcome of an attack towards a clinical goal.

    Attributes:
        clean_measured: ``(B,)``, the goal's quantity at the clean image: a volume, a share, a grade.
        measured: ``(B,)``, the same at `adversarial`.
        unit: of both.
    """

    clean_measured: torch.Tensor
    measured: torch.Tensor
    unit: str
