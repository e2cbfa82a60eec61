# SPDX-License-Identifier: Apache-2.0
"""Reports: clean and adversarial metrics as tables and figures."""

from __future__ import annotations

from monai_smia.reports.report import CLEAN, RobustnessReport
from monai_smia.reports.summary import bootstrap_interval, paired_cases, summarize

__all__ = ["CLEAN", "RobustnessReport", "bootstrap_interval", "paired_cases", "summarize"]
