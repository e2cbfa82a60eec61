# SPDX-License-Identifier: Apache-2.0
"""How much of an attack's damage is left once it has been through a file: on the file's levels, and rounded."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._dicom_series import as_dicom_series
from benchmarks._kept import kept
from benchmarks._lung_ct import prepared_files
from benchmarks._measure import data_folder
from benchmarks._units import ROOT, environment, sha256
from benchmarks.robustness_table import BUNDLES, markdown, replace_region
from monai_smia.bundle import export_cohort, open_bundle
from monai_smia.export import Survival
from monai_smia.export.case_maker import IN_MEMORY
from monai_smia.reports.files import write_whole

BEGIN, END = "<!-- survival: begin -->", "<!-- survival: end -->"
OUT = Path("runs") / "survival"
HEADER = ("images", "stored as", "eps", "cases", "loss", "in memory", "on disk", "survival", "of the naive in memory")
STEPS = 10
WHOLE = "lung1"


@dataclass(frozen=True)
class Trip:
    """A bundle's images through one format.

    Args:
        bundle: its name.
        stored: the format, in words.
        eps: the budget, in the files' units.
        cases: the first ones of the validation split, or all of the bundle's own sample.
        dicom: write the images as DICOM series first.
        whole: the CT that the sample was cut from, at its own resolution.
        options: of `export_cohort`.
    """

    bundle: str
    stored: str
    eps: str
    cases: int
    dicom: bool = False
    whole: bool = False
    options: dict[str, Any] = field(default_factory=dict)


TRIPS = {
    "lung": Trip("lung_ct_segmentation", "DICOM series, int16", "10HU", 1, dicom=True),
    "lung-whole": Trip(
        "lung_ct_segmentation", "DICOM series, int16, at its own resolution", "10HU", 1, dicom=True, whole=True
    ),
    "fundus-png": Trip("fundus_dr_classification", "PNG", "2grey", 20, options={"as_png": True}),
    "fundus-jpeg": Trip("fundus_dr_classification", "JPEG, as the original", "2grey", 20),
    "hippocampus": Trip("hippocampus_mri_segmentation", "NIfTI", "2%", 10),
}


def measure(trip: Trip, folder: Path) -> dict[str, Any]:
    """Survival, ours and naive; an interrupted export goes on in its folder."""
    data = BUNDLES[trip.bundle].data
    with open_bundle(
        ROOT / "bundles" / trip.bundle,
        dataset_dir=None if data is None else (data_folder() / data).resolve(),
        cases=trip.cases,
        device="cpu",
        split=None if data is None else "validation",
    ) as opened:
        evaluator = opened.evaluator()
        if trip.dicom:
            items = [prepared_files(WHOLE)] if trip.whole else evaluator.data_loader.dataset.data
            evaluator.data_loader.dataset.data = [
                _in_dicom(dict(item), folder.with_name(f"{folder.name}-dicom")) for item in items
            ]
        cohort = export_cohort(
            evaluator,
            "SMIA",
            trip.eps,
            loss_function=opened.loss(),
            steps=STEPS,
            intensity=opened.intensity(),
            naive=True,
            out=folder,
            resume=folder.exists(),
            **trip.options,
        )
    if cohort.failures:
        raise RuntimeError(f"{trip.bundle}: {cohort.failures[0].case} failed: {cohort.failures[0].error}")
    rows = {"ours": cohort.survival, "naive": cohort.naive}
    found = {who: [[row.metric, row.clean, row.memory, row.disk] for row in rows[who]] for who in rows}
    return {"cases": sum(row["attack"] == IN_MEMORY for row in cohort.report.cases), **found}


def _in_dicom(item: dict[str, Any], folder: Path) -> dict[str, Any]:
    source = Path(item["image"])
    place = folder / source.name.split(".")[0]
    if not place.exists():
        as_dicom_series(source, place)
    return {**{key: str(value) for key, value in item.items()}, "image": str(place)}


def result_of(name: str, out: Path) -> dict[str, Any]:
    """What is kept in `out` is not done again."""
    trip, root = TRIPS[name], ROOT / "bundles" / TRIPS[name].bundle
    settings = {
        "weights": sha256([root / "models" / "model.pt"]),
        "configs": sha256([root / "configs" / file for file in ("train.json", "evaluate.json")]),
        "trip": repr(trip),
        "steps": STEPS,
    }
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    folder = (out / f"{name}-{digest}").resolve()
    return kept((out / f"{name}.json").resolve(), settings, lambda: measure(trip, folder))


def rows_of(trip: Trip, result: dict[str, Any]) -> list[tuple[str, ...]]:
    """A line for every number, ours and naive, that the attacks move."""
    found = []
    for ours, naive in zip(result["ours"], result["naive"], strict=True):
        both = {"monai_smia": Survival(*ours), "rounded afterwards": Survival(*naive)}
        if any(row.rate != row.rate for row in both.values()):  # a metric without a value
            continue
        full = both["rounded afterwards"].memory - both["rounded afterwards"].clean
        for who, row in both.items():
            found.append(
                (
                    f"{trip.bundle}, {row.metric}",
                    f"{trip.stored}: {who}",
                    trip.eps,
                    str(result["cases"]),
                    *(f"{value:.4f}" for value in (row.clean, row.memory, row.disk)),
                    f"{row.rate:.3f}",
                    f"{(row.disk - row.clean) / full:.3f}",
                )
            )
    return found


def parse(options: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks survival", description=__doc__)
    parser.add_argument("--trips", nargs="+", choices=TRIPS, default=list(TRIPS), help="default: all")
    parser.add_argument("--out", type=Path, default=OUT, help="what is kept (default: %(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the file's two markers")
    return parser.parse_args(options)


def main(options: list[str] | None = None) -> None:
    arguments = parse(options)
    if arguments.write:
        replace_region(arguments.write.read_text(encoding="utf-8"), "", BEGIN, END)
    rows: list[Sequence[str]] = []
    for name, trip in TRIPS.items():
        if name in arguments.trips:
            rows += rows_of(trip, result_of(name, arguments.out))
    given = sys.argv[2:] if options is None else options
    command = "`" + shlex.join(["python", "-m", "benchmarks", "survival", *given]) + "`"
    lines = [command, "", *environment(), f"- SMIA, {STEPS} steps, seed 0", "", markdown(HEADER, rows)]
    text = "\n".join(lines)
    print(text)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        write_whole(arguments.write, replace_region(page, text, BEGIN, END), overwrite=True)
