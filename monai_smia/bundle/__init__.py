# SPDX-License-Identifier: Apache-2.0
"""What makes a MONAI bundle attackable."""

from __future__ import annotations

from monai_smia.bundle.grid import attack_grid

__all__ = ["attack_grid"]
