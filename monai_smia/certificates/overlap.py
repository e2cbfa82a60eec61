# SPDX-License-Identifier: Apache-2.0
"""The least overlap with a label that certified voxels leave possible."""

from __future__ import annotations

import torch


def overlap_counts(
    prediction: torch.Tensor, label: torch.Tensor, classes: int, binary: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Voxels of each class in the worst case: certainly right, possibly invented, possibly missed.

    Args:
        prediction: classes ``(B, *spatial)``, or 0 and 1 ``(B, K, *spatial)`` where binary; negative where anything
            may be predicted.
        label: of the same shape, classes or booleans.
        classes: K.
        binary: whether each channel is a decision.

    Returns:
        Three times ``(B, K)``, float64. Each class has a worst case of its own; they need not come together.

    Example:
        >>> prediction, label = torch.tensor([[1, 1, -1, -1, 0]]), torch.tensor([[1, 0, 1, 0, 0]])
        >>> [count.tolist() for count in overlap_counts(prediction, label, 2, False)]
        [[[1.0, 1.0]], [[1.0, 2.0]], [[2.0, 1.0]]]
    """
    columns = []
    for k in range(classes):  # one at a time: a mask for each class at once would outgrow the network's output
        own, true = (prediction[:, k], label[:, k].bool()) if binary else (prediction, label == k)
        held = own == (1 if binary else k)
        counts = (held & true, (held | (own < 0)) & ~true, ~held & true)
        columns.append([count.flatten(1).sum(1).double() for count in counts])
    both, invented, missed = (torch.stack(count, 1) for count in zip(*columns, strict=True))
    return both, invented, missed
