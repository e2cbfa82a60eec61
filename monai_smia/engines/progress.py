# SPDX-License-Identifier: Apache-2.0
"""`Progress`: what an evaluation case by case has done, batch by batch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from monai_smia.engines.batches import Failure
from monai_smia.engines.metric_state import to_file
from monai_smia.engines.tally import Entry
from monai_smia.reports.finding import Finding

HOPELESS = 3
"""So many first cases that fail alike end a run."""


@dataclass
class Part:
    """A batch, or one of its cases where it failed as a whole.

    Attributes:
        names: files of the cases.
        rows: attack to its rows, one for each of `names`.
        states: run to what each of the evaluator's metrics counted.
        certificates: rows of what was certified, by the cases' labels.
        labels: the files, numbered where several cases are of one; empty where none are.
    """

    names: list[str] = field(default_factory=list)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    states: dict[str, list[Entry]] = field(default_factory=dict)
    certificates: list[dict[str, Any]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


@dataclass
class Record:
    """What became of a batch.

    Attributes:
        number: of the batch among all of the evaluation, from 0.
        parts: what was evaluated.
        failures: cases that failed.
        seconds: run to the time spent in it.
        findings: what the doctor found on this batch; ``None`` where it was not asked.
        contents: number of a case in the dataset to a digest of its files, as they were.
    """

    number: int
    parts: list[Part] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] | None = None
    contents: dict[int, str] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return dict(to_file(asdict(self)))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Record:
        """The inverse of `values`."""
        found = values["findings"]
        return cls(
            values["number"],
            [Part(**part) for part in values["parts"]],
            [Failure(**failure) for failure in values["failures"]],
            dict(values["seconds"]),
            None if found is None else [Finding(**finding) for finding in found],
            dict(values.get("contents", {})),
        )


class Progress:
    """What is done so far, in the order of the batches whatever order they were done in."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}

    def add(self, record: Record) -> None:
        """One more batch.

        Raises:
            ValueError: when it is there already.
        """
        if record.number in self.records:
            raise ValueError(f"folder: expected every batch once; got batch {record.number} twice")
        self.records[record.number] = record

    @property
    def done(self) -> list[int]:
        """Numbers of the finished batches."""
        return sorted(self.records)

    @property
    def parts(self) -> list[Part]:
        """All parts."""
        return [part for number in self.done for part in self.records[number].parts]

    @property
    def names(self) -> list[str]:
        """Files of the finished cases."""
        return [name for part in self.parts for name in part.names]

    @property
    def labels(self) -> list[str]:
        """The names, numbered where several cases are of one file."""
        return [label for part in self.parts for label in part.labels or part.names]

    @property
    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Attack to its rows, one for each of `names`."""
        rows: dict[str, list[dict[str, Any]]] = {}
        for part in self.parts:
            for run, own in part.rows.items():
                rows.setdefault(run, []).extend(own)
        return rows

    @property
    def certificates(self) -> list[dict[str, Any]]:
        """Rows of what was certified."""
        return [row for part in self.parts for row in part.certificates]

    @property
    def failures(self) -> list[Failure]:
        """Cases that failed."""
        return [failure for number in self.done for failure in self.records[number].failures]

    @property
    def seconds(self) -> dict[str, float]:
        """Run to the time spent in it."""
        seconds: dict[str, float] = {}
        for number in self.done:
            for run, spent in self.records[number].seconds.items():
                seconds[run] = seconds.get(run, 0.0) + spent
        return seconds

    @property
    def findings(self) -> list[Finding] | None:
        """What the doctor found on the first batch that was evaluated; ``None`` where it was not asked."""
        found = (self.records[number].findings for number in self.done)
        return next((findings for findings in found if findings is not None), None)

    def all_alike(self, least: int = HOPELESS) -> str | None:
        """In words, that so many cases failed, in other stages than loading, with one error up to its numbers."""
        failed = [failure for failure in self.failures if failure.stage != "loading"]
        alike = {(failure.stage, re.sub(r"[\d.]+", "", failure.error)) for failure in failed}
        if len(failed) < least or len(alike) != 1:
            return None
        return f"{failed[0].stage}: the first {len(failed)} cases all failed; the first with {failed[0].error}"

    def states(self, run: str) -> list[list[Entry]]:
        """What the metrics counted in a run, part by part."""
        return [part.states[run] for part in self.parts if run in part.states]
