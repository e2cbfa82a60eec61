# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers that put attacks into MONAI's engines."""

from __future__ import annotations

from monai_smia.handlers.attack_events import AttackEvents
from monai_smia.handlers.attack_handler import AttackHandler
from monai_smia.handlers.batch import attack_batch, case_names
from monai_smia.handlers.overlay_saver import OverlaySaver

__all__ = ["AttackEvents", "AttackHandler", "OverlaySaver", "attack_batch", "case_names"]
