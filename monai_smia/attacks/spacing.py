# SPDX-License-Identifier: Apache-2.0
"""Voxel spacing: read from a `MetaTensor` or given in millimetres, and the size of one voxel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor

from monai_smia.attacks import checks

Rows = tuple[tuple[float, ...], ...]
"""Millimetres per voxel along each axis: a row for each sample, or a single one for all."""

MM3_PER_ML = 1000.0


def spacing_of(image: torch.Tensor) -> Rows | None:
    """Millimetres per voxel of every sample of ``BCHW[D]``, from the affine of a `MetaTensor`; one row where all agree.

    ``None`` for an image that carries no affine.
    """
    if not isinstance(image, MetaTensor) or "affine" not in image.meta:
        return None
    spatial = image.ndim - 2
    affine = torch.as_tensor(image.affine).double().cpu().reshape(-1, *image.affine.shape[-2:])
    sizes = affine[:, :-1, :spatial].square().sum(1).sqrt()
    rows = tuple(tuple(row) for row in sizes.tolist())
    return rows[:1] if len(set(rows)) == 1 else rows


def as_rows(name: str, value: Any) -> Rows:
    """Numbers along each axis as rows: ``(sx, sy[, sz])``, or one such row for each sample.

    Raises:
        TypeError, ValueError: when they are no numbers, or rows of different lengths.
    """
    numbers = checks.as_numbers(name, value)
    if not isinstance(numbers, tuple) or not numbers:
        raise ValueError(f"{name}: expected one number along each axis, or a row of them per sample; got {value!r}")
    rows = numbers if isinstance(numbers[0], tuple) else (numbers,)
    lengths = {len(row) if isinstance(row, tuple) else 0 for row in rows}
    if len(lengths) > 1 or 0 in lengths or any(isinstance(number, tuple) for row in rows for number in row):  # type: ignore[union-attr]
        raise ValueError(f"{name}: expected rows with one number along each axis; got {value!r}")
    return rows  # type: ignore[return-value]


def as_spacing(value: Sequence[float] | Sequence[Sequence[float]] | torch.Tensor) -> Rows:
    """Spacing as rows of millimetres, from numbers or from the affine of a batched `MetaTensor`, ``BCHW[D]``.

    Raises:
        TypeError, ValueError: naming `spacing`, what was expected and what came.

    Example:
        >>> as_spacing((0.5, 0.5, 3))
        ((0.5, 0.5, 3.0),)
    """
    if isinstance(value, MetaTensor):
        read = spacing_of(value)
        if read is None:
            raise ValueError("spacing: expected a MetaTensor with an affine; got one without")
        value = read
    rows = as_rows("spacing", value)
    if not all(number > 0 for row in rows for number in row):
        raise ValueError(f"spacing: expected millimetres > 0; got {value!r}")
    return rows


def unit_of(spacing: Rows) -> str:
    """``"ml"`` for volumes, ``"mm2"`` for slices, ``"mm"`` for lines."""
    return {1: "mm", 2: "mm2", 3: "ml"}.get(len(spacing[0]), f"mm{len(spacing[0])}")


def voxel_sizes(spacing: Rows, batch: int, rank: int) -> list[float]:
    """Size of a voxel of each sample: millilitres in 3-D, square millimetres in 2-D.

    Raises:
        ValueError: when the spacing is for another rank or another number of samples.
    """
    if len(spacing[0]) != rank:
        raise ValueError(f"spacing: expected {rank} numbers, as the prediction has spatial axes; got {spacing}")
    return [math.prod(row) / (MM3_PER_ML if rank == 3 else 1.0) for row in per_sample_rows("spacing", spacing, batch)]


def per_sample_rows(name: str, rows: Rows, batch: int) -> Rows:
    """A row for each sample.

    Raises:
        ValueError: when there are as many as neither one nor the samples.
    """
    if len(rows) not in (1, batch):
        raise ValueError(f"{name}: expected one row, or one for each of {batch} samples; got {len(rows)}")
    return rows * batch if len(rows) == 1 else rows
