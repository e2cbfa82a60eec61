# SPDX-License-Identifier: Apache-2.0
"""`read_report`: the numbers that page, model card and figures show, each computed once."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from monai_smia.reports.budgets import Budget, budget_label, budgets_of
from monai_smia.reports.report import CLEAN, RobustnessReport
from monai_smia.reports.summary import PatientOf, bootstrap_interval
from monai_smia.reports.values import OF_RESULTS, Values, aggregated, column, per_case, rows_of, scalars
from monai_smia.reports.wording import is_lower_better, label_of

LOSS = "loss"
_RESULT_LABELS = {"loss": "loss", "success": "share of cases where the attack reached its goal"}


@dataclass(frozen=True)
class Reading:
    """How a report is to be read.

    Attributes:
        metric: column that the summary and the table of cases start with; ``None`` is the first of the clean metrics.
        names: column to what readers see, such as ``{"val_mean_dice_0": "Dice of the left lung"}``.
        lower_is_better: columns whose small values are the good ones; ``None`` judges by the words of the names
            (distances, losses and errors).
        patient_of: case name to patient, for the intervals; ``None`` takes every case for a patient of its own.
    """

    metric: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    lower_is_better: Collection[str] | None = None
    patient_of: PatientOf | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean over cases with its 95 % bootstrap interval by patient, or an aggregated value without one.

    Attributes:
        mean: over the cases that have a value; NaN where none has.
        low, high: NaN where there are fewer than two patients, or no values per case.
        defined, undefined: numbers of cases with and without a value; both 0 for an aggregated value.
    """

    mean: float
    low: float = math.nan
    high: float = math.nan
    defined: int = 0
    undefined: int = 0


@dataclass(frozen=True)
class Worst:
    """The worst of several runs.

    Attributes:
        estimate: of the worst value of each case; for an aggregated metric, of the worst run.
        values: the worst value of each case, ``(cases,)``.
        runs: which run that is, for each case; ``None`` where no run has a value.
        run: the single run with the worst mean; ``None`` where none has a value.
    """

    estimate: Estimate
    values: Values
    runs: tuple[str | None, ...]
    run: str | None


@dataclass(frozen=True)
class Measure:
    """One metric, or one structure of it.

    Attributes:
        name, label: column, and what readers see.
        lower_is_better: which way is worse.
        per_case: whether there are values per case; else only aggregated ones.
        values: run (with ``"clean"``) to values per case, NaN where undefined.
        runs: run (with ``"clean"``) to its estimate.
        worst: index of a group of `Readout.groups` to the worst of its runs.
        overall: the worst of all runs.
    """

    name: str
    label: str
    lower_is_better: bool
    per_case: bool
    values: Mapping[str, Values]
    runs: Mapping[str, Estimate]
    worst: tuple[Worst, ...]
    overall: Worst


@dataclass(frozen=True)
class Group:
    """The runs of one budget.

    Attributes:
        budget: shared by them; its family is that of the first.
        label: the budget in words, or the run's name where the budget is not known.
        runs: names.
    """

    budget: Budget
    label: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Readout:
    """Everything that is shown.

    Attributes:
        report: where it comes from.
        cases: names, in the report's order.
        budgets: run to its budget.
        groups: runs by budget, smallest first.
        measures: metrics, the one to start with first.
        changes: run to the largest change of each case's image, ``(cases,)``, in the report's unit; NaN where unknown.
    """

    report: RobustnessReport
    cases: tuple[str, ...]
    budgets: Mapping[str, Budget]
    groups: tuple[Group, ...]
    measures: tuple[Measure, ...]
    changes: Mapping[str, Values]


