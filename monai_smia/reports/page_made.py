# SPDX-License-Identifier: Apache-2.0
"""The last sections of the page: how the evaluation was made, and what checks of it found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from monai_smia.reports.budgets import budget_label
from monai_smia.reports.finding import headline
from monai_smia.reports.page_html import size_html, table, value_html
from monai_smia.reports.readout import Readout
from monai_smia.reports.report import RobustnessReport
from monai_smia.reports.wording import UNDEFINED


def made_section(readout: Readout, versions: Mapping[str, str], about: Mapping[str, str]) -> str:
    """Attacks, versions, and what the caller says."""
    rows = []
    for run, budget in readout.budgets.items():
        own = [row for row in readout.report.cases if row["attack"] == run]
        cells = [escape(run), escape(budget_label(budget, readout.report.unit))]
        cells += [_mean(own, name) for name in ("forward_passes", "backward_passes")]
        known = [float(value) for value in readout.changes[run] if not math.isnan(value)]
        cells.append(size_html(max(known, default=math.nan)))
        cells.append(f"<code>{escape(readout.report.attacks.get(run, UNDEFINED))}</code>")
        rows.append(cells)
    unit = escape(readout.report.unit)
    head = ["attack", "budget", "forward passes", "backward passes", f"largest change [{unit}]"]
    head.append("settings, in network units")
    return (
        (table("Attacks, with the mean number of passes through the network for each case", head, rows) if rows else "")
        + (f"<h3>About this evaluation</h3>{_pairs(about)}" if about else "")
        + f"<h3>Software that wrote this page</h3>{_pairs(versions)}"
    )


def findings_section(findings: Sequence[str] | None) -> str:
    """What checks of the evaluation found."""
    if findings is None:
        return (
            "<p>No check of the strength of the attacks was run; an attack may have failed for technical reasons.</p>"
        )
    if not findings:
        return "<p>The checks that were run found nothing to object to.</p>"
    return "<ul>" + "".join(f"<li>{escape(finding)}</li>" for finding in findings) + "</ul>"


def verdict_html(report: RobustnessReport, findings: Sequence[str] | None) -> str:
    """What was found, in one line for the top of the page; nothing where nothing was."""
    said = headline(report.findings) or ("The checks objected to something; see the findings." if findings else None)
    return "" if said is None else f'<p class="verdict" role="alert"><a href="#findings">{escape(said)}</a></p>'


def _pairs(items: Mapping[str, str]) -> str:
    lines = (f"<div><dt>{escape(str(name))}</dt><dd>{escape(str(text))}</dd></div>" for name, text in items.items())
    return f"<dl>{''.join(lines)}</dl>"


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [float(row[name]) for row in rows if row.get(name) is not None]
    return f"{sum(values) / len(values):.4g}" if values else value_html(math.nan)
