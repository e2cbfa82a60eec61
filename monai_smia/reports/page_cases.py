# SPDX-License-Identifier: Apache-2.0
"""The table by case and the data that its script shows others from."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from monai_smia.reports.page_html import rounded, size_html, table, value_html
from monai_smia.reports.readout import Measure, Readout
from monai_smia.reports.report import CLEAN
from monai_smia.reports.wording import UNDEFINED


def cases_section(readout: Readout) -> str:
    """The table by case: the worst of all attacks, worst first; a script shows other runs and metrics."""
    measure = next((measure for measure in readout.measures if measure.per_case), None)
    if measure is None:
        return "<p>The report holds no values for single cases.</p>"
    choices = [f'<option value="{i}">{escape(own.label)}</option>' for i, own in _per_case(readout)]
    runs = ['<option value="worst">the worst of all attacks</option>']
    runs += [f'<option value="{i}">{escape(run)}</option>' for i, run in enumerate(readout.budgets)]
    controls = (
        '<div class="controls" id="case-controls" hidden>'
        f'<label>Metric <select id="case-metric">{"".join(choices)}</select></label>'
        f'<label>Attack <select id="case-run">{"".join(runs)}</select></label></div>'
        '<p id="case-status" class="visually-hidden" role="status"></p>'
    )
    worst = measure.overall
    order = sorted(range(len(readout.cases)), key=lambda i: _worst_first(measure, float(worst.values[i])))
    clean = measure.values[CLEAN]
    rows = []
    for i in order:
        run = worst.runs[i]
        change = float(worst.values[i] - clean[i])
        rows.append(
            [
                escape(readout.cases[i]),
                value_html(float(clean[i])),
                value_html(float(worst.values[i])),
                value_html(change),
                size_html(math.nan if run is None else float(readout.changes[run][i])),
                escape(run or UNDEFINED),
            ]
        )
    size = f"largest change of the image [{readout.report.unit}]"
    titles = ["case", "without an attack", "under attack", "change", size, "attack"]
    head = [f'<button type="button" class="sort">{escape(title)}</button>' for title in titles]
    return controls + table(f"{measure.label} of each case, the worst cases first", head, rows, "case-table")


def cases_data(readout: Readout) -> dict[str, Any]:
    """What the table's script needs: values to six digits, ``None`` where undefined."""
    return {
        "cases": readout.cases,
        "runs": list(readout.budgets),
        "changes": [[rounded(value) for value in readout.changes[run]] for run in readout.budgets],
        "measures": [
            {
                "label": measure.label,
                "lower": measure.lower_is_better,
                "clean": [rounded(value) for value in measure.values[CLEAN]],
                "values": [
                    [rounded(value) for value in measure.values[run]] if run in measure.values else None
                    for run in readout.budgets
                ],
            }
            for _, measure in _per_case(readout)
        ],
    }


def _per_case(readout: Readout) -> list[tuple[int, Measure]]:
    return list(enumerate(measure for measure in readout.measures if measure.per_case))


def _worst_first(measure: Measure, value: float) -> tuple[bool, float]:
    return math.isnan(value), -value if measure.lower_is_better else value
