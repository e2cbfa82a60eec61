# SPDX-License-Identifier: Apache-2.0
"""The paper's claims put to the test: SMIA in every reading beside its rivals, at equal eps, steps and passes."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._lung_ct import PREPARED
from benchmarks._measure import data_folder
from benchmarks._second_networks import SECOND
from benchmarks._study_tables import BEGIN, END, render
from benchmarks._study_victims import SUBJECTS, second_weights
from benchmarks._units import ROOT, THREADS
from benchmarks.robustness_table import replace_region
from monai_smia.reports.files import write_whole

OUT = Path("runs") / "smia_study"
CASES = 10


def training(name: str, out: Path) -> dict[str, Any]:
    """Arguments of MONAI's bundle command that train the second network of a bundle as its own is trained."""
    root, folder = ROOT / "bundles" / name, second_weights(out, name).parent.resolve()
    lung = name == "lung_ct_segmentation"
    arguments: dict[str, Any] = {
        "config_file": [str(root / "configs" / "train.json")],
        "bundle_root": str(root),
        "network_def": SECOND[name].network_def,
        "epochs": SECOND[name].epochs,
        "ckpt_dir": str(folder),
        "output_dir": str(folder / "eval"),
        "dataset_dir": str((ROOT / PREPARED if lung else data_folder() / str(SUBJECTS[name].data)).resolve()),
    }
    return arguments | ({"train_cases": ["lung2"]} if lung else {})


def prepare_lungs() -> list[str]:
    """The command that derives the lung masks, in the layout of the lung bundle."""
    script = ROOT / "bundles" / "lung_ct_segmentation" / "scripts" / "prepare_data.py"
    source, output = (data_folder() / "lung_ct").resolve(), ROOT / PREPARED
    names = ["--source", str(source), "--cases", "lung1", "lung2", "--output", str(output)]
    return [sys.executable, str(script), *names]


def run_all(commands: Sequence[tuple[list[str], Path | None]], jobs: int) -> None:
    """Run commands in the repository's root, several at a time; the first that fails ends the others.

    Args:
        commands: each with the file of its log; None for this terminal.
        jobs: so many at a time, of one thread each.

    Raises:
        SystemExit: naming the command that failed, and its log.
    """
    waiting, running = list(commands), []
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                command, log = waiting.pop(0)
                if log is None:
                    process = subprocess.Popen(command, cwd=ROOT, env=environment)
                else:
                    log.parent.mkdir(parents=True, exist_ok=True)
                    with open(log, "ab") as file:
                        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
                running.append((process, command, log))
            time.sleep(0.2)
            for job in [job for job in running if job[0].poll() is not None]:
                running.remove(job)
                if job[0].returncode != 0:
                    sys.exit(f"{shlex.join(job[1])} ended with {job[0].returncode}; its log: {job[2] or 'above'}")
    finally:
        for process, *_ in running:
            process.terminate()
            process.wait()


def train_second_networks(names: Sequence[str], out: Path, jobs: int) -> None:
    """Train what is not trained yet; a training that was cut off begins again."""
    commands = []
    for name in names:
        if not second_weights(out, name).is_file():
            folder = second_weights(out, name).parent
            folder.mkdir(parents=True, exist_ok=True)
            arguments = folder / "arguments.json"
            write_whole(arguments, json.dumps(training(name, out), indent=2) + "\n", overwrite=True)
            print(f"training the second network of {name}; log: {folder / 'log.txt'}", file=sys.stderr)
            if name == "lung_ct_segmentation" and not (ROOT / PREPARED / "lung2_lungs.nii.gz").is_file():
                run_all([(prepare_lungs(), folder / "log.txt")], 1)
            command = [sys.executable, "-m", "benchmarks._bundle_run", str(arguments.resolve())]
            commands.append((command, folder / "log.txt"))
    run_all(commands, jobs)


def measure(names: Sequence[str], split: str, cases: int, out: Path, jobs: int) -> None:
    """Measure what has no record yet, in `jobs` processes that share the work."""
    commands: list[tuple[list[str], Path | None]] = []
    for shard in range(jobs):
        job = {
            "bundles": list(names),
            "split": split,
            "cases": cases,
            "shard": shard,
            "shards": jobs,
            "out": str(out.resolve()),
        }
        file = out / split / f"job-{shard}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(job, indent=2) + "\n", overwrite=True)
        commands.append(([sys.executable, "-m", "benchmarks._study_worker", str(file.resolve())], None))
    run_all(commands, jobs)


def parse(options: list[str] | None) -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m benchmarks smia_study", description=__doc__)
    parser.add_argument("--bundles", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="default: all")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="default: %(default)s")
    parser.add_argument("--cases", type=int, default=CASES, help="of each bundle, drawn once (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=cores, help="processes of one thread (default: cores, %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="records; nothing is measured twice (%(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the file's two markers")
    parser.add_argument("--only-tables", action="store_true", help="of what is measured; measure nothing more")
    return parser.parse_args(options)


def main(options: list[str] | None = None) -> None:
    """Train the second networks, measure what is not measured yet, print the tables."""
    arguments = parse(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not arguments.only_tables:
        train_second_networks(arguments.bundles, arguments.out, arguments.jobs)
        measure(arguments.bundles, arguments.split, arguments.cases, arguments.out, arguments.jobs)
    shown = ["--split", arguments.split]
    shown += ["--cases", str(arguments.cases)] if arguments.cases != CASES else []
    shown += ["--bundles", *arguments.bundles] if len(arguments.bundles) < len(SUBJECTS) else []
    command = shlex.join(["python", "-m", "benchmarks", "smia_study", *shown])
    text = render(arguments.out, arguments.bundles, arguments.split, command)
    print(text)
    if arguments.write is not None:
        begin, end = (marker.format(arguments.split) for marker in (BEGIN, END))
        page = replace_region(arguments.write.read_text(encoding="utf-8"), text, begin, end)
        write_whole(arguments.write, page, overwrite=True)
