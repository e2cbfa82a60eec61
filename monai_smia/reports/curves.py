# SPDX-License-Identifier: Apache-2.0
"""`curves_of` and `figure`: a metric over the budget, one curve for each attack; `figure` leads to a case too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from monai_smia.reports.budgets import NETWORK_UNITS
from monai_smia.reports.case_figure import case_figure
from monai_smia.reports.readout import Estimate, Measure, Reading, Readout, read_report
from monai_smia.reports.report import CLEAN, RobustnessReport
from monai_smia.reports.views import CaseView

COLOURS = ("#0072b2", "#c44e00", "#007a59", "#a6457f", "#7a5c00", "#5a5fc7", "#444444", "#1b8a9e")
MARKERS = "os^Dv<>P"
DASHES = ((), (6, 2), (2, 2), (6, 2, 2, 2))


@dataclass(frozen=True)
class Point:
    """One run on a curve.

    Attributes:
        eps: budget in the report's unit; 0 without an attack.
        run: its name.
        estimate: mean and interval; NaN where undefined.
    """

    eps: float
    run: str
    estimate: Estimate


@dataclass(frozen=True)
class Curve:
    """One attack at all its budgets, the clean value first.

    Attributes:
        family: the attack.
        norm: of its budgets; curves of different norms share no axis.
        points: by increasing budget.
    """

    family: str
    norm: float
    points: tuple[Point, ...]


def curves_of(readout: Readout, measure: Measure) -> list[Curve]:
    """One curve for each attack and norm; runs whose budget is unknown are on none.

    Example:
        >>> values = {"clean": {"auc": 0.9}, "PGD_5HU": {"auc": 0.5}, "PGD_2HU": {"auc": 0.7}}
        >>> report = RobustnessReport(values, (), {"PGD_5HU": "PGD()", "PGD_2HU": "PGD()"}, "HU")
        >>> readout = read_report(report)
        >>> [(point.eps, point.estimate.mean) for point in curves_of(readout, readout.measures[0])[0].points]
        [(0.0, 0.9), (2.0, 0.7), (5.0, 0.5)]
    """
    points: dict[tuple[str, float], list[Point]] = {}
    for run, budget in readout.budgets.items():
        if budget.eps is not None and run in measure.runs:
            own = points.setdefault((budget.family, budget.norm), [])
            own.append(Point(budget.eps, run, measure.runs[run]))
    clean = [Point(0.0, CLEAN, measure.runs[CLEAN])] if CLEAN in measure.runs else []
    return [
        Curve(family, norm, (*clean, *sorted(own, key=lambda point: point.eps)))
        for (family, norm), own in points.items()
    ]


def by_norm(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Curves that share an axis, Linf first."""
    norms = sorted({curve.norm for curve in curves}, reverse=True)
    return [[curve for curve in curves if curve.norm == norm] for norm in norms]


def axis_label(unit: str, norm: float) -> str:
    """Of the axis of budgets, with the unit and the norm."""
    kind = "largest change" if math.isinf(norm) else f"size of the change, L{norm:g} norm"
    return f"{kind} [{unit}]" if unit != NETWORK_UNITS else f"{kind}, {unit}"


def figure(
    report: RobustnessReport,
    kind: str = "curve",
    case: str | None = None,
    *,
    views: Sequence[CaseView] = (),
    reading: Reading | None = None,
    runs: Sequence[str] | None = None,
    index: int | None = None,
) -> Any:
    """A matplotlib figure of the report's numbers, those of the page, or of one case's images.

    Args:
        report: what an evaluation gave.
        kind: ``"curve"``: the metric of `reading` over the budget, a curve with its 95 % bootstrap band for each
            attack, a panel for each norm. ``"case"``: image, adversarial image, difference in the report's unit and
            both predictions, a row for each run; see `monai_smia.reports.case_figure.case_figure`.
        case: of ``"case"``: which; ``None`` where there is one view only.
        views: of ``"case"``: where its images are from. A curve leaves them aside.
        reading: of ``"curve"``: which metric, names and patients.
        runs: of ``"case"``: which, in this order; ``None`` for all.
        index: of ``"case"``: slice of a volume; ``None`` for that with most label, else prediction, else change.

    Returns:
        A ``matplotlib.figure.Figure``, bound to no window; ``savefig`` writes it.

    Raises:
        ValueError: for another kind, an argument of the other kind, where the report has no metric or no run with a
            known budget, and where no view or several are of the case.
        ImportError: without matplotlib (the extra ``report``).

    Example:
        .. code-block:: python

            figure(report, "curve").savefig("curve.png", dpi=150)
            figure(report, "case", "a.nii.gz", views=[load_view("a.npz")]).savefig("case.svg")
    """
    if kind not in ("curve", "case"):
        raise ValueError(f"kind: expected 'curve' or 'case'; got {kind!r}")
    others = {"reading": reading} if kind == "case" else {"case": case, "runs": runs, "index": index}
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"{name}: expected none for the kind {kind!r}; got {value!r}")
    if kind == "case":
        return case_figure(_view_of(views, case), report.unit, runs=runs, index=index)
    return _curve_figure(report, reading)


def _view_of(views: Sequence[CaseView], case: str | None) -> CaseView:
    found = [view for view in views if case is None or view.case == case]
    if len(found) != 1:
        wanted = "one view, or a case of several" if case is None else f"one view of {case!r}"
        raise ValueError(f"views: expected {wanted}; got views of {[view.case for view in views]}")
    return found[0]


def _curve_figure(report: RobustnessReport, reading: Reading | None) -> Any:
    from matplotlib.figure import Figure  # an extra; only figures need it

    readout = read_report(report, reading)
    curves = curves_of(readout, readout.measures[0]) if readout.measures else []
    if not curves:
        raise ValueError("report: expected a metric and a run with a known budget; got none")
    panels = by_norm(curves)
    drawn = Figure(figsize=(6.2 * len(panels), 4), layout="constrained")
    for axis, own in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for i, curve in enumerate(own):
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            eps = [point.eps for point in curve.points]
            line = axis.plot(eps, [point.estimate.mean for point in curve.points], label=curve.family, **style)[0]
            if DASHES[i % len(DASHES)]:
                line.set_dashes(DASHES[i % len(DASHES)])
            band = [[getattr(point.estimate, side) for point in curve.points] for side in ("low", "high")]
            axis.fill_between(eps, *band, color=style["color"], alpha=0.12, linewidth=0)
        axis.set_xlabel(axis_label(report.unit, own[0].norm))
        axis.set_ylabel(readout.measures[0].label)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    return drawn
