# SPDX-License-Identifier: Apache-2.0
"""`Progress`: what an evaluation case by case has done, and the file that it goes on from."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from monai_smia.engines.batches import Failure
from monai_smia.engines.metric_state import from_file, to_file
from monai_smia.reports.files import write_whole
from monai_smia.reports.finding import Finding


@dataclass
class Progress:
    """What is done so far; all of it goes to the file of a run that may be resumed.

    Attributes:
        done: numbers of the finished batches.
        names: files of the finished cases.
        rows: attack to its rows, one for each of `names`.
        metrics, details: run to what the evaluator's metrics say.
        states: run to what the evaluator's metrics accumulated.
        failures: cases that failed.
        certificates: rows of what was certified, by the cases' files.
        seconds: run to the time spent in it.
        findings: what the doctor found on the first batch; ``None`` where it was not asked yet.
    """

    done: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    certificates: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] | None = None


def write_progress(file: Path, progress: Progress, settings: Mapping[str, str]) -> None:
    """Replace the file, whole or not at all."""
    values = {**vars(progress), "failures": [asdict(failure) for failure in progress.failures]}
    values["findings"] = None if progress.findings is None else [asdict(finding) for finding in progress.findings]
    buffer = io.BytesIO()
    torch.save({"settings": dict(settings), "progress": to_file(values)}, buffer)
    write_whole(file, buffer.getvalue(), overwrite=True)


def read_progress(file: Path, settings: Mapping[str, str], resume: bool) -> Progress:
    """What an earlier run did; nothing where there was none.

    Raises:
        FileExistsError: when there is one and `resume` is false.
        ValueError: when it was made of other settings, or the file cannot be read.
    """
    if not file.exists():
        return Progress()
    if not resume:
        raise FileExistsError(
            f"folder: {file.parent} holds an earlier run; expected an empty folder, or resume=True to go on with it"
        )
    try:
        stored: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"folder: {file} cannot be read ({type(error).__name__}); expected the file of a run"
        ) from error
    old = stored["settings"]
    for name in dict.fromkeys((*settings, *old)):
        if settings.get(name) != old.get(name):
            raise ValueError(
                f"resume: the earlier run had {name} = {old.get(name)}; expected the same, got {settings.get(name)}"
            )
    values = from_file(stored["progress"])
    found = values.get("findings")
    values["findings"] = None if found is None else [Finding(**finding) for finding in found]
    return Progress(**{**values, "failures": [Failure(**failure) for failure in values["failures"]]})
