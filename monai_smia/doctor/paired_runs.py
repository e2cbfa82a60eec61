# SPDX-License-Identifier: Apache-2.0
"""`PairedRuns`: the runs of a report, their rows matched by case."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from monai_smia.reports.budgets import Budget, budgets_of
from monai_smia.reports.report import RobustnessReport

ITERATED = ("BIM", "PGD", "APGD", "MIFGSM", "NIFGSM", "SegPGD", "CosPGD")
"""Attacks that do nothing but raise the loss by gradients; others (smooth, made to transfer, aimed at one region) may
be weaker than one step for good reasons."""

Setting = tuple[float | None, float, bool]


class Rows(NamedTuple):
    """One run, or the best of several, per case.

    Attributes:
        gain: ``(N,)``, loss under attack less the clean one, in the attack's direction; NaN where either is unknown.
        success, clean_success: ``(N,)`` bool.
        clean_loss: ``(N,)``.
    """

    gain: torch.Tensor
    success: torch.Tensor
    clean_success: torch.Tensor
    clean_loss: torch.Tensor

    @property
    def floor(self) -> torch.Tensor:
        """Gains under this are noise, ``(N,)``: a thousandth of the clean loss."""
        return 1e-3 * self.clean_loss.abs() + 1e-6


class PairedRuns:
    """Reads a report.

    Args:
        report: what an evaluation gave.
    """

    def __init__(self, report: RobustnessReport) -> None:
        self.report = report
        self.budgets: dict[str, Budget] = budgets_of(report)
        found: dict[str, dict[str, dict[str, Any]]] = {run: {} for run in self.budgets}
        for row in report.cases:
            if row["attack"] in found:
                found[row["attack"]][row["case"]] = row
        self.rows = {run: rows for run, rows in found.items() if rows}
        self.cases = list(dict.fromkeys(case for rows in self.rows.values() for case in rows))

    def kind(self, run: str) -> str:
        """Class of the attack, by its ``repr``."""
        return self.report.attacks.get(run, "").partition("(")[0]

    def targeted(self, run: str) -> bool:
        """Whether the attack lowers the loss of a target."""
        return "targeted=True" in self.report.attacks.get(run, "")

    def eps(self, run: str) -> float:
        """Radius, NaN where it is not known."""
        eps = self.budgets[run].eps
        return math.nan if eps is None else eps

    def setting(self, run: str) -> Setting:
        """Radius, norm and whether targeted: runs that differ in these are not compared."""
        return self.budgets[run].eps, self.budgets[run].norm, self.targeted(run)

    def chosen(self, kinds: Sequence[str], setting: Setting | None = None) -> list[str]:
        """The runs of these attacks with a known budget, in this setting or in any."""
        known = [run for run in self.rows if self.kind(run) in kinds and self.budgets[run].eps is not None]
        return [run for run in known if setting is None or self.setting(run) == setting]

    def steps(self, run: str) -> int | None:
        """The number of steps that the ``repr`` shows."""
        found = re.search(r"(?<!\w)steps=(\d+)", self.report.attacks.get(run, ""))
        return int(found[1]) if found else None

    def read(self, run: str) -> Rows:
        """The rows of a run in the order of `cases`."""
        rows = [self.rows[run].get(case, {}) for case in self.cases]
        sign = -1.0 if self.targeted(run) else 1.0
        clean, loss = _column(rows, "clean_loss"), _column(rows, "loss")
        return Rows(sign * (loss - clean), _column(rows, "success") == 1, _column(rows, "clean_success") == 1, clean)

    def best(self, runs: Sequence[str]) -> Rows:
        """Per case the largest gain of several runs; success where any had it."""
        rows = [self.read(run) for run in runs]
        gain = torch.stack([row.gain for row in rows])
        known = ~gain.isnan().all(0)
        gain = torch.where(known, gain.nan_to_num(nan=-math.inf).amax(0), math.nan)
        return rows[0]._replace(gain=gain, success=torch.stack([row.success for row in rows]).any(0))

    def values(self, run: str, name: str) -> torch.Tensor:
        """A column of a run, NaN where there is no number."""
        return _column(list(self.rows[run].values()), name)


def outdone(white: Rows, other: Rows, factor: float) -> torch.Tensor:
    """Where `white` failed and `other` gained more than `factor` times as much, ``(N,)`` bool."""
    return ~white.success & (other.gain > white.floor) & (other.gain > factor * white.gain)


def _column(rows: Sequence[dict[str, Any]], name: str) -> torch.Tensor:
    values = [row.get(name) for row in rows]
    return torch.tensor([math.nan if value is None else float(value) for value in values], dtype=torch.float64)
