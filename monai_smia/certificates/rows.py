# SPDX-License-Identifier: Apache-2.0
"""`rows_of`: certificates as rows of plain numbers, which outlive the voxels and can be saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from monai_smia.certificates.certificate import Certificate

SETTINGS = ("sigma", "samples", "first_samples", "alpha", "tau", "correction")


def rows_of(
    certificate: Certificate,
    label: torch.Tensor | None = None,
    radii: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    include_background: bool = False,
) -> list[dict[str, Any]]:
    """A row for each image and radius.

    Args:
        certificate: what `certify` gave.
        label: as in `Certificate.certified_accuracy`; ``None`` for what is known without one.
        radii: L2, in network units; ``None`` takes 0, 1/2, 1 and 2 sigma for a classifier, and the one certified radius
            for a segmentation.
        names: of the images; ``None`` numbers them.
        include_background: whether class 0 of several counts in the means ``certified_dice`` and ``certified_iou``.

    Returns:
        ``case``; ``radius`` in network units, ``physical_radius`` and ``per_voxel_radius`` in ``unit``; ``certified``,
        the share of decisions that hold in the radius; with a label ``certified_accuracy``, and of a segmentation
        ``certified_dice`` and ``certified_iou``, their means over the classes that are defined, and each class as
        ``certified_dice_<k>``; ``abstain_rate``; of a classifier of one decision ``prediction``, ``p_lower`` and
        ``largest_radius`` (network units); and the settings, ``sigma`` in network units, ``tau`` of a segmentation.

    Raises:
        ValueError: when `names` are not one for each image, or as `Certificate.certified_accuracy`.
    """
    names = [str(i) for i in range(len(certificate))] if names is None else names
    if len(names) != len(certificate):
        raise ValueError(f"names: expected one for each of the {len(certificate)} images; got {len(names)}")
    rows = []
    for radius in _default(certificate) if radii is None else radii:
        columns = _columns(certificate, label, float(radius), include_background)
        physical = float(certificate.in_unit(radius))
        shared: dict[str, Any] = {
            "radius": float(radius),
            "physical_radius": physical,
            "per_voxel_radius": physical / math.sqrt(certificate.size),
            "unit": certificate.unit,
        }
        settings = {name: value for name in SETTINGS if (value := getattr(certificate, name)) is not None}
        settings["physical_sigma"] = float(certificate.in_unit(certificate.sigma))
        for i, name in enumerate(names):
            rows.append({"case": name, **shared, **{key: values[i] for key, values in columns.items()}, **settings})
    return rows


def _default(certificate: Certificate) -> list[float]:
    if certificate.tau is None:
        return [factor * certificate.sigma for factor in (0.0, 0.5, 1.0, 2.0)]
    return [float(certificate.radius[0])]


def _columns(
    certificate: Certificate, label: torch.Tensor | None, radius: float, include_background: bool
) -> dict[str, list[Any]]:
    """Column to one value for each image."""
    held = certificate.held(radius).reshape(len(certificate), -1)
    columns = {"certified": held.double().mean(1)}
    if label is not None:
        columns["certified_accuracy"] = certificate.certified_accuracy(label, radius)
        if certificate.tau is not None:
            first = 0 if include_background or certificate.binary else 1
            for name in ("certified_dice", "certified_iou"):
                values = getattr(certificate, name)(label, radius)
                columns[name] = values[:, first:].nanmean(1)
                columns.update({f"{name}_{k}": values[:, k] for k in range(first, values.shape[1])})
    columns["abstain_rate"] = certificate.abstain_rate
    if certificate.p_lower is not None and certificate.prediction.ndim == 1:
        columns["prediction"] = certificate.prediction
        columns["p_lower"] = certificate.p_lower
        columns["largest_radius"] = certificate.radius
    return {name: values.tolist() for name, values in columns.items()}
