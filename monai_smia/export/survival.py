# SPDX-License-Identifier: Apache-2.0
"""`Survival`: what is left of an attack's damage once it has been through a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from monai_smia.reports import CLEAN, RobustnessReport

LOSS = "loss"


@dataclass(frozen=True)
class Survival:
    r"""A metric clean, attacked in memory, and read again from the files.

    .. math:: \text{rate} = \frac{m_{\text{disk}} - m_{\text{clean}}}{m_{\text{memory}} - m_{\text{clean}}}

    Attributes:
        metric: its name; ``"loss"`` is the mean over cases of the attack's loss.
        clean, memory, disk: its values.
    """

    metric: str
    clean: float
    memory: float
    disk: float

    @property
    def rate(self) -> float:
        """Share of the damage that survived: 1 for all of it; NaN where the attack did none."""
        damage = self.memory - self.clean
        return (self.disk - self.clean) / damage if damage else math.nan


def survival_of(report: RobustnessReport, memory: str, disk: str) -> tuple[Survival, ...]:
    """The survival of the loss and of every metric with one number.

    Args:
        report: with these two runs beside the clean one.
        memory, disk: names of the runs.
    """
    rows = {run: [row for row in report.cases if row["attack"] == run] for run in (memory, disk)}
    found = []
    if rows[memory]:
        found.append(
            Survival(
                LOSS,
                _mean([row["clean_loss"] for row in rows[memory]]),
                _mean([row["loss"] for row in rows[memory]]),
                _mean([row["loss"] for row in rows[disk]]),
            )
        )
    for name, clean in report.metrics[CLEAN].items():
        values = [report.metrics[run].get(name) for run in (memory, disk)]
        if all(isinstance(value, (int, float)) for value in (clean, *values)):
            found.append(Survival(name, float(clean), *(float(value) for value in values)))  # type: ignore[arg-type]
    return tuple(found)


def survival_markdown(rows: Sequence[Survival]) -> str:
    """A table."""
    lines = ["| | clean | in memory | on disk | survival |", "|:--|--:|--:|--:|--:|"]
    for row in rows:
        lines.append(f"| {row.metric} | {row.clean:.4f} | {row.memory:.4f} | {row.disk:.4f} | {row.rate:.3f} |")
    return "\n".join(lines)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
