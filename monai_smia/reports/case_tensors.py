# SPDX-License-Identifier: Apache-2.0
"""Outputs and labels of one case in one form: ``(C, *spatial)`` or ``(C,)``, on the CPU, without metadata."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def as_numbers(value: Any) -> torch.Tensor | None:
    """A tensor, array, number or list of numbers as a plain real tensor on the CPU; ``None`` for anything else."""
    if isinstance(value, torch.Tensor):
        plain = value.as_tensor() if hasattr(value, "as_tensor") else value
        plain = plain.detach().cpu()
        return None if plain.is_complex() else plain.float() if plain.is_floating_point() else plain.long()
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        return None
    if array.dtype.kind not in "biuf":
        return None
    return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))


def with_channels(value: torch.Tensor | None, spatial: tuple[int, ...]) -> torch.Tensor | None:
    """``(C, *spatial)``, or a vector ``(C,)``, of a map with or without channels, a vector or a number."""
    if value is None or value.numel() == 0:
        return None
    if value.shape == spatial:
        return value.unsqueeze(0)
    if value.ndim < 2:
        return value.reshape(-1)
    return value if value.shape[1:] == spatial else None


def main_tensor(output: Any, spatial: tuple[int, ...]) -> torch.Tensor | None:
    """The output at the image's resolution, ``(C, *spatial)`` or ``(C,)``; of deep supervision's several the first.

    They come as a sequence, or as the tensor ``(heads, C, *spatial)`` that MONAI's DynUNet gives in training.
    """
    if isinstance(output, (tuple, list)) and any(isinstance(item, (torch.Tensor, np.ndarray)) for item in output):
        found = (main_tensor(item, spatial) for item in output if isinstance(item, (torch.Tensor, np.ndarray)))
        return next((tensor for tensor in found if tensor is not None), None)
    value = as_numbers(output)
    if value is not None and value.ndim == len(spatial) + 2 and value.shape[2:] == spatial:
        value = value[0]
    return with_channels(value, spatial)
