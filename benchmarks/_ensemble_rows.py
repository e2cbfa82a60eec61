# SPDX-License-Identifier: Apache-2.0
"""Rows of the ensemble table: is an ensemble at least as strong as each member on each case, and what does it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ROUNDING = 1e-6  # of a loss, relative
HEADER = ("bundle", "ensemble", "cases", "succeeds", "its members alone", "weaker on", "passes", "x PGD's")


@dataclass(frozen=True)
class Outcome:
    """What an attack did to one case."""

    success: bool
    loss: float
    forward: int
    backward: int

    @property
    def passes(self) -> int:
        return self.forward + self.backward

    @classmethod
    def of(cls, row: dict[str, Any]) -> Outcome:
        """From a case of a report."""
        return cls(bool(row["success"]), float(row["loss"]), int(row["forward_passes"]), int(row["backward_passes"]))


def weaker(ensemble: Outcome, member: Outcome) -> bool:
    """Whether a member did more to a case than the ensemble that holds it.

    It succeeded and the ensemble did not; or neither did, and its loss is the higher one by more than rounding. Once
    the ensemble has succeeded on a case the other members are not made, so losses are not compared there.

    Example:
        >>> weaker(Outcome(False, 1.0, 9, 9), Outcome(True, 0.5, 3, 3))
        True
        >>> weaker(Outcome(True, 0.5, 9, 9), Outcome(True, 1.0, 3, 3))
        False
    """
    if ensemble.success:
        return False
    return member.success or ensemble.loss < member.loss - ROUNDING * abs(member.loss)


def by_attack(cases: Sequence[dict[str, Any]]) -> dict[str, list[Outcome]]:
    """Attack to its outcome on each case, in the report's order; the clean run is left out."""
    found: dict[str, list[Outcome]] = {}
    for row in cases:
        if row["attack"] != "clean":
            found.setdefault(row["attack"], []).append(Outcome.of(row))
    return found


def ensemble_row(
    bundle: str, name: str, members: Sequence[str], outcomes: dict[str, list[Outcome]], baseline: str = "PGD"
) -> tuple[str, ...]:
    """One line: successes over cases, violations over pairs of case and member, mean passes and their ratio.

    Raises:
        ValueError: when an attack has another number of cases.
    """
    own, count = outcomes[name], len(outcomes[name])
    for other in (*members, baseline):
        if len(outcomes[other]) != count:
            raise ValueError(f"{bundle}: expected {count} cases of {other}; got {len(outcomes[other])}")
    pairs = [(mine, theirs) for member in members for mine, theirs in zip(own, outcomes[member], strict=True)]
    alone = ", ".join(f"{member} {sum(o.success for o in outcomes[member])}" for member in members)
    ratio = sum(o.passes for o in own) / sum(o.passes for o in outcomes[baseline])
    return (
        bundle,
        name,
        str(count),
        str(sum(o.success for o in own)),
        alone,
        f"{sum(weaker(*pair) for pair in pairs)} of {len(pairs)}",
        f"{sum(o.forward for o in own) / count:.1f} + {sum(o.backward for o in own) / count:.1f}",
        f"{ratio:.1f}",
    )
