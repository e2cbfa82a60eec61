# SPDX-License-Identifier: Apache-2.0
"""Surface distances in which a structure that vanished is as far as can be: the diagonal of the volume."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from monai.metrics.utils import prepare_spacing
from monai.utils import MetricReduction

from monai_smia.metrics.structures import StructureMetric, compute_structure_events, structure_masks

Spacing = float | Sequence[Any] | str | None
"""A number, one per axis, one such row per sample, ``"affine"`` for the image's own, or ``None`` for voxels."""

_ORDERS = {"euclidean": 2, "chessboard": math.inf, "taxicab": 1}


def worst_distance(shape: Sequence[int], spacing: Sequence[float] | None = None, order: float = 2) -> float:
    r"""The diagonal of a volume, which no distance in it exceeds.

    .. math:: D = \Big(\sum_a (n_a s_a)^2\Big)^{1/2}

    Args:
        shape: voxels :math:`n_a` along each axis.
        spacing: size :math:`s_a` of a voxel along each axis; ``None`` for 1.
        order: of the norm: 2 for Euclidean, ``inf`` for chessboard, 1 for taxicab distances.

    Example:
        >>> worst_distance((30, 40), (1.0, 1.0)), worst_distance((30, 40), (2.0, 2.0))
        (50.0, 100.0)
        >>> round(worst_distance((240, 240, 155)), 2)  # what BraTS gives to a missing tumour
        373.13
    """
    sizes = [float(count) * float(size) for count, size in zip(shape, spacing or [1.0] * len(shape), strict=True)]
    return float(torch.linalg.vector_norm(torch.tensor(sizes, dtype=torch.float64), ord=order))


def compute_structure_hausdorff(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    include_background: bool = False,
    distance_metric: str = "euclidean",
    percentile: float | None = None,
    directed: bool = False,
    spacing: Spacing = None,
) -> torch.Tensor:
    """MONAI's Hausdorff distance of each structure, the volume's diagonal where it vanished or was invented.

    Args:
        y_pred, y: one-hot masks ``BCHW[D]`` of zeros and ones.
        include_background: whether channel 0 of several is a structure.
        distance_metric, percentile, directed: as in `monai.metrics.compute_hausdorff_distance`.
        spacing: size of a voxel, a number or one per axis, also one row per sample; ``"affine"`` reads it from the
            label's or the prediction's `MetaTensor`; ``None`` measures in voxels. Only Euclidean distances use it.

    Returns:
        ``(B, C)`` in the unit of `spacing`, finite where label or prediction hold the structure; NaN, not counted,
        where both lack it. Needs scipy, as MONAI's distances do.

    Raises:
        ValueError: for masks that are not one-hot, another distance, or ``"affine"`` without a `MetaTensor`.
    """
    measure = functools.partial(
        compute_hausdorff_distance, distance_metric=distance_metric, percentile=percentile, directed=directed
    )
    return _compute(measure, y_pred, y, include_background, distance_metric, spacing)


def compute_structure_surface_distance(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    include_background: bool = False,
    distance_metric: str = "euclidean",
    symmetric: bool = False,
    spacing: Spacing = None,
) -> torch.Tensor:
    """MONAI's average surface distance of each structure, the diagonal where it vanished or was invented.

    Args:
        y_pred, y, include_background, spacing: as in `compute_structure_hausdorff`.
        distance_metric, symmetric: as in `monai.metrics.compute_average_surface_distance`.

    Returns, Raises:
        As `compute_structure_hausdorff`.
    """
    measure = functools.partial(compute_average_surface_distance, distance_metric=distance_metric, symmetric=symmetric)
    return _compute(measure, y_pred, y, include_background, distance_metric, spacing)


