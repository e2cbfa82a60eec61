# SPDX-License-Identifier: Apache-2.0
"""`default_loss`: the loss for a head whose bundle brings none."""

from __future__ import annotations

from typing import Any

from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss
from torch import nn

from monai_smia.bundle.head import Head


def default_loss(head: Head, channels: int, dense: bool) -> tuple[nn.Module, str]:
    """A loss that fits head and label, and its text.

    ========  ===============  =======================================
    head      classes          segmentation
    ========  ===============  =======================================
    softmax   cross-entropy    Dice and cross-entropy
    sigmoid   binary           Dice and binary cross-entropy
    none      binary           Dice
    ========  ===============  =======================================

    Args:
        head: activation, and whether labels are class indices.
        channels: of the prediction.
        dense: whether there is a decision per voxel.

    Deviations: of several channels with a sigmoid, `DiceCELoss` takes the cross-entropy of a softmax, which has no
    minimum at labels with several classes at once; `DiceFocalLoss` with ``gamma=0`` takes the binary one.
    """
    if not dense:
        losses = {"softmax": nn.CrossEntropyLoss, "sigmoid": nn.BCEWithLogitsLoss, "none": nn.BCELoss}
        loss: nn.Module = losses[head.activation]()
        return loss, f"{type(loss).__name__}()"
    options: dict[str, Any] = {"to_onehot_y": True} if head.indices else {}
    if head.activation == "none":
        return DiceLoss(**options), _text("DiceLoss", options)
    if head.activation == "softmax":
        return DiceCELoss(softmax=True, **options), _text("DiceCELoss", {**options, "softmax": True})
    if channels == 1:
        return DiceCELoss(sigmoid=True), "DiceCELoss(sigmoid=True)"
    return (
        DiceFocalLoss(sigmoid=True, gamma=0.0, **options),
        _text("DiceFocalLoss", {**options, "sigmoid": True, "gamma": 0.0}),
    )


def _text(name: str, options: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value}' for key, value in options.items())})"
