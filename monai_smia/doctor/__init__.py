# SPDX-License-Identifier: Apache-2.0
"""Doctor: when a robustness number must not be believed."""

from __future__ import annotations

from monai_smia.doctor.on_network import CHECKS, diagnose
from monai_smia.doctor.on_report import diagnose_report
from monai_smia.reports.finding import Finding

__all__ = ["CHECKS", "Finding", "diagnose", "diagnose_report"]
