# SPDX-License-Identifier: Apache-2.0
"""`Finding`: a reason not to believe a robustness number, and how reports show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that a check objects to.

    Attributes:
        check: name of the check, such as ``"zero_gradient"``.
        seen: what was observed, with its numbers.
        why: why it matters.
        advice: what to do.
        severity: ``"error"`` where the number is wrong, ``"warning"`` where it may be too high, ``"note"`` where
            something could not be examined.

    Example:
        >>> print(Finding("zero_gradient", "Zero at 2 of 4 images.", "An attack stands still.", "Use Square.", "error"))
        Error (zero_gradient): Zero at 2 of 4 images. An attack stands still. Use Square.
    """

    check: str
    seen: str
    why: str
    advice: str
    severity: Literal["error", "warning", "note"]

    def __str__(self) -> str:
        return f"{self.severity.capitalize()} ({self.check}): {self.seen} {self.why} {self.advice}"


def headline(findings: Sequence[Finding] | None) -> str | None:
    """What stands at the top of a report, in one sentence; ``None`` where nothing was found or looked for."""
    errors, warnings, notes = (
        [finding.check for finding in findings or () if finding.severity == severity]
        for severity in ("error", "warning", "note")
    )
    if errors or warnings:
        named = ", ".join(dict.fromkeys(errors + warnings))
        verdict = "may be" if not errors else "must not be taken for robustness: they are"
        return f"The numbers under attack {verdict} too good ({named}); see the findings."
    return f"Not everything could be examined ({', '.join(dict.fromkeys(notes))}); see the findings." if notes else None
