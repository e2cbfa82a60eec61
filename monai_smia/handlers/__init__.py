# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers that put attacks into MONAI's engines."""

from __future__ import annotations

from monai_smia.handlers.attack_events import AttackEvents
from monai_smia.handlers.attack_handler import AttackHandler
from monai_smia.handlers.batch import attack_batch, case_names
from monai_smia.handlers.overfitting_alarm import OverfittingAlarm
from monai_smia.handlers.overlay_saver import OverlaySaver
from monai_smia.handlers.robustness_saver import RobustnessSaver

__all__ = [
    "AttackEvents",
    "AttackHandler",
    "OverfittingAlarm",
    "OverlaySaver",
    "RobustnessSaver",
    "attack_batch",
    "case_names",
]
