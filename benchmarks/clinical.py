# SPDX-License-Identifier: Apache-2.0
"""Attacks towards clinical goals on the bundles that ship: how often they are reached, at which budgets."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks._measure import data_folder, hardware
from benchmarks._units import ROOT
from monai_smia.attacks import Ball, ClinicalGoal, CrossGrade, Erase, Insert, ShiftVolume
from monai_smia.bundle import evaluate_under_attack, open_bundle

STEPS = 10
HEADER = ["bundle", "weights", "goal", "eps", "reached", "before to after, mean"]
WEIGHTS = {"standard": "model.pt", "robust": "model_robust.pt"}


@dataclass(frozen=True)
class Study:
    """One goal on one bundle.

    Args:
        bundle, data: its folder, and the folder of its images.
        title: of the goal, in words.
        goal: makes it.
        eps: budgets.
        cases: how many of the validation split, evenly spread over it.
    """

    bundle: str
    data: str
    title: str
    goal: Callable[[], ClinicalGoal]
    eps: str
    cases: int


HIPPOCAMPUS = ("hippocampus_mri_segmentation", "hippocampus_mri")
POLYP = ("endoscopy_polyp_segmentation", "endoscopy_polyp")
FUNDUS = ("fundus_dr_classification", "fundus_dr")
STUDIES = (
    Study(*HIPPOCAMPUS, "anterior part + 0.3 ml", lambda: ShiftVolume(1, by=0.3), "0.5%,1%,2%", 10),
    Study(*HIPPOCAMPUS, "anterior part - 0.3 ml", lambda: ShiftVolume(1, by=-0.3), "0.5%,1%,2%", 10),
    Study(
        *POLYP,
        "erase the polyp, at most 25 pixels left",
        lambda: Erase(0, spacing=(1, 1), tolerance=25),
        "1grey,2grey,4grey",
        12,
    ),
    Study(
        *POLYP,
        "insert a polyp, half of a disc of 12 pixels",
        lambda: Insert(0, region=Ball(at=(64, 64), radius_mm=12, spacing=(1, 1))),
        "1grey,2grey,4grey",
        12,
    ),
    Study(
        *FUNDUS, "grade under 1: retinopathy missed", lambda: CrossGrade(1, direction="down"), "0.5grey,1grey,2grey", 12
    ),
    Study(*FUNDUS, "grade 1 or more: false alarm", lambda: CrossGrade(1, direction="up"), "0.5grey,1grey,2grey", 12),
)


def measure(study: Study, weights: str, steps: int, cases: int, folder: Path) -> list[list[str]]:
    """The rows of one study: one for each budget."""
    root = ROOT / "bundles" / study.bundle
    with open_bundle(
        root,
        dataset_dir=data_folder() / study.data,
        weights=root / "models" / WEIGHTS[weights],
        split="validation",
    ) as bundle:
        evaluator = bundle.evaluator()
        total = len(evaluator.data_loader.dataset)
        files = [Path(str(item["image"])).name for item in evaluator.data_loader.dataset.data]
        chosen = [files[i * total // cases] for i in range(min(cases, total))]
        report = evaluate_under_attack(
            evaluator,
            ["PGD"],
            study.eps,
            steps=steps,
            cases=chosen,
            options={"PGD": {"goal": study.goal()}},
            loss_function=bundle.loss(),
            preprocessing=bundle.preprocessing(),
            postprocessing=bundle.postprocessing(),
            views=0,
            out=folder,
            progress=False,
        ).report
    rows = []
    for run in report.attacks:
        own = [row for row in report.cases if row["attack"] == run]
        open_to = [row for row in own if not row["clean_success"]]
        reached = sum(row["success"] for row in open_to)
        after = next(name for name in own[0] if name.startswith("measured"))
        before = next(name for name in own[0] if name.startswith("clean_measured"))
        mean = [sum(row[name] for row in open_to) / max(len(open_to), 1) for name in (before, after)]
        unit = after[after.index("[") + 1 : -1]
        cell = f"{mean[0]:.3g} to {mean[1]:.3g} {unit}" if open_to else ""
        rows.append(
            [study.bundle, weights, study.title, run.removeprefix("PGD_"), f"{reached} of {len(open_to)}", cell]
        )
    return rows


def main(options: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks clinical", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="of PGD (default: %(default)s)")
    parser.add_argument("--only", default="", help="bundles whose name holds this")
    parser.add_argument("--small", action="store_true", help="one case each, two steps: only to see that it runs")
    arguments = parser.parse_args(options)
    if not data_folder().is_dir():
        sys.exit(f"clinical: needs the images in {data_folder()}; MONAI_SMIA_DATA names the folder")
    hardware()
    steps = 2 if arguments.small else arguments.steps
    print(f"- PGD, {steps} steps of 2.5 eps / steps, no random start; validation cases\n", flush=True)
    units = [(study, weights) for study in STUDIES if arguments.only in study.bundle for weights in WEIGHTS]
    for row in (HEADER, ["---"] * len(HEADER)):
        print("| " + " | ".join(row) + " |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for i, (study, weights) in enumerate(tqdm(units, desc="clinical goals", file=sys.stderr)):
            for row in measure(study, weights, steps, 1 if arguments.small else study.cases, Path(folder) / str(i)):
                print("| " + " | ".join(row) + " |", flush=True)
