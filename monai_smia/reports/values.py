# SPDX-License-Identifier: Apache-2.0
"""The numbers in a report: values per case and aggregated ones, metric by metric and run by run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np

from monai_smia.reports.budgets import runs_of
from monai_smia.reports.report import CLEAN, RobustnessReport

Values = np.ndarray[Any, Any]

OF_RESULTS = {"loss": "clean_loss", "success": "clean_success"}
"""Columns of an attack's result that are shown as metrics, to their columns without the attack."""

_NO_METRIC = {"attack", "case", "patient", "unit"}


def rows_of(report: RobustnessReport) -> dict[str, list[dict[str, Any]]]:
    """The rows of every run that has any, the clean ones first."""
    rows: dict[str, list[dict[str, Any]]] = {CLEAN: []}
    for row in report.cases:
        rows.setdefault(str(row["attack"]), []).append(row)
    rows = {run: own for run, own in rows.items() if own}
    expected = [row["case"] for row in next(iter(rows.values()), ())]
    for run, own in rows.items():
        if [row["case"] for row in own] != expected:
            raise ValueError(
                f"report: expected the same {len(expected)} cases, in the same order, in every run; got {len(own)} "
                f"rows under {run!r}"
            )
    return rows


def per_case(report: RobustnessReport, rows: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Values]]:
    """Metric to run to values per case."""
    columns: dict[str, dict[str, Values]] = {}
    skipped = _NO_METRIC | set(OF_RESULTS) | set(OF_RESULTS.values())
    for name, value in rows.get(CLEAN, [{}])[0].items():
        if name not in skipped and isinstance(value, (Real, type(None))):
            columns[name] = {run: column(rows[run], name) for run in [CLEAN, *runs_of(report)] if run in rows}
    for name, clean in OF_RESULTS.items():
        attacked = [run for run in runs_of(report) if name in rows.get(run, [{}])[0]]
        if attacked:
            columns[name] = {CLEAN: column(rows[attacked[0]], clean)}
            columns[name].update({run: column(rows[run], name) for run in attacked})
    return columns


def column(rows: list[dict[str, Any]], name: str) -> Values:
    """A column as numbers, NaN where there is none."""
    return np.array([math.nan if row.get(name) is None else float(row[name]) for row in rows])


def aggregated(report: RobustnessReport) -> dict[str, dict[str, float]]:
    """Metric to run to its aggregated value."""
    columns: dict[str, dict[str, float]] = {}
    for run, metrics in report.metrics.items():
        for name, value in scalars(metrics).items():
            columns.setdefault(name, {})[run] = value
    return columns


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics that are numbers; a list of numbers as ``<metric>_<k>``."""
    return {name: value for metric, entry in metrics.items() for name, value in _flat(metric, entry)}


def _flat(name: str, value: Any) -> Iterator[tuple[str, float]]:
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None or isinstance(value, (bool, int, float)):
        yield name, math.nan if value is None else float(value)
    elif isinstance(value, (list, tuple)):
        for k, item in enumerate(value):
            yield from _flat(name if len(value) == 1 else f"{name}_{k}", item)
