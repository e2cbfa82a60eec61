# SPDX-License-Identifier: Apache-2.0
"""What makes any MONAI bundle attackable: opening it, reading its units and its head, attacking it, reporting."""

from __future__ import annotations

from monai_smia.bundle.eps import Budget, default_eps, parse_eps
from monai_smia.bundle.errors import BundleError
from monai_smia.bundle.exporting import export_cohort, verify_cohort
from monai_smia.bundle.grid import attack_grid
from monai_smia.bundle.opening import OpenBundle, open_bundle
from monai_smia.bundle.regression import ErrorAbove
from monai_smia.bundle.report_files import write_again, write_report
from monai_smia.bundle.tasks import Task, infer_task
from monai_smia.bundle.under_attack import Outcome, evaluate_under_attack
from monai_smia.bundle.units import IntensityReading, read_intensity

__all__ = [
    "Budget",
    "BundleError",
    "ErrorAbove",
    "IntensityReading",
    "OpenBundle",
    "Outcome",
    "Task",
    "attack_grid",
    "default_eps",
    "evaluate_under_attack",
    "export_cohort",
    "infer_task",
    "open_bundle",
    "parse_eps",
    "read_intensity",
    "verify_cohort",
    "write_again",
    "write_report",
]
