# SPDX-License-Identifier: Apache-2.0
"""Numbers of the SMIA study: damage, paired differences, and their bootstrap intervals over cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks._study_attacks import CLEAN
from benchmarks._study_records import Record, Records, by_attack
from benchmarks._study_runs import change_file
from benchmarks._study_views import VIEWS
from monai_smia.reports import bootstrap_interval

RESAMPLES = 2000
Values = dict[int, float]
"""Case to value."""


@dataclass(frozen=True)
class Measured:
    """The records of one bundle.

    Attributes:
        name: of the bundle.
        rows: model to attack to case to record.
        folder: of the records.
    """

    name: str
    rows: Mapping[str, Mapping[str, Mapping[int, Record]]]
    folder: Path

    def has(self, attack: str, model: str = "first") -> bool:
        """Whether the attack was measured on that network."""
        return attack in self.rows.get(model, {})

    def damage(self, attack: str, model: str = "first", of: str = "score") -> Values:
        """What the attack takes off the score, case by case; `of` names the score: also after a later change."""
        clean = self.rows[model][CLEAN.name]
        found = self.rows[model].get(attack, {})
        return {case: clean[case][of] - row[of] for case, row in found.items() if case in clean}

    def column(self, attack: str, key: str, model: str = "first") -> Values:
        """Any number of the records."""
        return {case: row[key] for case, row in self.rows[model].get(attack, {}).items() if key in row}

    def kept_share(self, attack: str) -> dict[str, float]:
        """Later change to the damage after it over the damage before it; NaN where there was next to none."""
        before = sum(self.damage(attack).values())
        after = {view: sum(self.damage(attack, of=view).values()) for view in VIEWS}
        return {view: value / before if before > 0.02 else math.nan for view, value in after.items()}

    def over_images(self, attack: str) -> float:
        """Variance over the changes of different images of one shape, in eps squared; NaN for fewer than two."""
        files = [self.folder / "changes-first" / change_file(attack, case) for case in self.rows["first"][CLEAN.name]]
        changes = [np.load(file).astype(np.float64) for file in files if file.is_file()]
        if len(changes) < 2 or len({change.shape for change in changes}) > 1:
            return math.nan
        return float(np.var(np.stack(changes), axis=0, ddof=1).mean())


def read(out: Path, split: str, name: str) -> Measured:
    """The records of a bundle."""
    folder = out / split / name
    rows = Records(folder).read().values()
    return Measured(name, {model: by_attack(rows, model) for model in ("first", "second")}, folder)


def paired(one: Values, other: Values) -> Values:
    """Case by case difference, of the cases that both have."""
    return {case: one[case] - other[case] for case in one.keys() & other.keys()}


def mean(values: Values) -> float:
    """Mean over cases; NaN for none."""
    return float(np.mean(list(values.values()))) if values else math.nan


def interval(values: Values) -> tuple[float, float]:
    """95 % bootstrap interval of the mean; NaN for fewer than two cases."""
    return bootstrap_interval([values[case] for case in sorted(values)])


def pooled(groups: Sequence[Values], seed: int = 0) -> tuple[float, float, float]:
    """Mean of the bundles' means, every bundle counting the same, with its 95 % interval.

    Cases are drawn with replacement inside each bundle; bundles are not drawn, for they are no sample of anything.

    Returns:
        ``(mean, low, high)``; NaN without groups.
    """
    rows = [np.array([values[case] for case in sorted(values)]) for values in groups if values]
    if not rows:
        return math.nan, math.nan, math.nan
    rng = np.random.default_rng(seed)
    draws = np.mean([row[rng.integers(0, len(row), (RESAMPLES, len(row)))].mean(1) for row in rows], axis=0)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(np.mean([row.mean() for row in rows])), float(low), float(high)
