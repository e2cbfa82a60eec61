"""Paired cases and their statistics: numbers by hand, numpy, and scipy's bootstrap."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from monai_smia.reports import CLEAN, RobustnessReport
from monai_smia.reports.summary import bootstrap_interval, paired_cases, summarize

NAN = math.nan
DICE = {CLEAN: [0.9, 0.8, 0.7, NAN], "pgd": [0.5, 0.1, NAN, 0.2]}
CASES = ["p1_a", "p1_b", "p2_a", "p3_a"]


def report(dice: dict[str, list[float]] = DICE, cases: list[str] = CASES) -> RobustnessReport:
    rows: list[dict[str, Any]] = []
    for run, values in dice.items():
        for i, (case, value) in enumerate(zip(cases, values, strict=True)):
            more = (
                {} if run == CLEAN else {"clean_loss": 0.5, "loss": 1.0 + i, "success": i == 1, "largest_change": 5.0}
            )
            rows.append({"attack": run, "case": case, "dice": value, **more})
    metrics = {run: {"dice": 0.0} for run in dice}
    return RobustnessReport(metrics, tuple(rows), {run: "PGD()" for run in dice if run != CLEAN}, "HU")


def patient(case: str) -> str:
    return case.split("_")[0]


def test_pairs_hold_clean_adversarial_and_their_difference() -> None:
    frame = paired_cases(report(), patient)
    assert list(frame.columns[:7]) == ["attack", "case", "patient", "unit", "clean_dice", "dice", "drop_dice"]
    assert list(frame.columns[7:]) == ["clean_loss", "loss", "success", "largest_change"]
    assert frame["patient"].tolist() == ["p1", "p1", "p2", "p3"]
    assert frame["clean_dice"].tolist() == pytest.approx(DICE[CLEAN], nan_ok=True)
    assert frame["drop_dice"].tolist() == pytest.approx([0.4, 0.7, NAN, NAN], nan_ok=True)
    assert set(frame["unit"]) == {"HU"}


def test_pairs_of_different_cases_are_refused() -> None:
    whole = report()
    for cases in (whole.cases[:-1], (*whole.cases[:4], *reversed(whole.cases[4:]))):
        broken = RobustnessReport(whole.metrics, cases, whole.attacks, "HU")
        with pytest.raises(ValueError, match="report: expected the 4 clean cases, in their order, under 'pgd'"):
            paired_cases(broken)


def test_statistics_are_numpys_over_what_is_defined() -> None:
    frame = summarize(report(), patient, quantiles=(0.1, 0.5, 0.975)).set_index(["run", "column"])
    assert list(frame.index) == [
        (CLEAN, "dice"),
        *(("pgd", name) for name in ("dice", "drop_dice", "clean_loss", "loss", "success", "largest_change")),
    ]
    row = frame.loc[("pgd", "dice")]
    values = np.array([0.5, 0.1, 0.2])
    assert row[["cases", "undefined", "patients"]].tolist() == [3, 1, 2]
    assert row["mean"] == pytest.approx(values.mean())
    assert row["std"] == pytest.approx(values.std(ddof=1))
    quantiles = row[["q10", "q50", "q97.5"]].astype(float).tolist()
    assert quantiles == pytest.approx(np.quantile(values, [0.1, 0.5, 0.975]))
    assert (row["low"], row["high"]) == bootstrap_interval(values, ["p1", "p1", "p3"])
    assert frame.loc[("pgd", "success"), "mean"] == 0.25
    assert frame.loc[("pgd", "largest_change"), ["low", "mean", "high"]].tolist() == [5.0, 5.0, 5.0]
    assert frame.loc[("pgd", "drop_dice"), "patients"] == 1
    assert math.isnan(frame.loc[("pgd", "drop_dice"), "low"])  # one patient says nothing of others


def test_a_column_that_is_nowhere_defined_and_one_that_is_infinite() -> None:
    broken = report({CLEAN: [NAN] * 4, "pgd": [math.inf, 1.0, 1.0, 1.0]})
    frame = summarize(broken).set_index(["run", "column"])
    assert frame.loc[(CLEAN, "dice"), ["cases", "undefined"]].tolist() == [0, 4]
    assert frame.loc[(CLEAN, "dice"), ["mean", "std", "q50", "low", "high"]].isna().all()
    assert frame.loc[("pgd", "dice"), "mean"] == math.inf


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize("seed", [0, 7])
def test_with_a_case_for_each_patient_it_is_scipys_bootstrap(level: float, seed: int) -> None:
    values = np.random.default_rng(1).normal(size=23)
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=500,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    names = [f"patient {i}" for i in range(23)]
    ours = bootstrap_interval(values, names, level=level, resamples=500, seed=seed)
    assert ours == pytest.approx(tuple(theirs), rel=1e-12)
    assert ours == bootstrap_interval(values, level=level, resamples=500, seed=seed)
    assert ours != bootstrap_interval(values, level=level, resamples=500, seed=seed + 1)


def test_patients_bring_all_their_cases() -> None:
    """Three patients with 1, 2 and 3 cases: all 27 draws written out, and their percentiles."""
    cases = {"a": [0.0], "b": [1.0, 3.0], "c": [4.0, 4.0, 7.0]}
    means = [np.mean([value for name in draw for value in cases[name]]) for draw in itertools.product("abc", repeat=3)]
    values = [value for own in cases.values() for value in own]
    names = [name for name, own in cases.items() for _ in own]
    for level in (0.5, 0.9):
        expected = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
        assert bootstrap_interval(values, names, level=level, resamples=40000) == pytest.approx(expected, abs=0.02)


def test_cases_of_one_patient_are_no_more_evidence_than_one() -> None:
    """Every case ten times over leaves the interval by patient alone; by case it would shrink."""
    values = np.random.default_rng(2).normal(size=12)
    once = bootstrap_interval(values, range(12))
    ten = bootstrap_interval(np.repeat(values, 10), np.repeat(np.arange(12), 10))
    assert ten == pytest.approx(once)
    by_case = bootstrap_interval(np.repeat(values, 10))
    assert by_case[1] - by_case[0] < 0.5 * (once[1] - once[0])


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    """Patients with a mean of their own, five cases each: by patient about 90 %, by case far too narrow."""
    source = np.random.default_rng(3)
    patients = np.repeat(np.arange(30), 5)
    hits = np.zeros(2)
    for _ in range(200):
        values = np.repeat(source.normal(size=30), 5) + 0.3 * source.normal(size=150)
        for k, names in enumerate((patients, None)):
            low, high = bootstrap_interval(values, names, level=0.9, resamples=200)
            hits[k] += low <= 0 <= high
    assert 0.82 <= hits[0] / 200 <= 0.96
    assert hits[1] / 200 < 0.7


def test_many_patients_are_drawn_in_blocks_of_the_same_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).normal(size=50)
    whole = bootstrap_interval(values, resamples=333)
    monkeypatch.setattr("monai_smia.reports.summary._BLOCK", 1000)
    assert bootstrap_interval(values, resamples=333) == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantiles": (0.5, 95)}, r"quantiles: expected numbers in \[0, 1\]; got 95"),
        ({"level": 95}, r"level: expected a number in \(0, 1\); got 95"),
        ({"resamples": 0}, "resamples: expected a whole number of at least 1; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarize(report(), **arguments)


def test_one_patient_for_each_value_is_expected() -> None:
    with pytest.raises(ValueError, match="patients: expected one for each of the 3 values; got 2"):
        bootstrap_interval([1.0, 2.0, 3.0], ["a", "b"])
