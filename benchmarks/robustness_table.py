# SPDX-License-Identifier: Apache-2.0
"""Clean and adversarial metrics of every bundle, with its standard and its robust weights, in one table."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._measure import data_folder
from benchmarks._robustness_rows import (
    Grid,
    Metric,
    cost_header,
    cost_row,
    metric_header,
    metric_rows,
    read_report,
)
from benchmarks._units import REPORT, ROOT, Unit, UnitFailedError, finished, package_hash, run_units
from monai_smia.reports.files import write_whole

ATTACKS = ("GaussianNoise", "FGSM", "PGD", "SMIA")
STEPS = 20
WEIGHTS = {"standard": "model.pt", "robust": "model_robust.pt"}
CONFIGS = ("train.json", "evaluate.json", "attack.json")
BEGIN, END = "<!-- robustness table: begin -->", "<!-- robustness table: end -->"
OUT = Path("runs") / "robustness_table"
METRICS_TEXT = (
    "Metrics of the test cases; in brackets the 95 % bootstrap interval over cases, where the metric is a mean over "
    "them and there are at least two."
)
COSTS_TEXT = (
    "What it took. *Seconds per case*: wall time of the process over its cases, all runs together, start and loading "
    "included, beside what else ran. *Passes*: forward + backward, for each case and budget. *Success*: share of the "
    "cases on which the attack's criterion holds, without an attack and by budget 1, 2, 3."
)

DICE = (Metric("val_mean_dice", "Dice", per_case=True),)
AUC = (Metric("val_auc", "AUC"), Metric("val_accuracy", "accuracy"))
AP = (Metric("val_ap50", "AP50"),)


@dataclass(frozen=True)
class Bundle:
    """What is measured of a bundle.

    Args:
        metrics: of its reports.
        data: sub-folder of the shared images; ``None`` for the sample that the bundle ships.
        budgets: in place of those of its ``attack.json``.
    """

    metrics: tuple[Metric, ...]
    data: str | None
    budgets: tuple[float, ...] | None = None


BUNDLES = {
    "chest_xray_classification": Bundle(AUC, "chest_xray"),
    "chest_xray_segmentation": Bundle(DICE, "chest_xray"),
    "endoscopy_detection": Bundle(AP, "endoscopy_polyp"),
    "endoscopy_polyp_segmentation": Bundle(DICE, "endoscopy_polyp"),
    "fundus_dr_classification": Bundle(AUC, "fundus_dr"),
    "hippocampus_mri_segmentation": Bundle(DICE, "hippocampus_mri"),
    "lung_ct_segmentation": Bundle(DICE, None, (5, 20, 50)),
}


def budgets(name: str) -> tuple[str, list[float]]:
    """Key of the budgets in the bundle's ``attack.json``, and the budgets."""
    content = json.loads((ROOT / "bundles" / name / "configs" / "attack.json").read_text(encoding="utf-8"))
    keys = [key for key in content if key.startswith("eps_")]
    if len(keys) != 1:
        raise ValueError(f"{name}: expected one eps_<unit> in attack.json; got {keys}")
    return keys[0], list(BUNDLES[name].budgets or content[keys[0]])


def make_unit(name: str, weights: str, out: Path, *, weights_dir: Path | None, steps: int, cases: int | None) -> Unit:
    """The evaluation of one bundle with one of its weights, on its test cases."""
    bundle, root = BUNDLES[name], ROOT / "bundles" / name
    folder = (out / name / weights).resolve()
    models = root / "models" if weights_dir is None else (weights_dir / name).resolve()
    key, sizes = budgets(name)
    settings: dict[str, Any] = {
        "model_file": WEIGHTS[weights],
        "attack_names": list(ATTACKS),
        key: sizes,
        "steps": steps,
    }
    if cases is not None:
        settings["validate#dataset#data"] = f"$@validate#datalist[:{cases}]"
    places: dict[str, Any] = {
        "config_file": [str(root / "configs" / file) for file in CONFIGS],
        "bundle_root": str(root),
        "ckpt_dir": str(models),
        "output_dir": str(folder / "eval"),
        "robustness_dir": str(folder),
    }
    code = [*(root / "configs" / file for file in CONFIGS), *sorted((root / "scripts").glob("*.py"))]
    if bundle.data is None:
        data = sorted((root / "sample").glob("*.nii.gz"))
    else:
        places["dataset_dir"] = str((data_folder() / bundle.data).resolve())
        data = [Path(places["dataset_dir"]) / "dataset.json"]
    files = {str(path.relative_to(root)): path for path in code} | {f"data/{path.name}": path for path in data}
    return Unit(f"{name} {weights}", folder, {**files, "weights": models / WEIGHTS[weights]}, settings, places)


