# SPDX-License-Identifier: Apache-2.0
"""`summary_sentences`: what an evaluation found, in one or two sentences computed from its numbers."""

from __future__ import annotations

import math

from monai_smia.reports.budgets import budget_label
from monai_smia.reports.readout import Measure, Readout, worse
from monai_smia.reports.report import CLEAN
from monai_smia.reports.wording import UNDEFINED, counted, listed, shown


def summary_sentences(readout: Readout) -> str:
    """Clean value of the first metric and its worst value at every budget.

    Nothing is said of whether the changes can be seen; the numbers do not show it.

    Example:
        >>> from monai_smia.reports.readout import read_report
        >>> from monai_smia.reports.report import RobustnessReport
        >>> rows = [("clean", "a", 0.95), ("clean", "b", 0.91), ("PGD_5HU", "a", 0.5), ("PGD_5HU", "b", 0.32)]
        >>> cases = tuple({"attack": run, "case": case, "dice": dice} for run, case, dice in rows)
        >>> report = RobustnessReport({"clean": {"dice": 0.93}}, cases, {"PGD_5HU": "PGD()"}, "HU")
        >>> print(summary_sentences(read_report(report)))
        Without an attack the mean Dice over 2 cases is 0.93. Changes of at most 5 HU bring it down to 0.41.
    """
    if not readout.measures:
        return "The report holds no metric."
    measure = readout.measures[0]
    clean = measure.runs[CLEAN].mean if CLEAN in measure.runs else math.nan
    first = f"Without an attack {_subject(readout, measure)} is {shown(clean, 2)}."
    parts = _effects(readout, measure, clean)
    if not parts:
        return first + " No attack was run."
    numbers = {len(group.runs) for group in readout.groups}
    most = max(numbers) if len(numbers) == 1 else f"up to {max(numbers)}"
    many = f", by the worst of {most} attacks" + (" on each case" if measure.per_case else "")
    second = listed(parts) + (many if numbers != {1} else "") + "."
    return f"{first} {second[0].upper()}{second[1:]}"


def _subject(readout: Readout, measure: Measure) -> str:
    """Such as ``the mean Dice over 12 cases``."""
    if not measure.per_case:
        return f"the {measure.label}" + (f" over {counted(len(readout.cases), 'case')}" if readout.cases else "")
    label = measure.label if measure.label.startswith("mean ") else f"mean {measure.label}"
    number = measure.runs[CLEAN].defined if CLEAN in measure.runs else len(readout.cases)
    return f"the {label} over {counted(number, 'case')}"


def _effects(readout: Readout, measure: Measure, clean: float) -> list[str]:
    """A clause for every budget; a verb that was just said is not said again."""
    parts: list[str] = []
    before = ""
    reached: dict[float, float] = {}  # norm to value: what a smaller budget did, a larger one allows too
    for group, worst in zip(readout.groups, measure.worst, strict=True):
        known = group.budget.eps is not None
        size = f"of at most {budget_label(group.budget, readout.report.unit)}"
        cause = f"changes {size}" if known else f"the attack {group.label}"
        value = worst.estimate.mean
        if known and not math.isnan(value):
            least = reached.get(group.budget.norm, math.nan)
            value = least if worse(least, value, measure.lower_is_better) else value
            reached[group.budget.norm] = value
        said = shown(value, 2)
        if said == UNDEFINED:
            verb, way = "make", "it"
        elif said == shown(clean, 2):
            verb, way = "leave", "it at"
        elif worse(value, clean, measure.lower_is_better):
            verb, way = "bring", "it up to" if measure.lower_is_better else "it down to"
        else:
            verb, way = "leave", "it no worse, at"
        if known and way == before and way.split()[-1] in ("to", "at"):
            parts.append(f"those {size} {way.split()[-1]} {said}")
        else:
            parts.append(f"{cause} {verb if known else verb + 's'} {way} {said}")
        before = way if known else ""
    return parts
