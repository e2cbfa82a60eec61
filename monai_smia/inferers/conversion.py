# SPDX-License-Identifier: Apache-2.0
"""`gradient_inferer`: from a pipeline's inferer to the one that it is attacked through."""

from __future__ import annotations

from typing import Any

from monai.inferers import SliceInferer, SlidingWindowInferer, SlidingWindowInfererAdapt

from monai_smia.inferers.gradient import GradientSlidingWindowInferer
from monai_smia.inferers.slices import GradientSliceInferer

_SETTINGS = (
    "sw_batch_size",
    "overlap",
    "mode",
    "sigma_scale",
    "padding_mode",
    "cval",
    "sw_device",
    "device",
    "progress",
    "cpu_thresh",
    "buffer_steps",
    "buffer_dim",
    "with_coord",
    "roi_weight_map",
)


def gradient_inferer(inferer: Any, **changes: Any) -> Any:
    """The inferer to attack through: the same windows and blending, with an exact gradient at constant memory.

    Args:
        inferer: a `SlidingWindowInferer`, `SlidingWindowInfererAdapt` or `SliceInferer` is converted. Anything else,
            subclasses of these that override what they do included, is returned as it is: autograd goes through it.
            What `SlidingWindowInfererAdapt` does when a GPU's memory is exhausted does not come along.
        changes: settings to replace, such as ``sw_batch_size=1`` or ``progress=True``.

    Returns:
        A `GradientSlidingWindowInferer` or `GradientSliceInferer`, or `inferer` itself.

    Example:
        >>> from monai.inferers import SimpleInferer, SlidingWindowInferer
        >>> type(gradient_inferer(SlidingWindowInferer((96, 96, 96), overlap=0.5))).__name__
        'GradientSlidingWindowInferer'
        >>> type(gradient_inferer(SimpleInferer())).__name__
        'SimpleInferer'
    """
    kind = type(inferer)
    if kind not in (SlidingWindowInferer, SlidingWindowInfererAdapt, SliceInferer):
        return inferer
    settings = {**{name: getattr(inferer, name) for name in _SETTINGS}, **changes}
    if kind is SliceInferer:
        return GradientSliceInferer(inferer.spatial_dim, inferer.orig_roi_size, **settings)
    return GradientSlidingWindowInferer(inferer.roi_size, **settings)