def out_folder(out: Path, steps: int, cases: int | None) -> Path:
    """Trials have folders of their own, so that they never stand in for, or replace, a result."""
    if cases is None and steps == STEPS:
        return out
    return out / "trials" / f"cases-{'all' if cases is None else cases}-steps-{steps}"


def trial(steps: int, cases: int | None) -> str:
    """What a trial leaves out; nothing for a result."""
    parts = [] if cases is None else [f"at most the first {cases} test cases"]
    return ", ".join(parts if steps == STEPS else [*parts, f"{steps} as number of steps in place of {STEPS}"])


def replace_region(text: str, content: str, begin: str = BEGIN, end: str = END) -> str:
    """The text with `content` between its two markers.

    Raises:
        ValueError: when there isn't one of each, the first before the second.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected one line {begin!r}, and after it one {end!r}")
    return text[: text.index(begin) + len(begin)] + "\n" + content.strip() + "\n" + text[text.index(end) :]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def render(units: dict[tuple[str, str], Unit], steps: int, command: str, *, left_out: str = "") -> str:
    """Both tables with what they depend on, from the reports of the units, all of which are finished.

    Raises:
        RuntimeError: a unit is not finished, or no longer.
    """
    metrics: list[list[str]] = []
    costs: list[list[str]] = []
    surroundings: dict[str, None] = {}
    for (name, weights), unit in units.items():
        mark = finished(unit)
        if mark is None:
            raise RuntimeError(f"{unit.name}: not measured, or its files changed since; run the command again")
        report = read_report(unit.folder / REPORT)
        grid = Grid(ATTACKS, budgets(name)[1], steps)
        metrics += metric_rows(name, weights, report, grid, BUNDLES[name].metrics)
        digest = mark["inputs"]["files"]["weights"]
        costs.append(cost_row(name, weights, report, grid, seconds=mark["seconds"], digest=digest))
        surroundings |= dict.fromkeys(mark["environment"])
        if mark["package"] != package_hash():
            message = "measured with other sources of monai_smia than those of now; remove its folder to do it again"
            print(f"warning: {unit.name}: {message}: {unit.folder}", file=sys.stderr)
    tables = [markdown(metric_header(grid), metrics), markdown(cost_header(grid), costs)]
    parts = [f"`{command}`", "\n".join(surroundings), METRICS_TEXT, tables[0], COSTS_TEXT, tables[1]]
    return "\n\n".join([f"**Trial, no result: {left_out}.**", *parts] if left_out else parts)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1; got {text}")
    return value


def parse(options: list[str] | None) -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m benchmarks robustness_table", description=__doc__)
    parser.add_argument("--bundles", nargs="+", choices=BUNDLES, default=list(BUNDLES), help="default: all")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS), help="default: both")
    parser.add_argument(
        "--weights-dir", type=Path, help="DIR/<bundle>/model.pt, model_robust.pt (default: the bundle's)"
    )
    parser.add_argument("--cases", type=positive, help="only the first test cases, as a trial (default: all)")
    parser.add_argument("--steps", type=positive, default=STEPS, help="of PGD and SMIA (default: %(default)s)")
    parser.add_argument(
        "--jobs", type=positive, default=cores, help="processes of one thread (default: cores, %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help="reports; finished ones are not redone (default: %(default)s)"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the file's two markers")
    arguments = parser.parse_args(options)
    arguments.trial = trial(arguments.steps, arguments.cases)
    if arguments.write and arguments.trial:
        parser.error("--write takes results only, neither --cases nor other --steps")
    return arguments


def main(options: list[str] | None = None) -> None:
    arguments = parse(options)
    if arguments.write:
        replace_region(arguments.write.read_text(encoding="utf-8"), "")  # before hours are spent
    out = out_folder(arguments.out, arguments.steps, arguments.cases)
    kept = {"weights_dir": arguments.weights_dir, "steps": arguments.steps, "cases": arguments.cases}
    units = {
        (name, weights): make_unit(name, weights, out, **kept)
        for name in BUNDLES
        for weights in WEIGHTS
        if name in arguments.bundles and weights in arguments.weights  # the table's order, not the options'
    }
    missing = [str(path) for unit in units.values() for path in unit.files.values() if not path.is_file()]
    if missing:
        hint = "choose with --bundles, --weights and --weights-dir; MONAI_SMIA_DATA names the folder of the images"
        sys.exit("\n".join(["robustness_table: these files are missing:", *dict.fromkeys(missing), hint]))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_units(list(units.values()), arguments.jobs)
    except UnitFailedError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the finished units", file=sys.stderr)
        sys.exit(130)
    given = sys.argv[2:] if options is None else options
    command = shlex.join(["python", "-m", "benchmarks", "robustness_table", *given])
    text = render(units, arguments.steps, command, left_out=arguments.trial)
    print(text)
    if arguments.write:
        write_whole(arguments.write, replace_region(arguments.write.read_text(encoding="utf-8"), text), overwrite=True)
