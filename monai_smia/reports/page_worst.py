# SPDX-License-Identifier: Apache-2.0
"""The section that sets every metric without an attack against its worst values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from monai_smia.reports.curve_svg import curve_svg
from monai_smia.reports.curves import Curve, axis_label, by_norm, curves_of
from monai_smia.reports.page_html import estimate_html, table
from monai_smia.reports.readout import Estimate, Measure, Readout
from monai_smia.reports.report import CLEAN
from monai_smia.reports.wording import counted, shown

CHARTS_OPEN = 4  # further charts are folded away


def worst_section(readout: Readout) -> str:
    """Clean against worst, the curves, and all runs."""
    if not readout.measures:
        return "<p>The report holds no metric.</p>"
    head = ["metric", "without an attack"]
    head += [
        f"worst at {escape(group.label)}" if group.budget.eps is not None else f"under {escape(group.label)}"
        for group in readout.groups
    ]
    rows = []
    for measure in readout.measures:
        way = "lower is better" if measure.lower_is_better else "higher is better"
        kind = "" if measure.per_case else ", over all cases at once"
        cells = [f'{escape(measure.label)} <span class="interval">{way}{kind}</span>']
        cells.append(estimate_html(measure.runs.get(CLEAN, Estimate(math.nan))))
        for worst in measure.worst:
            alone = ""
            if worst.run is not None:
                name, mean = readout.budgets[worst.run].family, measure.runs[worst.run].mean
                alone = f' <span class="interval">worst attack: {escape(name)}, {shown(mean)}</span>'
            cells.append(estimate_html(worst.estimate) + alone)
        rows.append(cells)
    text = (
        "<p>For each case, the worst value that any of the attacks of a budget reached; then the mean over the cases. "
        "Below it the 95 % bootstrap interval of the mean, drawn by patient, and the attack that is worst alone. A "
        "metric that is only known over all cases at once has the value of the attack that is worst alone, and no "
        "interval. Cases in which a metric is undefined are left out of its mean.</p>"
    )
    return (
        text + table("Without an attack and at worst, for each budget", head, rows) + _charts(readout) + _runs(readout)
    )


def _charts(readout: Readout) -> str:
    charts = []
    for measure in readout.measures:
        for curves in by_norm(curves_of(readout, measure)):
            charts.append(_chart(readout, measure, curves))
    if not charts:
        return ""
    text = (
        "<h3>Over the budget</h3><p>Each curve is one attack, the mean over the cases; the band is the 95 % bootstrap "
        "interval. Budget 0 is without an attack.</p>"
    )
    more = "".join(charts[CHARTS_OPEN:])
    number = counted(len(charts) - CHARTS_OPEN, "more chart")
    folded = f'<details><summary>{number}</summary><div class="charts">{more}</div></details>'
    return text + f'<div class="charts">{"".join(charts[:CHARTS_OPEN])}</div>' + (folded if more else "")


def _chart(readout: Readout, measure: Measure, curves: Sequence[Curve]) -> str:
    label = axis_label(readout.report.unit, curves[0].norm)
    title = f"{measure.label} over the {label}"
    sizes = sorted({point.eps for curve in curves for point in curve.points})
    rows = []
    for curve in curves:
        known = {point.eps: point.estimate for point in curve.points}
        rows.append([escape(curve.family), *(estimate_html(known[eps]) if eps in known else "" for eps in sizes)])
    numbers = table(title, ["attack", *(f"{eps:g}" for eps in sizes)], rows)
    drawn = curve_svg(curves, title=f"{title}. The numbers are in the table below.", x_label=label)
    return (
        f"<figure><figcaption>{escape(measure.label)}</figcaption>{drawn}"
        f"<details><summary>Numbers of this chart</summary>{numbers}</details></figure>"
    )


def _runs(readout: Readout) -> str:
    """Every run by itself."""
    head = ["run", *(escape(measure.label) for measure in readout.measures)]
    rows = [
        [escape(run), *(estimate_html(measure.runs.get(run, Estimate(math.nan))) for measure in readout.measures)]
        for run in (CLEAN, *readout.budgets)
    ]
    return f"<details><summary>Every run by itself</summary>{table('Every run by itself', head, rows)}</details>"
