# SPDX-License-Identifier: Apache-2.0
"""Memory and time of an evaluation case by case, over a thousand tiny cases: neither may grow with their number."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import AsDiscreted, Compose
from torch.utils.data import Dataset

from benchmarks._measure import hardware, resident, table
from monai_smia.attacks import PGD
from monai_smia.engines import CaseByCase

SEED = 0
SIZES = {"2d": (32, 32), "3d": (16, 16, 16)}
MARKS = (0.1, 0.5, 1.0)  # of all cases


class Cases(Dataset[dict[str, Any]]):
    """Cases drawn when they are asked for, so that the data set takes no memory."""

    def __init__(self, number: int, size: Sequence[int]) -> None:
        self.number, self.size = number, tuple(size)

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(index)
        image = torch.rand((1, *self.size), generator=draw)
        return {
            "image": MetaTensor(image, meta={"filename_or_obj": f"case_{index:05d}.nii.gz"}),
            "label": (image > 0.5).float(),
        }


class Watch:
    """Notes memory and time as cases are done; a watcher of `CaseByCase`."""

    def __init__(self, marks: Sequence[int]) -> None:
        self.marks, self.done, self.notes = set(marks), 0, list[tuple[int, int, float]]()

    def saw(self, run: str, batch: Any, output: Any, forward: Any, result: Any) -> None:
        """Nothing is kept."""

    def drop(self) -> None:
        """Nothing was kept."""

    def keep(self, names: Sequence[str], recorder: Any) -> None:
        """A batch is done."""
        self.done += len(names)
        if self.done in self.marks:
            self.notes.append((self.done, resident("VmRSS"), time.perf_counter()))


def evaluator_of(cases: int, size: Sequence[int]) -> SupervisedEvaluator:
    torch.manual_seed(SEED)
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Cases(cases, size), batch_size=1),
        network=UNet(len(size), 1, 2, (4, 8), (2,)),
        postprocessing=Compose([AsDiscreted("pred", argmax=True, to_onehot=2), AsDiscreted("label", to_onehot=2)]),
        key_val_metric={"dice": MeanDice(output_transform=from_engine(["pred", "label"]))},
    )


def measure(name: str, cases: int) -> list[list[str]]:
    """A row for each mark: memory then, time of a case since the mark before, and bytes on disk for each case."""
    watch = Watch([max(2, round(cases * share)) for share in MARKS])
    watch.marks.add(1)
    attack = PGD(DiceCELoss(to_onehot_y=True, softmax=True), eps=8 / 255, steps=2, bounds=(0.0, 1.0))
    with tempfile.TemporaryDirectory() as folder:
        run = CaseByCase(
            evaluator_of(cases, SIZES[name]), {"PGD": attack}, folder=folder, watchers=[watch], diagnose=False
        )
        run.run()
        size = Path(folder, "progress.pt").stat().st_size
    rows = []
    for (before, _, since), (done, memory, now) in zip(watch.notes, watch.notes[1:], strict=False):
        seconds = (now - since) / (done - before)
        rows.append([name, str(done), f"{memory / 2**20:.0f}", f"{1000 * seconds:.1f}", f"{size / cases / 1024:.1f}"])
    return rows


def main(options: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks scale", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--only", choices=SIZES, help="only this rank")
    arguments = parser.parse_args(options)
    hardware()
    print(f"- clean and PGD of 2 steps, one case a batch, seed {SEED}\n", flush=True)
    for name in SIZES:
        if arguments.only in (None, name):
            rows = measure(name, arguments.cases)
            table(["network", "cases done", "memory, MiB", "ms a case since", "KiB a case on disk"], rows)
