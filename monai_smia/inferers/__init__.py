# SPDX-License-Identifier: Apache-2.0
"""Inferers that whole volumes are attacked through."""

from __future__ import annotations

from monai_smia.inferers.conversion import gradient_inferer
from monai_smia.inferers.gradient import GradientSlidingWindowInferer
from monai_smia.inferers.slices import GradientSliceInferer

__all__ = ["GradientSliceInferer", "GradientSlidingWindowInferer", "gradient_inferer"]
