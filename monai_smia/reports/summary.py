# SPDX-License-Identifier: Apache-2.0
"""Clean and adversarial values of every case side by side, and their statistics with intervals by patient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from monai_smia.reports.report import CLEAN, RobustnessReport

PatientOf = Callable[[str], str]

_LABELS = ("attack", "case", "patient", "unit")
_OF_CLEAN = "clean_"
_DROP = "drop_"
_BLOCK = 2**22  # patients drawn at a time, which bounds the memory


def paired_cases(report: RobustnessReport, patient_of: PatientOf | None = None) -> pd.DataFrame:
    """One row for each attack and case, with what the same case had without the attack.

    Args:
        report: what an evaluation gave.
        patient_of: case name to patient; ``None`` takes every case for a patient of its own.

    Returns:
        ``attack``, ``case``, ``patient``; for every metric its adversarial value ``<metric>``, its clean one
        ``clean_<metric>`` and clean minus adversarial ``drop_<metric>``; then the columns of the attack's result, sizes
        in the unit that the column ``unit`` names.

    Raises:
        ValueError: when an attack's rows are of other cases than the clean ones.

    Example:
        >>> cases = ({"attack": "clean", "case": "a", "dice": 0.9}, {"attack": "pgd", "case": "a", "dice": 0.25})
        >>> frame = paired_cases(RobustnessReport({}, cases, {"pgd": "PGD(...)"}, "HU"))
        >>> frame[["clean_dice", "dice", "drop_dice"]].values.tolist()
        [[0.9, 0.25, 0.65]]
    """
    clean = [row for row in report.cases if row["attack"] == CLEAN]
    rows = []
    for attack in report.attacks:
        own = [row for row in report.cases if row["attack"] == attack]
        if [row["case"] for row in own] != [row["case"] for row in clean]:
            raise ValueError(
                f"report: expected the {len(clean)} clean cases, in their order, under {attack!r}; got {len(own)} rows"
            )
        for before, row in zip(clean, own, strict=True):
            case = row["case"]
            paired = {"attack": attack, "case": case, "patient": _patient(case, patient_of), "unit": report.unit}
            metrics = [name for name in before if name not in _LABELS and name in row]
            for name in metrics:
                paired[_OF_CLEAN + name], paired[name] = before[name], row[name]
                paired[_DROP + name] = before[name] - row[name]
            rows.append({**paired, **{name: row[name] for name in row if name not in paired}})
    return pd.DataFrame(rows)


def summarize(
    report: RobustnessReport,
    patient_of: PatientOf | None = None,
    *,
    quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean, spread and a bootstrap interval of the mean, for every run and every column of its cases.

    Args:
        report: what an evaluation gave.
        patient_of: case name to patient, for the interval; ``None`` takes every case for a patient of its own.
        quantiles: which, each in [0, 1].
        level: confidence level of the interval, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of the bootstrap.

    Returns:
        A row for each ``run`` and ``column`` (metrics, their ``drop_<metric>``, losses, success, size, passes):
        ``cases`` with a value and ``undefined`` ones without, ``patients``, ``mean``, ``std`` (of a sample, ``n - 1``;
        NaN for one case), ``q<percent>``, and the interval ``low`` to ``high`` of the mean, see `bootstrap_interval`.
        Undefined values (NaN) are left out of the statistics and counted.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    check_settings(quantiles, level, resamples)
    clean = pd.DataFrame([row for row in report.cases if row["attack"] == CLEAN])
    runs = {CLEAN: clean.assign(patient=[_patient(case, patient_of) for case in clean.get("case", ())])}
    pairs = paired_cases(report, patient_of)
    shown = {_OF_CLEAN + name for name in clean.columns if name not in _LABELS}  # as the rows of the clean run
    for attack in report.attacks:
        runs[attack] = (
            pairs[pairs["attack"] == attack].drop(columns=list(shown), errors="ignore") if len(pairs) else pairs
        )
    rows = []
    for run, frame in runs.items():
        for column in frame.columns:
            if column in _LABELS:
                continue
            values = frame[column].to_numpy(dtype=float)
            defined = ~np.isnan(values)
            patients = frame["patient"].to_numpy()[defined]
            statistics = _statistics(values[defined], quantiles)
            low, high = bootstrap_interval(values[defined], patients, level=level, resamples=resamples, seed=seed)
            counts = {"cases": int(defined.sum()), "undefined": int((~defined).sum()), "patients": len(set(patients))}
            rows.append({"run": run, "column": column, **counts, **statistics, "low": low, "high": high})
    return pd.DataFrame(rows)


def bootstrap_interval(
    values: Any, patients: Any = None, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean by the cluster bootstrap.

    Patients are drawn with replacement, as many as there are, and bring all their cases along; the mean is over the
    cases drawn. With a case for each patient it is the ordinary bootstrap, and for the same seed the numbers are those
    of ``scipy.stats.bootstrap(..., method="percentile")``.

    Args:
        values: one per case, without NaN.
        patients: whose case each is, anything hashable; ``None`` for one case per patient.
        level: confidence level, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of ``numpy.random.default_rng``.

    Returns:
        ``(low, high)``; NaN for fewer than two patients, whose spread cannot be known.

    Example:
        >>> low, high = bootstrap_interval([0.2, 0.4, 0.9, 0.7], ["a", "a", "b", "c"])
        >>> round(low, 4), round(high, 4)
        (0.3, 0.9)

    Reference:
        Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8
        (https://doi.org/10.1017/CBO9780511802843).
    """
    check_settings((), level, resamples)
    values = np.asarray(values, dtype=float)
    if patients is not None and len(patients) != len(values):
        raise ValueError(f"patients: expected one for each of the {len(values)} values; got {len(patients)}")
    codes = np.arange(len(values)) if patients is None else pd.factorize(np.asarray(patients, dtype=object))[0]
    count = int(codes.max()) + 1 if len(codes) else 0
    if count < 2:
        return math.nan, math.nan
    sums, sizes = np.bincount(codes, values, count), np.bincount(codes, minlength=count)
    generator, means = np.random.default_rng(seed), np.empty(resamples)
    block = max(1, _BLOCK // count)
    for start in range(0, resamples, block):
        drawn = generator.integers(0, count, (min(block, resamples - start), count))
        means[start : start + block] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    tail = 100 * (1 - level) / 2
    with np.errstate(invalid="ignore"):  # infinite values have infinite or undefined percentiles
        low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _statistics(values: np.ndarray[Any, Any], quantiles: Sequence[float]) -> dict[str, float]:
    names = [f"q{100 * value:g}" for value in quantiles]
    if len(values) == 0:
        return dict.fromkeys(["mean", "std", *names], math.nan)
    with np.errstate(invalid="ignore"):  # as above
        std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        points = np.quantile(values, list(quantiles)).tolist()
    return {"mean": float(values.mean()), "std": std, **dict(zip(names, points, strict=True))}


def check_settings(quantiles: Sequence[float], level: float, resamples: int) -> None:
    """Refuse settings of `summarize` that are out of range, before anything is computed.

    Raises:
        ValueError: naming the argument.
    """
    for value in quantiles:
        if not 0 <= value <= 1:
            raise ValueError(f"quantiles: expected numbers in [0, 1]; got {value!r}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number in (0, 1); got {level!r}")
    if not isinstance(resamples, int) or resamples < 1:
        raise ValueError(f"resamples: expected a whole number of at least 1; got {resamples!r}")


def _patient(case: str, patient_of: PatientOf | None) -> str:
    return case if patient_of is None else str(patient_of(case))
