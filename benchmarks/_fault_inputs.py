# SPDX-License-Identifier: Apache-2.0
"""Damaged input files of every format: read well, or refused in one line; never a traceback, never half a result."""

from __future__ import annotations

import os
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks._fault_hook import Fault
from benchmarks._fault_runs import COMMANDS, end, hidden, outside, run, start
from benchmarks._fault_trials import REFUSED, SURVIVED, UNCLEAR, Bench, last

KINDS = ("cut", "flipped", "zeros", "random", "empty")


@dataclass(frozen=True)
class Damage:
    """One damaged file.

    Attributes:
        command: of `monai-smia`, or ``read`` for `open_stored` alone.
        file: which file, relative to the working folder.
        kind: of `KINDS`.
        seed: where, and with what.
    """

    command: str
    file: str
    kind: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.command} {self.file} {self.kind} {self.seed}"


def damaged(content: bytes, kind: str, seed: int) -> bytes:
    """The content cut short, with up to eight bits flipped, with an end of zeros, with random bytes, or none at all."""
    source = random.Random(f"{kind} {seed}")
    if not content or kind == "empty":
        return b""
    place = source.randrange(len(content))
    if kind == "cut":
        return content[:place]
    if kind == "zeros":
        return content[:place] + bytes(len(content) - place)
    new = bytearray(content)
    if kind == "random":
        stop = min(place + source.randint(1, 64), len(new))
        new[place:stop] = source.randbytes(stop - place)
    else:
        for _ in range(source.randint(1, 8)):
            # Half of them near the beginning, where a header is.
            end = len(new) if source.random() < 0.5 else min(len(new), 512)
            new[source.randrange(end)] ^= 1 << source.randrange(8)
    return bytes(new)


class InputBench:
    """Folders as each command finds them, made once, and copied for each damage.

    Args:
        bench: where to run; its folders without a damage are made from its template.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.folder = bench.folder / "inputs"
        self.folder.mkdir()
        again = "--resume"
        self.calls: dict[str, tuple[str, list[str], tuple[str, ...]]] = {
            "evaluate": (
                "template",
                COMMANDS["evaluate"],
                (
                    "data/images/case_1.nii.gz",
                    "data/labels/case_1.nii.gz",
                    "bundle/models/model.pt",
                    "bundle/configs/train.json",
                    "bundle/configs/evaluate.json",
                    "bundle/configs/metadata.json",
                ),
            ),
            "evaluate --resume": ("evaluate", [*COMMANDS["evaluate"], again], ("out/progress/progress.pt",)),
            "export": ("template", COMMANDS["export"], ("data/images/case_1.nii.gz",)),
            "export --resume": (
                "export",
                [*COMMANDS["export"], again],
                ("out/manifest.json", "out/images/0000_case_0.nii.gz", "out/progress/progress.pt"),
            ),
            "train --resume": ("train", [*COMMANDS["train"], again], ("out/checkpoints/*.pt",)),
            "report": ("evaluate", ["report", "out"], ("out/report.json", "out/about.json", "out/views/0.npz")),
            "verify": ("export", ["verify", "bundle", "out", "--dataset_dir", "data"], ("out/manifest.json",)),
        }
        for command in COMMANDS:
            self._finished(command)
        self.stored = make_stored(self.folder / "stored")

    def _finished(self, command: str) -> None:
        """A folder as a finished evaluation or export leaves it, or a killed training."""
        bench = self.bench
        bench.fresh()
        fault = None
        if command == "train":
            moves = [n for n, line in enumerate(bench.changes[command], 1) if line == "move model.pt"]
            fault = Fault(bench.out, "kill", moves[-1])
        run(COMMANDS[command], bench.place, fault)
        shutil.copytree(bench.place, self.folder / command)

    def try_one(self, damage: Damage) -> tuple[str, str]:
        """What became of a damaged file, and a sentence about it."""
        if damage.command == "read":
            return self._read(damage)
        bench = self.bench
        base, arguments, _ = self.calls[damage.command]
        source = bench.template if base == "template" else self.folder / base
        if bench.place.exists():
            shutil.rmtree(bench.place)
        shutil.copytree(source, bench.place)
        *_, file = sorted(bench.place.glob(damage.file))
        file.write_bytes(damaged(file.read_bytes(), damage.kind, damage.seed))
        before, dotted = outside(bench.place), hidden(bench.out)  # what a kill left is not this run's
        ended = run(arguments, bench.place)
        if ended.unclear:
            return UNCLEAR, f"exit {ended.code}, {last(ended)}"
        if outside(bench.place) != before:
            return "lost", "files outside the output folder changed"
        if bench.out.exists() and (left := hidden(bench.out) - bench.records - dotted):
            return UNCLEAR, f"left behind: {', '.join(sorted(left))}"
        return (SURVIVED, "") if ended.code in (0, 1) else (REFUSED, last(ended))

    def _read(self, damage: Damage) -> tuple[str, str]:
        place = self.bench.folder / "work" / "read"
        if place.exists():
            shutil.rmtree(place)
        (place / "copies").mkdir(parents=True)
        file = place / damage.file
        file.write_bytes(damaged((self.stored / damage.file).read_bytes(), damage.kind, damage.seed))
        log = self.bench.folder / "read.txt"
        ended = end(start(lambda: read_and_write(file), place, log), log)
        left = os.listdir(place / "copies")
        if ended.unclear:
            return UNCLEAR, f"exit {ended.code}, {last(ended)}"
        if ended.code:
            return (UNCLEAR, f"half a copy: {left}") if left else (REFUSED, last(ended))
        return SURVIVED, ""


def read_and_write(file: Path) -> int:
    """Read a file, and write a copy with its own values; what the commands refuse is one line."""
    from monai_smia.export import open_stored

    try:
        stored = open_stored(file)
        stored.write(stored.values(), file.parent / "copies" / file.name)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"monai-smia: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def make_stored(folder: Path) -> Path:
    """One small file of each format, beside each other."""
    import itk
    import nibabel
    from PIL import Image

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    try:
        import dicom_files
    finally:
        sys.path.pop(0)
    folder.mkdir()
    levels = np.random.default_rng(0).integers(0, 255, (12, 10, 3)).astype(np.uint8)
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(levels.astype(np.int16), np.eye(4)), folder / name)
    for name in ("a.nrrd", "a.mha"):
        itk.imwrite(itk.image_from_array(levels.astype(np.int16)), str(folder / name))
    for name in ("a.png", "a.jpg"):
        Image.fromarray(levels).save(folder / name)
    one = dicom_files.instance(dicom_files.levels_of(1)[0])
    one.save_as(folder / "a.dcm", enforce_file_format=True)
    return folder


def plan(bench: InputBench, count: int, seed: int) -> list[Damage]:
    """As many damages as wanted, over all files and kinds in turn; three in four through `open_stored` alone."""
    quick = [("read", path.name) for path in sorted(bench.stored.iterdir())]
    slow = [(command, file) for command, (_, _, files) in bench.calls.items() for file in files]
    found: list[Damage] = []
    for number in range(count):
        pairs, turn = (slow, number // 4) if number % 4 == 3 else (quick, number - number // 4)
        command, file = pairs[turn % len(pairs)]
        found.append(Damage(command, file, KINDS[turn // len(pairs) % len(KINDS)], seed * 1_000_003 + number))
    return found
