# SPDX-License-Identifier: Apache-2.0
"""Adversarial attacks on medical imaging models, inside MONAI workflows."""

from __future__ import annotations

__version__ = "0.1.0"
