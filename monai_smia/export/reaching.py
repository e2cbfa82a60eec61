# SPDX-License-Identifier: Apache-2.0
"""`reached`: a gradient for voxels that a clip hides and a budget can bring back."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRange, ScaleIntensityRanged


def reached(transform: Any, out: MetaTensor, image: MetaTensor, reach: float) -> MetaTensor:
    r"""A step's result; where it is a `ScaleIntensityRange` with a clip, with a gradient a little beyond the clip.

    .. math:: \frac{\partial P}{\partial x} := s \quad\text{where}\quad
              a_{\min} - r \le x \le a_{\max} + r, \qquad 0 \text{ elsewhere}

    A voxel at -1005 HU under a clip at -1000 HU has no gradient, and an attack by signs would never move it, although
    10 HU bring it to -995. The values are those of the step itself.

    Args:
        transform: the step.
        out: its result.
        image: ``(C, *spatial)``.
        reach: r, units of `image`; 0 for the step's own gradient.
    """
    if not reach or not has_clip(transform):
        return out
    inner = _scaler(transform)
    free = copy.copy(inner)
    free.clip = False
    line = free(image).as_subclass(torch.Tensor)
    plain = image.detach().as_subclass(torch.Tensor)
    near = (plain >= min(inner.a_min, inner.a_max) - reach) & (plain <= max(inner.a_min, inner.a_max) + reach)
    moved = torch.where(near, line - line.detach(), torch.zeros_like(line))
    return MetaTensor(out.detach().as_subclass(torch.Tensor) + moved, meta=out.meta)


def has_clip(transform: Any) -> bool:
    """Whether a transform is a `ScaleIntensityRange` that clips."""
    inner = _scaler(transform)
    return isinstance(inner, ScaleIntensityRange) and bool(inner.clip)


def clip_slope(transform: Any) -> float:
    """Of a `ScaleIntensityRange` inside its range, units of its output per unit of its input; NaN for anything else."""
    inner = _scaler(transform)
    if not isinstance(inner, ScaleIntensityRange):
        return math.nan
    width = 1.0 if inner.b_min is None or inner.b_max is None else float(inner.b_max) - float(inner.b_min)
    return abs(width / (float(inner.a_max) - float(inner.a_min))) if inner.a_max != inner.a_min else math.nan


def _scaler(transform: Any) -> Any:
    return transform.scaler if isinstance(transform, ScaleIntensityRanged) else transform
