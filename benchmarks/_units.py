# SPDX-License-Identifier: Apache-2.0
"""Resumable measurements: each unit is one process, its report is kept, and a changed file or setting does it again."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from tqdm import tqdm

from benchmarks._measure import hardware
from monai_smia.reports.files import write_whole

ROOT = Path(__file__).parents[1]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
REPORT, MARK, LOG, ARGUMENTS = "robustness.json", "done.json", "log.txt", "arguments.json"
TAIL = 25  # lines of a log that are shown

Command = Callable[[Path], list[str]]


@dataclass(frozen=True)
class Unit:
    """One run of a bundle.

    Args:
        name: for the progress bar and messages.
        folder: of its report, log and mark; emptied before the unit is run.
        files: what the result depends on, each under a name that does not depend on where it lies.
        settings: overrides of the configuration that the result depends on; JSON.
        places: overrides that only say where things are.
    """

    name: str
    folder: Path
    files: dict[str, Path]
    settings: dict[str, Any]
    places: dict[str, Any]


class UnitFailedError(RuntimeError):
    """A unit's process failed, or it left no result that can be trusted."""


def sha256(files: Iterable[Path]) -> str:
    """Digest of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def package_hash() -> str:
    """Digest of the sources of `monai_smia`."""
    return sha256(sorted((ROOT / "monai_smia").rglob("*.py")))


def inputs(unit: Unit) -> dict[str, Any]:
    """What the result depends on: the SHA-256 of every file, and the settings.

    Raises:
        FileNotFoundError: one of the files is missing.
    """
    return {"files": {name: sha256([path]) for name, path in unit.files.items()}, "settings": unit.settings}


def finished(unit: Unit) -> dict[str, Any] | None:
    """The mark of a unit whose report is whole and was made from the files and settings of now; else ``None``."""
    report, mark = unit.folder / REPORT, unit.folder / MARK
    if not (report.is_file() and mark.is_file()):
        return None
    content: dict[str, Any] = json.loads(mark.read_text(encoding="utf-8"))
    fresh = content["inputs"] == inputs(unit) and content["report"] == sha256([report])
    return content if fresh else None


def bundle_command(arguments: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks._bundle_run", str(arguments)]


def environment() -> list[str]:
    """Hardware and versions, as Markdown items."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        hardware()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    kept = [line for line in text.getvalue().splitlines() if not line.startswith("- threads")]  # of this process
    return [*kept, f"- device: {device}; one thread for each process"]


class _Job:
    """A unit that runs."""

    def __init__(self, unit: Unit, command: Command) -> None:
        self.unit, self.inputs, self.package = unit, inputs(unit), package_hash()
        shutil.rmtree(unit.folder, ignore_errors=True)
        unit.folder.mkdir(parents=True)
        arguments = unit.folder / ARGUMENTS
        arguments.write_text(json.dumps({**unit.places, **unit.settings}, indent=2) + "\n", encoding="utf-8")
        self._log: IO[bytes] = open(unit.folder / LOG, "wb")  # noqa: SIM115
        self._begin = time.perf_counter()
        variables = {**os.environ, **dict.fromkeys(THREADS, "1")}
        self.process = subprocess.Popen(
            command(arguments), cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    def complete(self) -> None:
        """Mark the unit as done.

        Raises:
            UnitFailedError: the process failed, left no report, or what it read changed meanwhile.
        """
        seconds = time.perf_counter() - self._begin
        self._log.close()
        unit, report = self.unit, self.unit.folder / REPORT
        if self.process.returncode != 0:
            self._fail(f"exit code {self.process.returncode}")
        if not report.is_file():
            self._fail(f"it ended without {REPORT}")
        if inputs(unit) != self.inputs:
            self._fail("its weights, configurations or data changed while it ran; run it again")
        mark = {
            "inputs": self.inputs,
            "report": sha256([report]),
            "package": self.package,
            "seconds": seconds,
            "environment": environment(),
        }
        write_whole(unit.folder / MARK, json.dumps(mark, indent=2) + "\n", overwrite=True)

    def stop(self) -> None:
        """End the process: asked at first, killed after ten seconds."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def _fail(self, why: str) -> None:
        log = self.unit.folder / LOG
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()  # a bar's turns are lines too
        raise UnitFailedError("\n".join([*lines[-TAIL:], f"{self.unit.name} failed: {why}; its log: {log}"]))


def run_units(units: Sequence[Unit], jobs: int, command: Command = bundle_command) -> None:
    """Run what is not finished, several units at a time; an exception stops the others and leaves finished ones.

    Args:
        units: what to measure, in this order.
        jobs: how many run at a time, each with one thread.
        command: the process for a file of arguments, run in the repository's root.

    Raises:
        UnitFailedError: naming the unit, with the end of its log.
        FileNotFoundError: a file that a unit depends on is missing; nothing is run then.
    """
    waiting = [unit for unit in units if finished(unit) is None]
    for unit in waiting:
        inputs(unit)
    running: list[_Job] = []
    with tqdm(total=len(units), initial=len(units) - len(waiting), unit="unit", file=sys.stderr) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_Job(waiting.pop(0), command))
                    bar.set_postfix_str(", ".join(job.unit.name for job in running))
                time.sleep(0.2)
                ended = [job for job in running if job.process.poll() is not None]
                for job in sorted(ended, key=lambda job: job.process.returncode != 0):  # failures last
                    running.remove(job)
                    job.complete()
                    bar.set_postfix_str(", ".join(other.unit.name for other in running), refresh=False)
                    bar.update()
                if sys.stderr.isatty():
                    bar.refresh()  # the time that has passed
        finally:
            for job in running:
                job.stop()
