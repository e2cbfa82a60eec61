# SPDX-License-Identifier: Apache-2.0
"""Rows of the robustness table, from the reports of bundles."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_smia.reports import CLEAN, RobustnessReport, bootstrap_interval

ITERATED = ("PGD", "SMIA")  # their number of steps is part of their title
UNITS = {"grey": "grey levels", "percent": "% of the range"}
NOTHING = "—"


@dataclass(frozen=True)
class Metric:
    """A metric of the reports.

    Args:
        name: in the report.
        title: in the table.
        per_case: whether it is a mean over cases, so that it has an interval; an AUC or a precision is not.
    """

    name: str
    title: str
    per_case: bool = False


@dataclass(frozen=True)
class Grid:
    """The attacks of one bundle: every name at every budget, in the unit of its report, for `steps` steps."""

    names: Sequence[str]
    budgets: Sequence[float]
    steps: int

    def runs(self, unit: str) -> list[tuple[str, float, str]]:
        """(attack, budget, name in the report), budget by budget."""
        return [(name, eps, f"{name}_{eps:g}{unit}") for eps in self.budgets for name in self.names]

    def titles(self) -> dict[str, str]:
        return {name: f"{name}-{self.steps}" if name in ITERATED else name for name in self.names}


def read_report(file: Path) -> RobustnessReport:
    """What `RobustnessReport.save` wrote in JSON; what was not finite is ``None``."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return RobustnessReport(content["metrics"], tuple(content["cases"]), content["attacks"], content["unit"])


def count(report: RobustnessReport) -> int:
    """Number of cases."""
    return sum(case["attack"] == CLEAN for case in report.cases)


def cell(report: RobustnessReport, run: str, metric: Metric) -> str:
    """The metric as the evaluator aggregated it, with its interval over cases where there are at least two."""
    value = report.metrics[run][metric.name]
    if value is None:
        return NOTHING
    rows = [case for case in report.cases if case["attack"] == run]
    values = [float(case[metric.name]) for case in rows if case.get(metric.name) is not None]
    if not metric.per_case or len(values) < 2:
        return f"{value:.3f}"
    if not math.isclose(value, sum(values) / len(values), abs_tol=1e-4):
        raise ValueError(f"{metric.name}: expected the mean over the cases of {run!r}; got {value}")
    low, high = bootstrap_interval(values)
    return f"{value:.3f} [{low:.3f}..{high:.3f}]"


def metric_header(grid: Grid) -> list[str]:
    """Columns of `metric_rows`."""
    return ["bundle", "weights", "metric", "cases", "budget", "clean", *grid.titles().values()]


def metric_rows(
    bundle: str, weights: str, report: RobustnessReport, grid: Grid, metrics: Sequence[Metric]
) -> list[list[str]]:
    """A row for each metric and budget."""
    unit, cases, rows = UNITS.get(report.unit, report.unit), str(count(report)), []
    for metric in metrics:
        for budget in grid.budgets:
            runs = [CLEAN, *(run for _, eps, run in grid.runs(report.unit) if eps == budget)]
            about = [bundle, weights, metric.title, cases, f"{budget:g} {unit}"]
            rows.append([*about, *(cell(report, run, metric) for run in runs)])
    return rows


def cost_header(grid: Grid) -> list[str]:
    """Columns of `cost_row`."""
    titles = grid.titles().values()
    passes, success = [f"passes of {title}" for title in titles], [f"success of {title}" for title in titles]
    return ["bundle", "weights", "their SHA-256", "seconds per case", *passes, "clean success", *success]


def cost_row(
    bundle: str, weights: str, report: RobustnessReport, grid: Grid, *, seconds: float, digest: str
) -> list[str]:
    """What the unit took, and each attack's passes and its success by budget.

    Args:
        bundle, weights: names.
        report: of the unit.
        grid: its attacks.
        seconds: that the unit took.
        digest: SHA-256 of the weights, of which the beginning is shown.
    """
    passes, success = [], []
    for name in grid.names:
        runs = [run for attack, _, run in grid.runs(report.unit) if attack == name]
        both = (_mean(report, runs, "forward_passes"), _mean(report, runs, "backward_passes"))
        passes.append(NOTHING if None in both else " + ".join(f"{value:.3g}" for value in both))
        success.append(", ".join(_share(_mean(report, [run], "success")) for run in runs))
    clean = _share(_mean(report, [grid.runs(report.unit)[0][2]], "clean_success"))
    return [bundle, weights, digest[:12], f"{seconds / count(report):.1f}", *passes, clean, *success]


def _mean(report: RobustnessReport, runs: Sequence[str], column: str) -> float | None:
    values: list[Any] = [case.get(column) for case in report.cases if case["attack"] in runs]
    return None if not values or None in values else sum(map(float, values)) / len(values)


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"
