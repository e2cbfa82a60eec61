# SPDX-License-Identifier: Apache-2.0
"""Faults planted into evaluate, export and train, and damaged input files: what survives, and what is lost."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks._fault_inputs import Damage, InputBench
from benchmarks._fault_inputs import plan as plan_inputs
from benchmarks._fault_runs import COMMANDS
from benchmarks._fault_trials import LOST, REFUSED, SURVIVED, UNCLEAR, Bench, Trial, can_mount, chosen, plan
from benchmarks._units import package_hash
from benchmarks.robustness_table import markdown, replace_region
from monai_smia.reports.files import write_whole

OUT = Path("runs") / "faults"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
QUICK = 12
"""Faults, and damaged files, of the quick form."""
VERDICTS = (SURVIVED, REFUSED, UNCLEAR, LOST)
WORDS = {
    "kill": "killed at a change",
    "full": "disk full from a change on",
    "denied": "no permission from a change on",
    "torn": "power cut: last file cut in half",
    "zeros": "power cut: last file ends in zeros",
    "wait": "two runs at once",
    "small disk": "file system of 4 to 192 kB",
}
TEXT = (
    "*Survived*: the same command with `--resume` ends with the result of an uninterrupted run and leaves no temporary "
    "file; a damaged input was read, or reported as a failed case. *Refused*: one line that says why, and exit code 2 "
    "or 3. *Unclear*: a traceback, an exit code without a meaning, or a temporary file that stays. *Lost*: another "
    "result than that of an uninterrupted run, or a change to a file outside the output folder."
)


class Kept:
    """Verdicts in a file of one JSON object per line; a line that a kill cut off does not count."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.verdicts: dict[str, tuple[str, str]] = {}
        package = package_hash()
        for line in file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []:
            row = json.loads(line)
            if row["package"] == package:
                self.verdicts[row["name"]] = (row["verdict"], row["why"])
        self.package = package

    def add(self, name: str, verdict: tuple[str, str]) -> None:
        self.verdicts[name] = verdict
        self.file.parent.mkdir(parents=True, exist_ok=True)
        row = {"name": name, "verdict": verdict[0], "why": verdict[1], "package": self.package}
        with open(self.file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")


def tried(work: Sequence[tuple[str, Callable[[], tuple[str, str]]]], kept: Kept) -> None:
    """Every trial that has no verdict yet."""
    for number, (name, attempt) in enumerate(work, start=1):
        if name in kept.verdicts:
            continue
        kept.add(name, attempt())
        verdict, why = kept.verdicts[name]
        print(f"{number}/{len(work)} {name}: {verdict} {why}", file=sys.stderr, flush=True)


def table(trials: list[Trial], damages: list[Damage], verdicts: dict[str, tuple[str, str]]) -> str:
    """Rows by command and kind of fault, and by kind of file."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for trial in trials:
        counts.setdefault((trial.command, WORDS[trial.kind]), Counter())[verdicts[trial.name][0]] += 1
    for damage in damages:
        counts.setdefault((damage.command, f"damaged {damage.file}"), Counter())[verdicts[damage.name][0]] += 1
    rows = [
        [*key, str(sum(count.values())), *(str(count[verdict]) for verdict in VERDICTS)]
        for key, count in counts.items()
    ]
    total = sum(counts.values(), Counter())
    rows.append(["all", "", str(sum(total.values())), *(str(total[verdict]) for verdict in VERDICTS)])
    return markdown(["command", "fault", "tried", *VERDICTS], rows)


def measure(options: argparse.Namespace, folder: Path) -> tuple[str, dict[str, tuple[str, str]]]:
    """The table, and what each trial came to."""
    bench = Bench(folder)
    for command in COMMANDS if options.inputs else options.commands:
        bench.measure(command)
    kept = Kept(options.out / "verdicts.jsonl")
    trials = chosen(
        list(plan({name: bench.changes[name] for name in options.commands}, can_mount(folder))),
        options.faults,
        options.seed,
    )
    tried([(trial.name, lambda trial=trial: bench.try_one(trial)) for trial in trials], kept)
    damages: list[Damage] = []
    if options.inputs:
        inputs = InputBench(bench)
        damages = plan_inputs(inputs, options.inputs, options.seed)
        tried([(damage.name, lambda damage=damage: inputs.try_one(damage)) for damage in damages], kept)
    names = {one.name for one in (*trials, *damages)}
    return table(trials, damages, kept.verdicts), {name: kept.verdicts[name] for name in kept.verdicts if name in names}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks faults", description=__doc__)
    parser.add_argument("--faults", type=int, help="how many, chosen by the seed; all of them where not said")
    parser.add_argument("--inputs", type=int, default=1000, help="how many damaged files")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} faults and {QUICK} damaged files")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the verdicts; the next call goes on there")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    options = parser.parse_args(arguments)
    if options.quick:
        options.faults, options.inputs = QUICK, QUICK
    if options.write is not None and options.quick:
        parser.error("--write takes results only, not those of --quick")
    options.out = options.out.absolute()
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)  # a fork of a process with several threads may hang
    here = Path.cwd()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        text, verdicts = measure(options, Path(os.path.realpath(folder)))
        os.chdir(here)
    print(text)
    bad = {name: verdict for name, verdict in verdicts.items() if verdict[0] in (UNCLEAR, LOST)}
    for name, (verdict, why) in bad.items():
        print(f"{verdict}: {name}: {why}")
    if options.write is not None:
        command = shlex.join(["python", "-m", "benchmarks", "faults", *arguments])
        page = options.write.read_text(encoding="utf-8")
        content = f"`{command}`\n\n{text}\n\n{TEXT}"
        write_whole(options.write, replace_region(page, content, BEGIN, END), overwrite=True)
    if bad:
        sys.exit(1)
