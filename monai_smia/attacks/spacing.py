# SPDX-License-Identifier: Apache-2.0
"""Voxel spacing: read from a `MetaTensor` or given in millimetres, and the size of a voxel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor

from monai_smia.attacks import checks

Rows = tuple[tuple[float, ...], ...]
"""Millimetres per voxel along each axis: a row for each sample, or a single one for all."""

MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class Spacing:
    """The grid of a batch.

    Attributes:
        rows: millimetres per voxel along each axis; a row for each sample, or a single one for all.
        volumes: size of a voxel in mm³ (2-D: mm²), a number for each row. Where the axes meet at right angles it is the
            product of the row; where they do not, as in a CT with a tilted gantry, it is less.
    """

    rows: Rows
    volumes: tuple[float, ...]

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.rows[0])

    def __repr__(self) -> str:
        return repr(self.rows[0] if len(self.rows) == 1 else self.rows)


def spacing_of(image: torch.Tensor) -> Spacing | None:
    """The grid of ``BCHW[D]``, from the affine of a `MetaTensor`; one row where all samples agree.

    Along an axis lie so many millimetres as its column of the affine is long, whatever the orientation; a voxel is as
    large as the parallelepiped that the columns span. ``None`` for an image that carries no affine.
    """
    if not isinstance(image, MetaTensor) or "affine" not in image.meta:
        return None
    spatial = image.ndim - 2
    affine = torch.as_tensor(image.affine).double().cpu().reshape(-1, *image.affine.shape[-2:])
    axes = affine[:, :-1, :spatial]
    sizes = axes.square().sum(1).sqrt()
    angles = axes / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)[:, None]
    flat = (angles.mT @ angles).det().clamp_min(0).sqrt()  # 1 where the axes meet at right angles
    flat = torch.where((flat - 1).abs() < 1e-6, torch.ones_like(flat), flat)
    rows = [tuple(row) for row in sizes.tolist()]
    volumes = [math.prod(row) * share for row, share in zip(rows, flat.tolist(), strict=True)]
    if len(set(zip(rows, volumes, strict=True))) == 1:
        rows, volumes = rows[:1], volumes[:1]
    return Spacing(tuple(rows), tuple(volumes))


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


def as_spacing(value: Any) -> Spacing:
    """The grid from numbers, ``(sx, sy[, sz])`` or a row for each sample, or from the affine of a batched `MetaTensor`.

    Raises:
        TypeError, ValueError: naming `spacing`, what was expected and what came.

    Example:
        >>> as_spacing((0.5, 0.5, 3))
        (0.5, 0.5, 3.0)
    """
    if isinstance(value, MetaTensor):
        read = spacing_of(value)
        if read is None:
            raise ValueError("spacing: expected a MetaTensor with an affine; got one without")
        value = read
    if not isinstance(value, Spacing):
        rows = as_rows("spacing", value)
        value = Spacing(rows, tuple(math.prod(row) for row in rows))
    if not all(number > 0 for row in (*value.rows, value.volumes) for number in row):
        raise ValueError(f"spacing: expected millimetres > 0; got {value!r}")
    return value


def known_spacing(spacing: Spacing | None) -> Spacing:
    """The spacing, where there is one.

    Raises:
        ValueError: saying how it can be given.
    """
    if spacing is None:
        raise ValueError(
            "spacing: expected millimetres per voxel; got None. Give them, or make the attack through Towards, which "
            "reads them from the affine of a MetaTensor"
        )
    return spacing


def unit_of(rank: int) -> str:
    """``"ml"`` for volumes, ``"mm2"`` for slices, ``"mm"`` for lines."""
    return {1: "mm", 3: "ml"}.get(rank, f"mm{rank}")


def voxel_sizes(spacing: Spacing | None, batch: int, rank: int) -> list[float]:
    """Size of a voxel of each sample: millilitres in 3-D, square millimetres in 2-D.

    Raises:
        ValueError: when there is no spacing, or one for another rank or another number of samples.
    """
    known = known_spacing(spacing)
    if known.rank != rank:
        raise ValueError(f"spacing: expected {rank} numbers, as the prediction has spatial axes; got {known}")
    per_sample_rows("spacing", known.rows, batch)
    volumes = known.volumes * batch if len(known.volumes) == 1 else known.volumes
    return [volume / (MM3_PER_ML if rank == 3 else 1.0) for volume in volumes]


def per_sample_rows(name: str, rows: Rows, batch: int) -> Rows:
    """A row for each sample.

    Raises:
        ValueError: when there are as many as neither one nor the samples.
    """
    if len(rows) not in (1, batch):
        raise ValueError(f"{name}: expected one row, or one for each of {batch} samples; got {len(rows)}")
    return rows * batch if len(rows) == 1 else rows
