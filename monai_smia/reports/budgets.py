# SPDX-License-Identifier: Apache-2.0
"""`budget_of`: which attack a run was and how far it might change the image, in the report's unit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from monai_smia.reports.report import CLEAN, RobustnessReport

_NUMBER = r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_SIZES = {math.inf: "largest_change", 2.0: "l2_change", 1.0: "l1_change"}
NETWORK_UNITS = "network units"


class Budget(NamedTuple):
    """What a run was allowed.

    Attributes:
        family: the attack, the same for all its budgets.
        eps: radius in the report's unit; ``None`` where it is not known.
        norm: of the radius: 1, 2 or infinity.
        measured: whether `eps` is the largest change that was seen, because the report does not give the radius.
    """

    family: str
    eps: float | None
    norm: float = math.inf
    measured: bool = False


def runs_of(report: RobustnessReport) -> list[str]:
    """The attacked runs, in the report's order."""
    return [run for run in dict.fromkeys([*report.metrics, *report.attacks]) if run != CLEAN]


def budget_of(report: RobustnessReport, run: str) -> Budget:
    """The attack of a run and its budget in the report's unit.

    The radius is, in this order: the number of a name ``<attack>_<eps><unit>``; ``eps`` of the attack's ``repr``, which
    is in network units, where the report's unit is that too or where other runs' names show how many of its units a
    network unit is; the largest change measured in the norm of the attack, to four digits.

    Args:
        report: what an evaluation gave.
        run: one of its attacks.

    Raises:
        ValueError: for a run that is not in the report.

    Example:
        >>> report = RobustnessReport({}, (), {"PGD_7HU": "PGD(Loss(), eps=0.005)", "b": "BIM(L(), eps=0.01)"}, "HU")
        >>> budget_of(report, "PGD_7HU")[:2], budget_of(report, "b")[:2]
        (('PGD', 7.0), ('BIM', 14.0))
    """
    if run not in runs_of(report):
        raise ValueError(f"run: expected one of {runs_of(report)}; got {run!r}")
    return budgets_of(report)[run]


def budgets_of(report: RobustnessReport) -> dict[str, Budget]:
    """`budget_of` every run. Runs of one attack at one budget are told apart by their names."""
    size = _unit_size(report)
    found = {run: _budget(report, run, size) for run in runs_of(report)}
    chosen = {}
    for family in {budget.family for budget in found.values()}:
        own = {run: budget for run, budget in found.items() if budget.family == family}
        for rename in (lambda run: family, lambda run: re.sub(rf"[_-]{_NUMBER}$", "", run), lambda run: run):  # noqa: B023
            named = {run: budget._replace(family=rename(run)) for run, budget in own.items()}
            if len(set(named.values())) == len(named):
                break
        chosen.update(named)
    return {run: chosen[run] for run in found}


def budget_label(budget: Budget, unit: str) -> str:
    """In words, such as ``"5 HU"`` or ``"0.5 network units (L2)"``."""
    if budget.eps is None:
        return "unknown"
    remarks = [] if math.isinf(budget.norm) else [f"L{budget.norm:g}"]
    remarks += ["as measured"] if budget.measured else []
    return f"{budget.eps:g} {unit}" + (f" ({', '.join(remarks)})" if remarks else "")


def _budget(report: RobustnessReport, run: str, size: float | None) -> Budget:
    kind, arguments = _parsed(report.attacks.get(run, ""))
    norm = _as_float(arguments.get("norm")) or math.inf
    named = _named(report, run)
    if named is not None:
        return Budget(*named, norm)
    eps = _as_float(arguments.get("eps"))
    family = kind or run
    if eps is not None and size is not None:
        return Budget(family, float(f"{eps * size:.6g}"), norm)
    column = _SIZES.get(norm, "")
    sizes = [row.get(column) for row in report.cases if row["attack"] == run]
    finite = [float(value) for value in sizes if value is not None and math.isfinite(value)]
    return Budget(family, float(f"{max(finite):.4g}"), norm, True) if finite else Budget(family, None, norm)


def _named(report: RobustnessReport, run: str) -> tuple[str, float] | None:
    """Family and radius from ``<attack>_<eps><unit>``; a bare number at the end may be a counter instead."""
    if report.unit == NETWORK_UNITS:
        return None
    found = re.fullmatch(rf"(.+?)[_-]({_NUMBER}) ?{re.escape(report.unit)}", run)
    return (found[1], float(found[2])) if found else None


def _unit_size(report: RobustnessReport) -> float | None:
    """Units of the report per network unit, where the runs that show both agree."""
    if report.unit == NETWORK_UNITS:
        return 1.0
    ratios = []
    for run, text in report.attacks.items():
        named, eps = _named(report, run), _as_float(_parsed(text)[1].get("eps"))
        if named is not None and eps:
            ratios.append(named[1] / eps)
    return ratios[0] if ratios and max(ratios) - min(ratios) <= 1e-6 * max(ratios) else None


def _parsed(text: str) -> tuple[str, dict[str, str]]:
    """Class and keyword arguments of a ``repr``, those inside other arguments left out."""
    found = re.match(r"(\w+)\((.*)\)$", text, re.DOTALL)
    if not found:
        return "", {}
    pairs = (part.partition("=") for part in _split(found[2]))
    named = {name.strip(): value.strip() for name, equals, value in pairs if equals}
    return found[1], {name: value for name, value in named.items() if name.isidentifier()}


def _split(text: str) -> Iterator[str]:
    """At the commas outside all brackets."""
    depth, start = 0, 0
    for i, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth == 0:
            yield text[start:i]
            start = i + 1
    yield text[start:]


def _as_float(text: str | None) -> float | None:
    try:
        return None if text is None else float(text.removeprefix("math.").strip("'\""))
    except ValueError:
        return None
