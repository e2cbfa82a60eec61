# SPDX-License-Identifier: Apache-2.0
"""Reports: clean and adversarial metrics as tables, figures, a model card and one page."""

from __future__ import annotations

from monai_smia.reports.case_views import case_view
from monai_smia.reports.curves import figure
from monai_smia.reports.model_card import report_markdown
from monai_smia.reports.page import write_page
from monai_smia.reports.readout import Reading
from monai_smia.reports.report import CLEAN, RobustnessReport
from monai_smia.reports.summary import bootstrap_interval, paired_cases, summarize
from monai_smia.reports.view_files import load_view, save_view
from monai_smia.reports.views import CaseView

__all__ = [
    "CLEAN",
    "CaseView",
    "Reading",
    "RobustnessReport",
    "bootstrap_interval",
    "case_view",
    "figure",
    "load_view",
    "paired_cases",
    "report_markdown",
    "save_view",
    "summarize",
    "write_page",
]
