"""What the page shows against numpy and numbers by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from page_samples import CASES, DICE, sample_report

from monai_smia.reports import CLEAN, RobustnessReport, bootstrap_interval
from monai_smia.reports.readout import Estimate, Measure, Reading, read_report, worse
from monai_smia.reports.summary_text import summary_sentences


def measure(name: str, reading: Reading | None = None) -> Measure:
    return next(own for own in read_report(sample_report(), reading).measures if own.name == name)


def test_groups_are_budgets_from_small_to_large() -> None:
    groups = read_report(sample_report()).groups
    assert [(group.label, group.runs) for group in groups] == [
        ("5 HU", ("PGD_5HU", "SMIA_5HU")),
        ("20 HU", ("PGD_20HU",)),
    ]


def test_the_worst_of_each_case_then_the_mean() -> None:
    dice = measure("dice")
    at_5, at_20 = dice.worst
    assert at_5.values.tolist() == pytest.approx([0.55, 0.50, 0.30, math.nan], nan_ok=True)
    assert at_5.runs == ("SMIA_5HU", "PGD_5HU", "SMIA_5HU", None)
    low, high = bootstrap_interval([0.55, 0.50, 0.30])
    assert at_5.estimate == Estimate(pytest.approx(0.45), low, high, 3, 1)
    assert at_5.run == "SMIA_5HU"  # 0.517 against 0.55
    assert at_20.estimate.mean == pytest.approx(np.mean([0.10, 0.05, 0.20]))
    assert dice.overall.values.tolist() == pytest.approx([0.10, 0.05, 0.20, math.nan], nan_ok=True)
    assert dice.runs[CLEAN] == Estimate(pytest.approx(0.93), *bootstrap_interval([0.95, 0.93, 0.91]), 3, 1)


def test_of_a_distance_the_largest_is_the_worst() -> None:
    distance = measure("distance")
    assert distance.lower_is_better
    assert distance.worst[0].values.tolist() == [9.0, 6.0, 7.5, 8.5]
    assert distance.worst[1].estimate.mean == math.inf
    turned = measure("distance", Reading(lower_is_better=()))
    assert turned.worst[0].values.tolist() == [5.0, 4.0, 7.0, 8.0]


def test_an_aggregated_metric_has_its_worst_run() -> None:
    auc = measure("auc")
    assert not auc.per_case
    assert auc.worst[0].run == "SMIA_5HU"
    assert auc.worst[0].estimate == Estimate(pytest.approx(0.7))


def test_loss_and_success_of_the_attacks_come_last() -> None:
    assert [own.name for own in read_report(sample_report()).measures] == ["dice", "distance", "auc", "loss", "success"]
    success = measure("success")
    assert success.runs[CLEAN].mean == 0
    assert success.worst[0].estimate.mean == 0.75


def test_the_first_metric_is_chosen_by_name() -> None:
    readout = read_report(sample_report(), Reading(metric="auc", names={"auc": "area"}))
    assert (readout.measures[0].name, readout.measures[0].label) == ("auc", "area")
    with pytest.raises(ValueError, match="metric: expected one of .*; got 'f1'"):
        read_report(sample_report(), Reading(metric="f1"))


def test_intervals_are_by_patient() -> None:
    dice = measure("dice", Reading(patient_of=lambda case: "p" if case < "c" else case))
    assert (dice.runs[CLEAN].low, dice.runs[CLEAN].high) == bootstrap_interval([0.95, 0.93, 0.91], ["p", "p", "c"])


def test_runs_of_other_cases_are_refused() -> None:
    report = sample_report()
    with pytest.raises(ValueError, match="report: expected the same 4 cases, in the same order"):
        read_report(replace(report, cases=report.cases[:-1]))


@pytest.mark.parametrize(
    ("first", "second", "lower", "expected"),
    [(0.1, 0.2, False, True), (0.1, 0.2, True, False), (math.nan, 0.2, False, False), (0.1, math.nan, False, True)],
)
def test_worse(first: float, second: float, lower: bool, expected: bool) -> None:
    assert worse(first, second, lower) is expected


def test_summary_of_the_sample() -> None:
    assert summary_sentences(read_report(sample_report())) == (
        "Without an attack the mean Dice over 3 cases is 0.93. Changes of at most 5 HU bring it down to 0.45 and those "
        "of at most 20 HU to 0.12, by the worst of up to 2 attacks on each case."
    )


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({}, "The report holds no metric."),
        ({CLEAN: {"auc": 0.9}}, "Without an attack the AUC is 0.90. No attack was run."),
        (
            {CLEAN: {"auc": 0.9}, "PGD_1HU": {"auc": 0.9}, "PGD_5HU": {"auc": 0.6}},
            "Without an attack the AUC is 0.90. Changes of at most 1 HU leave it at 0.90 and changes of at most 5 HU "
            "bring it down to 0.60.",
        ),
        (
            {CLEAN: {"auc": 0.9}, "PGD_1HU": {"auc": 0.95}, "odd": {"auc": 0.2}},
            "Without an attack the AUC is 0.90. Changes of at most 1 HU leave it no worse, at 0.95 and the attack odd "
            "brings it down to 0.20.",
        ),
        (
            {CLEAN: {"surface_distance": None}, "PGD_1HU": {"surface_distance": math.nan}},
            "Without an attack the surface distance is undefined. Changes of at most 1 HU make it undefined.",
        ),
        (
            {CLEAN: {"surface_distance": 1.0}, "PGD_1HU": {"surface_distance": 12.0}},
            "Without an attack the surface distance is 1.00. Changes of at most 1 HU bring it up to 12.0.",
        ),
    ],
)
def test_summaries(metrics: dict[str, dict[str, float]], expected: str) -> None:
    report = RobustnessReport(metrics, (), {run: "" for run in metrics if run != CLEAN}, "HU")
    assert summary_sentences(read_report(report)) == expected


def test_an_empty_report_reads() -> None:
    readout = read_report(RobustnessReport({}, (), {}, "HU"))
    assert (readout.cases, readout.groups, readout.measures) == ((), (), ())


def test_a_list_of_values_is_one_metric_for_each() -> None:
    metrics = {CLEAN: {"dice": [0.9, None]}, "PGD_1HU": {"dice": np.array([0.5, 0.25])}}
    measures = read_report(RobustnessReport(metrics, (), {"PGD_1HU": ""}, "HU")).measures
    assert [(own.label, own.worst[0].estimate.mean) for own in measures] == [("Dice (0)", 0.5), ("Dice (1)", 0.25)]
    assert math.isnan(measures[1].runs[CLEAN].mean)


def test_every_value_of_the_sample_is_in_the_readout() -> None:
    readout = read_report(sample_report())
    assert readout.cases == CASES
    for run, values in DICE.items():
        assert readout.measures[0].values[run].tolist() == pytest.approx(values, nan_ok=True)
    assert readout.changes["PGD_20HU"].tolist() == [20.0] * 4


def test_of_attacks_towards_a_target_the_lowest_loss_is_the_worst() -> None:
    rows: list[dict[str, Any]] = [{"attack": "clean", "case": "a", "dice": 0.9}]
    for run, loss in (("p", 0.2), ("q", 0.7)):
        numbers = {
            "success": run == "p",
            "clean_success": False,
            "loss": loss,
            "clean_loss": 2.0,
            "largest_change": 1.0,
        }
        rows.append({"attack": run, "case": "a", "dice": 0.5, **numbers})
    metrics = {run: {"dice": 0.5} for run in ("clean", "p", "q")}
    for attack, worst in (("PGD(CrossEntropyLoss(), eps=0.1, targeted=True)", "p"), ("PGD(Loss(), eps=0.1)", "q")):
        report = RobustnessReport(metrics, tuple(rows), {"p": attack, "q": attack}, "HU")
        measures = {measure.name: measure for measure in read_report(report).measures}
        assert measures["loss"].overall.run == worst
        assert measures["success"].overall.run == "p"
