# SPDX-License-Identifier: Apache-2.0
"""`report_markdown`: an evaluation as a section of a model card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from monai_smia.certificates import certificate_markdown
from monai_smia.reports.budgets import budget_label
from monai_smia.reports.finding import headline
from monai_smia.reports.readout import Estimate, Reading, read_report
from monai_smia.reports.report import CLEAN, RobustnessReport
from monai_smia.reports.safe_text import as_code, escaped
from monai_smia.reports.summary_text import summary_sentences
from monai_smia.reports.wording import UNDEFINED, shown


def report_markdown(
    report: RobustnessReport, about: Mapping[str, str] | None = None, *, reading: Reading | None = None
) -> str:
    """Summary, table, what is certified and how it was made, in Markdown; the numbers are those of the page.

    Args:
        report: what an evaluation gave.
        about: further rows of "How it was made", such as seed, hardware, checksum of the data and command.
        reading: first metric, names of structures, patients; ``None`` for the defaults of `Reading`.

    Returns:
        Text that starts with a heading of level 2 and ends with a line break.

    Example:
        >>> values = {"clean": {"auc": 0.9}, "PGD_5HU": {"auc": 0.5}}
        >>> report = RobustnessReport(values, (), {"PGD_5HU": "PGD(Loss(), eps=0.1)"}, "HU")
        >>> print("\\n".join(report_markdown(report, {"seed": "0"}).splitlines()[:8]))
        ## Adversarial robustness
        <BLANKLINE>
        Without an attack the AUC is 0.90. Changes of at most 5 HU bring it down to 0.50.
        <BLANKLINE>
        | metric | without an attack | worst at 5 HU |
        |:--|--:|--:|
        | AUC | 0.900 | 0.500 |
        <BLANKLINE>
    """
    readout = read_report(report, reading)
    head = ["metric", "without an attack"]
    head += [f"worst at {group.label}" if group.budget.eps is not None else group.label for group in readout.groups]
    rows = []
    for measure in readout.measures:
        estimates = [measure.runs.get(CLEAN, Estimate(math.nan)), *(worst.estimate for worst in measure.worst)]
        rows.append([escaped(measure.label), *map(_cell, estimates)])
    attacks = [
        [escaped(run), escaped(budget_label(budget, report.unit)), as_code(report.attacks.get(run, UNDEFINED))]
        for run, budget in readout.budgets.items()
    ]
    parts = ["## Adversarial robustness"]
    found = headline(report.findings)
    if found is not None:
        parts += [f"**{escaped(found)}**", "\n".join(f"- {escaped(str(one))}" for one in report.findings or ())]
    parts.append(escaped(summary_sentences(readout)))
    if rows:
        parts.append(_table(head, rows, "--:"))
        if readout.cases:
            parts.append(
                "Worst: for each case the worst value over the attacks of a budget, then the mean over "
                f"{len(readout.cases)} cases, with its 95 % bootstrap interval; undefined values are left out. A "
                "metric without an interval is known over all cases only, and has the value of its worst attack."
            )
    if report.findings == ():
        parts.append("The checks of the attacks' strength found nothing to object to.")
    if report.certificates:
        parts.append(certificate_markdown(report.certificates).rstrip("\n"))
    parts.append("### How it was made")
    if attacks:
        parts.append(_table(["attack", "budget", "settings, in network units"], attacks, ":--"))
    if about:
        parts.append("\n".join(f"- {escaped(str(name))}: {escaped(str(text))}" for name, text in about.items()))
    return "\n\n".join(parts) + "\n"


def _cell(estimate: Estimate) -> str:
    interval = "" if math.isnan(estimate.low) else f" ({shown(estimate.low)} to {shown(estimate.high)})"
    return shown(estimate.mean) + interval


def _table(head: list[str], rows: list[list[Any]], align: str) -> str:
    """Cells of `rows` are Markdown already."""
    lines = ["| " + " | ".join(map(escaped, head)) + " |", "|:--" + f"|{align}" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
