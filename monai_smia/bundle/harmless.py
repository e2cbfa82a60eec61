# SPDX-License-Identifier: Apache-2.0
"""Which transforms leave an image's intensities on the scale that they had."""

from __future__ import annotations

from typing import Any

_MODULES = (
    "monai.transforms.spatial.",
    "monai.transforms.croppad.",
    "monai.transforms.io.",
    "monai.transforms.lazy.",
    "monai.transforms.meta_utility.",
    "monai.transforms.nvtx",
    "monai.apps.detection.transforms.",
    "monai.apps.pathology.transforms.spatial.",
)
"""Modules in which every transform loads, saves, moves, cuts or pads, and nothing else."""

_UTILITY = {
    "AsChannelLast",
    "CastToType",
    "ClassesToIndices",
    "DataStats",
    "DeleteItems",
    "EnsureChannelFirst",
    "EnsureType",
    "FgBgToIndices",
    "FlattenSubKeys",
    "Identity",
    "IntensityStats",
    "RemoveRepeatedChannel",
    "RepeatChannel",
    "SelectItems",
    "SimulateDelay",
    "SplitDim",
    "SqueezeDim",
    "ToCupy",
    "ToDevice",
    "ToNumpy",
    "ToPIL",
    "ToTensor",
    "Transpose",
}

_GUIDANCE = {
    "AddClickSignals",
    "AddCoordinateChannels",
    "AddExtremePointsChannel",
    "AddGuidanceSignal",
    "AddGuidanceSignalDeepEdit",
    "AddLabelAsGuidance",
    "AddPointGuidanceSignal",
}


def is_harmless(transform: Any) -> bool:
    """Whether this is one of MONAI's own transforms that change no intensity but by interpolation, padding and casting.

    A subclass is not: what it adds is unknown.

    Example:
        >>> from monai.transforms import GaussianSmooth, Resized
        >>> is_harmless(Resized("image", (8, 8))), is_harmless(GaussianSmooth())
        (True, False)
    """
    module = type(transform).__module__
    if module.startswith(_MODULES):
        return True
    return module.startswith("monai.transforms.utility.") and plain_name(transform) in _UTILITY


def adds_channels(transform: Any) -> bool:
    """Whether it appends channels that are no image (clicks, coordinates), and leaves those of the image alone."""
    return type(transform).__module__.startswith("monai.") and plain_name(transform) in _GUIDANCE


def plain_name(transform: Any) -> str:
    """The class name of the array version.

    Example:
        >>> from monai.transforms import Resized
        >>> plain_name(Resized("image", (8, 8)))
        'Resize'
    """
    name = type(transform).__name__
    return name[:-1] if name.endswith("d") and hasattr(transform, "keys") else name
