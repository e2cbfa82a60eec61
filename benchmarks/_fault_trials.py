# SPDX-License-Identifier: Apache-2.0
"""Trials: one fault each, then the same command with ``--resume``, then a comparison with an uninterrupted run."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._fault_hook import Fault
from benchmarks._fault_runs import (
    COMMANDS,
    EPS,
    Ended,
    begin,
    end,
    fresh,
    hidden,
    make_place,
    outside,
    result,
    run,
    warm_up,
)

OTHER_EPS = "20intensity"
SURVIVED, REFUSED, UNCLEAR, LOST = "survived", "refused", "unclear", "lost"
KILOBYTES = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192)
"""Sizes of the small file systems."""


@dataclass(frozen=True)
class Trial:
    """One fault.

    Attributes:
        command: evaluate, export or train.
        kind: of `Fault`; ``small disk`` for a file system of `at` kilobytes.
        at: number of the change.
    """

    command: str
    kind: str
    at: int

    @property
    def name(self) -> str:
        return f"{self.command} {self.kind} {self.at}"


@dataclass
class Bench:
    """A place to run in, and what uninterrupted runs give.

    Attributes:
        folder: of everything; it is made.
        changes: of each command, in order.
        expected: the result of each command, by budget.
        records: hidden files that uninterrupted runs leave.
    """

    folder: Path
    changes: dict[str, list[str]] = field(default_factory=dict)
    expected: dict[tuple[str, str], Any] = field(default_factory=dict)
    records: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        make_place(self.template)
        self.fresh()
        warm_up(self.place)

    @property
    def template(self) -> Path:
        return self.folder / "template"

    @property
    def place(self) -> Path:
        return self.folder / "work" / "place"

    @property
    def out(self) -> Path:
        return self.place / "out"

    def fresh(self) -> None:
        (self.folder / "work").mkdir(exist_ok=True)
        fresh(self.template, self.place)

    def measure(self, command: str) -> None:
        """Note the changes and the results of a command that nothing happens to."""
        for eps in (EPS, OTHER_EPS):
            self.fresh()
            seen = self.folder / "seen.txt"
            done = run(with_budget(command, eps), self.place, Fault(self.out), seen)
            if done.code:
                raise RuntimeError(f"{command} fails without a fault:\n{done.text}")
            self.changes[command] = seen.read_text().splitlines()
            self.expected[command, eps] = result(command, self.out)
            self.records |= hidden(self.out)

    def holds(self, command: str, eps: str = EPS) -> bool:
        """Whether the folder holds what an uninterrupted run gives."""
        try:
            return bool(result(command, self.out) == self.expected[command, eps])
        except (FileNotFoundError, ValueError, RuntimeError, EOFError):
            return False

    def try_one(self, trial: Trial) -> tuple[str, str]:
        """What became of a fault, and a sentence about it."""
        self.fresh()
        before = outside(self.place)
        if trial.kind == "wait":
            verdict = self._two_at_once(trial)
        elif trial.kind == "small disk":
            verdict = self._small_disk(trial)
        else:
            fault = Fault(self.out, trial.kind, trial.at)
            verdict = self._resumed(trial.command, run(COMMANDS[trial.command], self.place, fault))
        if outside(self.place) != before:
            return LOST, "files outside the output folder changed"
        return verdict

    def _resumed(self, command: str, ended: Ended) -> tuple[str, str]:
        again = run([*COMMANDS[command], "--resume"], self.place)
        if again.code in (0, 1) and not again.traced and not self.holds(command):
            return (
                LOST,
                f"another result, exit {again.code}; first: {last(ended)}; then: {last(again)}",
            )
        if ended.code >= 0 and ended.unclear:
            return UNCLEAR, f"the fault: exit {ended.code}, {last(ended)}"
        if again.unclear or again.code == 1:
            return UNCLEAR, f"resumed: exit {again.code}, {last(again)}"
        if again.code:
            return REFUSED, last(again)
        if left := hidden(self.out) - self.records:
            return UNCLEAR, f"left behind: {', '.join(sorted(left))}"
        return SURVIVED, ""

    def _two_at_once(self, trial: Trial) -> tuple[str, str]:
        """The first waits in the middle; the second, with another budget, comes and goes; the first goes on."""
        reached, reaching = os.pipe()
        waiting, going = os.pipe()
        log = self.folder / "first.txt"
        fault = Fault(self.out, "wait", trial.at, pipe=(reaching, waiting), closing=(reached, going))
        child = begin(COMMANDS[trial.command], self.place, log, fault)
        os.close(reaching)
        os.close(waiting)
        os.read(reached, 1)
        other = with_budget(trial.command, OTHER_EPS)
        second = run(other + ["--resume"] * (trial.at % 2), self.place)
        os.close(going)
        first = end(child, log)
        os.close(reached)
        for ended in (first, second):
            if ended.unclear:
                return UNCLEAR, f"exit {ended.code}, {last(ended)}"
        succeeded = [eps for ended, eps in ((first, EPS), (second, OTHER_EPS)) if ended.code in (0, 1)]
        if len(succeeded) != 1:
            return LOST, f"exit {first.code} and {second.code} into one folder"
        return (SURVIVED, "") if self.holds(trial.command, succeeded[0]) else (LOST, "a result of two runs")

    def _small_disk(self, trial: Trial) -> tuple[str, str]:
        self.out.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={trial.at}k", "tmpfs", str(self.out)], check=True)
        try:
            ended = run(COMMANDS[trial.command], self.place)
            subprocess.run(["mount", "-o", "remount,size=64m", str(self.out)], check=True)
            verdict = self._resumed(trial.command, ended)
        finally:
            subprocess.run(["umount", str(self.out)], check=True)
        return verdict


def with_budget(command: str, eps: str) -> list[str]:
    return [eps if word == EPS else word for word in COMMANDS[command]]


def last(ended: Ended) -> str:
    """The last line that a run printed."""
    lines = [line for line in ended.text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "(nothing printed)"


def can_mount(folder: Path) -> bool:
    """Whether this user may make a small file system."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        return False
    place = folder / "mounted"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True)
    if done.returncode == 0:
        subprocess.run(["umount", str(place)], check=True)
    place.rmdir()
    return done.returncode == 0


def plan(changes: dict[str, list[str]], small_disks: bool) -> Iterator[Trial]:
    """Every fault of the long form: a kill and a full disk at every change, and the others where they differ."""
    for command, lines in changes.items():
        numbers = range(1, len(lines) + 1)
        moves = [number for number in numbers if lines[number - 1].startswith("move")]
        for number in numbers:
            yield Trial(command, "kill", number)
            if lines[number - 1].split()[0] in ("open", "write", "mkdir", "move", "force"):
                yield Trial(command, "full", number)
        for kind, places in (("denied", numbers[::4]), ("torn", moves), ("zeros", moves), ("wait", numbers[::5])):
            yield from (Trial(command, kind, number) for number in places)
        if small_disks:
            yield from (Trial(command, "small disk", size) for size in KILOBYTES)


def chosen(trials: list[Trial], count: int | None, seed: int) -> list[Trial]:
    """A seeded choice, every command and kind as evenly as can be; all of them without a count."""
    source = random.Random(seed)
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.command, trial.kind), []).append(trial)
    for group in groups.values():
        source.shuffle(group)
    order: list[Trial] = []
    while any(groups.values()):
        order += [group.pop() for group in groups.values() if group]
    return order[:count]
