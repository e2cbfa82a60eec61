# SPDX-License-Identifier: Apache-2.0
"""Commands on a tiny bundle, each in a fork of this process, with and without a fault; and what became of them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._fault_hook import Fault, plant

TESTS = Path(__file__).parents[1] / "tests"
EPS = "10intensity"
COMMON = ["--dataset_dir", "data", "--seed", "3", "--out", "out"]
COMMANDS = {
    "evaluate": ["evaluate", "bundle", "--attacks", "PGD,FGSM", "--eps", EPS, "--steps", "2", "--views", "1", *COMMON],
    "export": ["export", "bundle", "--attack", "PGD", "--eps", EPS, "--steps", "2", *COMMON],
    "train": ["train", "bundle", "--method", "pgd", "--eps", EPS, "--steps", "1", "--epochs", "3", *COMMON],
}
LIMIT = 600
"""Seconds after which a run counts as hung."""
DIGESTS = ".monai-smia-digests.json"
"""Name of the record of files that were read."""
CODES = (0, 1, 2, 3, 130)
"""Exit codes that mean something."""


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        code: its exit code; negative for a signal.
        text: what it printed.
    """

    code: int
    text: str

    @property
    def traced(self) -> bool:
        return "Traceback (most recent call last)" in self.text

    @property
    def unclear(self) -> bool:
        """Whether a user would not know what happened."""
        return self.traced or self.code not in CODES or (self.code > 1 and "monai-smia: " not in self.text)


def make_place(folder: Path) -> None:
    """A tiny bundle that can be evaluated, exported and trained, three cases, and a file that is nobody's business."""
    sys.path.insert(0, str(TESTS))
    try:
        import bundle_layouts
    finally:
        sys.path.remove(str(TESTS))
    folder.mkdir(parents=True)
    file = bundle_layouts.standard(folder / "bundle") / "configs" / "train.json"
    config = json.loads(file.read_text())
    items = "$[{'image': i, 'label': l} for i, l in zip(@images, @labels)]"
    transform = {"_target_": "Compose", "transforms": "@train#deterministic_transforms"}
    dataset = {"_target_": "Dataset", "data": items, "transform": transform}
    config["train"]["dataset"] = {"_target_": "DataLoader", "dataset": dataset, "batch_size": 2}
    config["train"]["handlers"] = [{**bundle_layouts.SAVER, "save_key_metric": False}]
    config["train"]["trainer"]["train_handlers"] = "@train#handlers"
    config["validate"]["dataloader"] |= {"num_workers": 0, "persistent_workers": False}
    config["validate"]["dataset"]["num_workers"] = 0
    file.write_text(json.dumps(config))
    bundle_layouts.save_data(folder / "data")
    (folder / "precious").mkdir()
    (folder / "precious" / "file.txt").write_text("of nobody's business")


def warm_up(place: Path) -> None:
    """Import here what the commands import, so that each fork finds it there."""
    names = place.parent / "modules.txt"
    child = os.fork()
    if not child:
        try:
            for arguments in COMMANDS.values():
                begin_here(arguments, place)
            names.write_text("\n".join(sys.modules))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    for name in names.read_text().splitlines():
        if name.partition(".")[0] not in ("__main__", "__mp_main__", "scripts"):
            with contextlib.suppress(Exception):  # what only half exists is imported by the fork that needs it
                importlib.import_module(name)


def begin_here(arguments: list[str], place: Path) -> int:
    """A command in this process."""
    os.chdir(place)
    sys.argv = ["monai-smia", *arguments]
    from monai_smia.bundle.commands import main

    return main(arguments)


def begin(arguments: list[str], place: Path, log: Path, fault: Fault | None = None, seen: Path | None = None) -> int:
    """Start a command in a fork of this process; its process id.

    Args:
        arguments: of `monai-smia`.
        place: working folder.
        log: file of what it prints.
        fault: what goes wrong in it.
        seen: file for the changes that it made.
    """
    return start(lambda: begin_here(arguments, place), place, log, fault, seen)


def start(work: Callable[[], int], place: Path, log: Path, fault: Fault | None = None, seen: Path | None = None) -> int:
    """The same for a function that gives an exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(LIMIT)
        os.chdir(place)
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        if fault is not None:
            fault.process = os.getpid()
            plant(fault)
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            if seen is not None and fault is not None:
                seen.write_text("\n".join(fault.seen))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def end(child: int, log: Path) -> Ended:
    """Wait for a run's end."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ended(code, log.read_text(errors="replace") if log.exists() else "")


def run(arguments: list[str], place: Path, fault: Fault | None = None, seen: Path | None = None) -> Ended:
    log = place.parent / "log.txt"
    log.unlink(missing_ok=True)
    return end(begin(arguments, place, log, fault, seen), log)


def fresh(template: Path, place: Path) -> None:
    """The place as it was before anything ran."""
    if place.exists():
        shutil.rmtree(place)
    shutil.copytree(template, place, symlinks=True)


def digests(folder: Path, leaving_out: str | None = None) -> dict[str, str]:
    """Every file below a folder, and what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != leaving_out
    }


def outside(place: Path) -> dict[str, str]:
    """All that no run may touch."""
    return {name: digest for name, digest in digests(place, "out").items() if "__pycache__" not in name}


def result(command: str, out: Path) -> Any:
    """What a user would take from the folder; equal exactly where two results are."""
    if command == "train":
        weights = torch.load(out / "model.pt", map_location="cpu", weights_only=True)
        return {name: value.tolist() for name, value in weights.items()}
    from monai_smia.reports import RobustnessReport

    report = RobustnessReport.load(out / "report" if command == "export" else out)
    found: dict[str, Any] = {"metrics": repr(report.metrics), "cases": repr(report.cases)}
    if command == "export":
        found["copies"] = digests(out / "images")
    return found


def hidden(out: Path) -> set[str]:
    """Files and folders whose name begins with a dot: temporary ones, and records of the run.

    The record of digests does not count: whether it is there depends on how old the files were when they were read.
    """
    return {str(path.relative_to(out)) for path in out.rglob(".*") if path.name != DIGESTS}
