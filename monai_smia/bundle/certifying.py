# SPDX-License-Identifier: Apache-2.0
"""`noise_of`, `check_decides`: what to certify, with the noise in a bundle's own units, as `certify` needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from monai_smia.bundle.budget_grid import is_relative
from monai_smia.bundle.eps import parse_eps
from monai_smia.bundle.tasks import Task
from monai_smia.bundle.units import IntensityReading


def noise_of(certify: Any, reading: IntensityReading) -> dict[str, Any] | None:
    """Arguments of `monai_smia.certificates.certify`, with ``sigma`` in network units.

    Args:
        certify: the noise's standard deviation as an eps is written (``"20HU"``, ``"8grey"``, ``"0.25net"``), or a
            mapping with it under ``"sigma"`` and further arguments; ``None`` certifies nothing.
        reading: of the preprocessing.

    Raises:
        TypeError, ValueError: in one line; for a size that differs between images or channels, as the noise is one for
            all.

    Example:
        >>> from monai.transforms import ScaleIntensityRanged
        >>> from monai_smia.bundle import read_intensity
        >>> reading = read_intensity(ScaleIntensityRanged("image", 0, 255, 0, 1, clip=True))
        >>> noise_of({"sigma": "51grey", "samples": 200}, reading)
        {'sigma': 0.2, 'samples': 200}
    """
    if certify is None:
        return None
    options = dict(certify) if isinstance(certify, Mapping) else {"sigma": certify}
    if "sigma" not in options:
        raise ValueError(f"certify: expected the noise under sigma; got {', '.join(map(str, options)) or 'nothing'}")
    try:
        budgets = parse_eps(options["sigma"], reading)
    except ValueError as error:
        raise ValueError(str(error).replace("eps:", "certify:", 1).replace("--eps", "--certify")) from None
    budget = budgets[0]
    if len(budgets) > 1:
        raise ValueError(f"certify: expected one size of the noise; got {options['sigma']!r}")
    if is_relative(budget, reading):
        raise ValueError(f"certify: expected noise of one size for all images; {budget.label} is of each image's range")
    size = budget.to_network(reading)
    values = sorted(set(size.flatten().tolist())) if isinstance(size, torch.Tensor) else [size]
    if len(values) > 1:
        raise ValueError(
            f"certify: expected noise of one size for all channels; {budget.label} is another in each: give it in "
            "network units, such as 0.25net"
        )
    return options | {"sigma": float(values[0])}


def check_decides(certify: Any, task: Task | None) -> None:
    """Refuse to certify what is no decision between classes.

    Raises:
        ValueError: for a regression or a detector.
    """
    if certify is not None and task is not None and task.kind in ("regression", "detection"):
        raise ValueError(f"certify: expected a network that decides between classes; this bundle's task is {task.kind}")
