# SPDX-License-Identifier: Apache-2.0
"""Label maps read and edited in any layout: indices, a single mask, or one-hot."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor

from monai_smia.attacks.heads import decisions, like_target, main_output
from monai_smia.attacks.volumes import head_of


def labels_seen(label: torch.Tensor, prediction: Any, activation: str) -> torch.Tensor:
    """`label`, or what the network sees in its layout where a prediction is given."""
    label = label.as_tensor() if isinstance(label, MetaTensor) else label
    if prediction is None:
        return label
    output = main_output(prediction)
    hard = decisions(output, head_of(activation, output), label.shape == output.shape)
    return like_target(hard, label, output)


def channelled(label: torch.Tensor, rank: int) -> torch.Tensor:
    """With a channel axis, ``(B, 1 | C, *spatial)``.

    Raises:
        ValueError: when it has as many axes as neither of ``(B, *spatial)`` and ``(B, C, *spatial)``.
    """
    if label.ndim not in (rank + 1, rank + 2):
        raise ValueError(f"label: expected (B, *spatial) or (B, C, *spatial) of rank {rank}; got {tuple(label.shape)}")
    return label.unsqueeze(1) if label.ndim == rank + 1 else label


def is_mask(label: torch.Tensor, structure: int, activation: str) -> bool:
    """Whether a channelled label is the one mask of a head with one channel, not a map of indices."""
    return label.shape[1] == 1 and structure == 0 and activation != "softmax"


def holds(label: torch.Tensor, structure: int, activation: str, rank: int) -> torch.Tensor:
    """Where the label says `structure`, ``(B, *spatial)``, bool."""
    label = channelled(label, rank)
    if label.shape[1] > 1:
        return label[:, _channel(label, structure)] > 0.5
    return label[:, 0] > 0.5 if is_mask(label, structure, activation) else label[:, 0] == structure


def written(label: torch.Tensor, where: torch.Tensor, structure: int, activation: str) -> torch.Tensor:
    """The label with `structure` written where ``(B, *spatial)`` says; other channels of a sigmoid head stay.

    Returns:
        Shape and dtype of `label`.
    """
    out = channelled(label, where.ndim - 1).clone()
    if out.shape[1] == 1:
        out[:, 0].masked_fill_(where, 1 if is_mask(out, structure, activation) else structure)
    else:
        if activation != "sigmoid":
            out.masked_fill_(where.unsqueeze(1), 0)
        out[:, _channel(out, structure)].masked_fill_(where, 1)
    return out.reshape(label.shape)


def removed(label: torch.Tensor, where: torch.Tensor, structure: int, into: int, activation: str) -> torch.Tensor:
    """The label without `structure` where ``(B, *spatial)`` says; `into` takes its place where a voxel has one class.

    Returns:
        Shape and dtype of `label`.

    Raises:
        ValueError: when a class is needed in its place, and `into` is the structure itself.
    """
    rank = where.ndim - 1
    where = where & holds(label, structure, activation, rank)
    out = channelled(label, rank).clone()
    one_class = not is_mask(out, structure, activation) and (out.shape[1] == 1 or activation != "sigmoid")
    if one_class and into == structure:
        raise ValueError(f"into: expected another class than the structure {structure}; got {into}")
    if out.shape[1] == 1:
        out[:, 0].masked_fill_(where, 0 if is_mask(out, structure, activation) else into)
    else:
        out[:, structure].masked_fill_(where, 0)
        if activation != "sigmoid":
            out[:, _channel(out, into)].masked_fill_(where, 1)
    return out.reshape(label.shape)


def _channel(label: torch.Tensor, structure: int) -> int:
    if structure >= label.shape[1]:
        raise ValueError(f"structure: expected an index under {label.shape[1]}, the label's channels; got {structure}")
    return structure