def read_report(report: RobustnessReport, reading: Reading | None = None) -> Readout:
    """Means, intervals and worst cases of every metric.

    Metrics known per case come from the cases; a structure of a metric is one of its own. Metrics that are only
    aggregated (an AUC) come from `RobustnessReport.metrics`. The attack's loss and success come last; where all attacks
    went towards a target, the lowest loss is the worst.

    Raises:
        ValueError: when an attack's rows are of other cases than the clean ones, or `Reading.metric` is unknown.

    Example:
        >>> rows = [("clean", "a", 0.9), ("clean", "b", 0.7), ("p_5HU", "a", 0.5), ("p_5HU", "b", 0.3)]
        >>> rows += [("q_5HU", "a", 0.2), ("q_5HU", "b", 0.6)]
        >>> cases = tuple({"attack": run, "case": case, "dice": dice} for run, case, dice in rows)
        >>> report = RobustnessReport({"clean": {"dice": 0.8}}, cases, {"p_5HU": "P()", "q_5HU": "Q()"}, "HU")
        >>> worst = read_report(report).measures[0].worst[0]
        >>> worst.estimate.mean, worst.runs, worst.run
        (0.25, ('q_5HU', 'p_5HU'), 'p_5HU')
    """
    reading = reading or Reading()
    rows = rows_of(report)
    cases = tuple(str(row["case"]) for row in next(iter(rows.values()), ()))
    patients = None if reading.patient_of is None else [str(reading.patient_of(case)) for case in cases]
    budgets = budgets_of(report)
    groups = _groups(budgets, report.unit)
    measures = []
    towards = bool(report.attacks) and all(_is_targeted(text) for text in report.attacks.values())
    for name, values in per_case(report, rows).items():
        estimates = {run: estimate(own, patients) for run, own in values.items()}
        measures.append(_measure(name, reading, values, estimates, groups, patients, towards and name == LOSS))
    known = {measure.name for measure in measures}
    for name, totals in aggregated(report).items():
        if name not in known:
            estimates = {run: Estimate(value) for run, value in totals.items()}
            measures.append(_measure(name, reading, {}, estimates, groups, patients))
    first = reading.metric or next(iter(scalars(report.metrics.get(CLEAN, {}))), None)
    if reading.metric is not None and reading.metric not in {measure.name for measure in measures}:
        raise ValueError(f"metric: expected one of {[measure.name for measure in measures]}; got {reading.metric!r}")
    measures.sort(key=lambda measure: (measure.name != first, measure.name in OF_RESULTS))
    changes = {run: column(rows.get(run, [{}] * len(cases)), "largest_change") for run in budgets}
    return Readout(report, cases, budgets, groups, tuple(measures), changes)


def estimate(values: Values, patients: list[str] | None = None) -> Estimate:
    """Mean and interval of the values that are defined."""
    defined = ~np.isnan(values)
    kept = values[defined]
    own = None if patients is None else [patient for patient, is_kept in zip(patients, defined, strict=True) if is_kept]
    low, high = bootstrap_interval(kept, own)
    return Estimate(float(kept.mean()) if len(kept) else math.nan, low, high, len(kept), int((~defined).sum()))


def worse(first: float, second: float, lower_is_better: bool) -> bool:
    """Whether the first value is worse than the second; an undefined one is worse than none."""
    if math.isnan(first) or math.isnan(second):
        return math.isnan(second) and not math.isnan(first)
    return first > second if lower_is_better else first < second


def _is_targeted(attack: str) -> bool:
    """Whether an attack's ``repr`` says that it goes towards a target."""
    return attack.startswith("Towards(") or "targeted=True" in attack


def _groups(budgets: Mapping[str, Budget], unit: str) -> tuple[Group, ...]:
    runs: dict[tuple[float, float] | str, list[str]] = {}
    for run, budget in budgets.items():
        runs.setdefault(run if budget.eps is None else (-budget.norm, budget.eps), []).append(run)
    known = sorted(key for key in runs if isinstance(key, tuple))
    keys: list[tuple[float, float] | str] = [*known, *(key for key in runs if isinstance(key, str))]
    groups = []
    for key in keys:
        budget = budgets[runs[key][0]]
        label = key if isinstance(key, str) else budget_label(budget, unit)
        groups.append(Group(budget, label, tuple(runs[key])))
    return tuple(groups)


def _measure(
    name: str,
    reading: Reading,
    values: Mapping[str, Values],
    estimates: Mapping[str, Estimate],
    groups: tuple[Group, ...],
    patients: list[str] | None,
    towards: bool = False,
) -> Measure:
    lower = is_lower_better(name) if reading.lower_is_better is None else name in reading.lower_is_better
    lower = not towards if name in OF_RESULTS else lower
    label = label_of(name, {**_RESULT_LABELS, **reading.names})
    worst = tuple(_worst(group.runs, values, estimates, lower, patients) for group in groups)
    every = tuple(run for group in groups for run in group.runs)
    overall = _worst(every, values, estimates, lower, patients)
    return Measure(name, label, lower, bool(values), values, estimates, worst, overall)


def _worst(
    runs: tuple[str, ...],
    values: Mapping[str, Values],
    estimates: Mapping[str, Estimate],
    lower: bool,
    patients: list[str] | None,
) -> Worst:
    single: str | None = None
    for run in runs:
        mean = estimates[run].mean if run in estimates else math.nan
        if worse(mean, math.nan if single is None else estimates[single].mean, lower):
            single = run
    own = [run for run in runs if run in values]
    if not own:
        return Worst(Estimate(math.nan) if single is None else estimates[single], np.empty(0), (), single)
    stacked = np.stack([values[run] for run in own])
    ranked = np.where(np.isnan(stacked), -np.inf, stacked if lower else -stacked)
    where = ranked.argmax(0)
    extreme = np.take_along_axis(stacked, where[None], 0)[0]
    chosen = tuple(None if np.isnan(value) else own[i] for value, i in zip(extreme, where, strict=True))
    return Worst(estimate(extreme, patients), extreme, chosen, single)