class StructureHausdorffMetric(StructureMetric):
    """Hausdorff distance that no attack makes undefined; see `compute_structure_hausdorff`.

    Args:
        include_background: whether channel 0 of several is a structure.
        distance_metric, percentile, directed: as in `monai.metrics.HausdorffDistanceMetric`.
        spacing: as in `compute_structure_hausdorff`; here, because a handler hands over masks alone. A ``spacing`` in
            the call, as MONAI's metrics take it, comes first.
        reduction: as in MONAI's metrics.

    Raises:
        ValueError: for another distance.

    Example:
        >>> label = torch.zeros(1, 2, 30, 40)
        >>> label[:, 1, 5:10, 5:10] = 1
        >>> metric = StructureHausdorffMetric(spacing=2.0)
        >>> _ = metric(torch.zeros_like(label), label)
        >>> metric.aggregate().item(), metric.counts()
        (100.0, {'vanished': 1, 'invented': 0})
    """

    def __init__(
        self,
        include_background: bool = False,
        distance_metric: str = "euclidean",
        percentile: float | None = None,
        directed: bool = False,
        spacing: Spacing = None,
        reduction: MetricReduction | str = MetricReduction.MEAN,
    ) -> None:
        super().__init__(include_background, reduction)
        _order(distance_metric)
        self.distance_metric = distance_metric
        self.percentile = percentile
        self.directed = directed
        self.spacing = spacing

    def values(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Spacing = None, **kwargs: Any) -> torch.Tensor:
        """Distances, ``(B, C)``."""
        return compute_structure_hausdorff(
            y_pred,
            y,
            self.include_background,
            self.distance_metric,
            self.percentile,
            self.directed,
            self.spacing if spacing is None else spacing,
        )


class StructureSurfaceDistanceMetric(StructureMetric):
    """Average surface distance that no attack makes undefined; see `compute_structure_surface_distance`.

    Args:
        include_background: whether channel 0 of several is a structure.
        distance_metric, symmetric: as in `monai.metrics.SurfaceDistanceMetric`.
        spacing, reduction: as in `StructureHausdorffMetric`.

    Raises:
        ValueError: for another distance.
    """

    def __init__(
        self,
        include_background: bool = False,
        distance_metric: str = "euclidean",
        symmetric: bool = False,
        spacing: Spacing = None,
        reduction: MetricReduction | str = MetricReduction.MEAN,
    ) -> None:
        super().__init__(include_background, reduction)
        _order(distance_metric)
        self.distance_metric = distance_metric
        self.symmetric = symmetric
        self.spacing = spacing

    def values(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Spacing = None, **kwargs: Any) -> torch.Tensor:
        """Distances, ``(B, C)``."""
        return compute_structure_surface_distance(
            y_pred,
            y,
            self.include_background,
            self.distance_metric,
            self.symmetric,
            self.spacing if spacing is None else spacing,
        )


def _compute(
    measure: Callable[..., torch.Tensor],
    y_pred: torch.Tensor,
    y: torch.Tensor,
    include_background: bool,
    distance_metric: str,
    spacing: Spacing,
) -> torch.Tensor:
    order = _order(distance_metric)
    sizes = _spacings(spacing, y_pred, y)
    predicted, true = structure_masks(y_pred, y, include_background)
    vanished, invented, absent = compute_structure_events(predicted, true, include_background=True)
    shape = true.shape[2:]
    rows = [torch.full(true.shape[1:2], worst_distance(shape, size if order == 2 else None, order)) for size in sizes]
    values = torch.stack(rows).to(true.device).masked_fill(absent, torch.nan)
    for b, c in (~(vanished | invented | absent)).nonzero().tolist():
        one, other = predicted[b : b + 1, c : c + 1], true[b : b + 1, c : c + 1]
        values[b, c] = measure(one, other, include_background=True, spacing=sizes[b])[0, 0]
    return values


def _order(distance_metric: str) -> float:
    if distance_metric not in _ORDERS:
        raise ValueError(f"distance_metric: expected one of {', '.join(_ORDERS)}; got {distance_metric!r}")
    return _ORDERS[distance_metric]


def _spacings(spacing: Spacing, y_pred: torch.Tensor, y: torch.Tensor) -> list[list[float] | None]:
    """Voxel sizes of each sample, ``None`` for 1."""
    batch, rank = len(y), y.ndim - 2
    if spacing != "affine":
        rows = prepare_spacing(spacing, batch, rank)
        return [row if row is None else [float(size) for size in torch.as_tensor(row).expand(rank)] for row in rows]
    image = next((value for value in (y, y_pred) if isinstance(value, MetaTensor)), None)
    if image is None:
        raise ValueError('spacing: "affine" is read from a MetaTensor; got plain tensors')
    affines = torch.as_tensor(image.affine).cpu().reshape(-1, *image.affine.shape[-2:])
    return [affine_to_spacing(affine, r=rank).tolist() for affine in affines.expand(batch, -1, -1)]
