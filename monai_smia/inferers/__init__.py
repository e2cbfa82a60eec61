# SPDX-License-Identifier: Apache-2.0
"""Inferers that whole volumes are attacked through."""

from __future__ import annotations

from monai_smia.inferers.gradient import GradientSliceInferer, GradientSlidingWindowInferer, gradient_inferer

__all__ = ["GradientSliceInferer", "GradientSlidingWindowInferer", "gradient_inferer"]
