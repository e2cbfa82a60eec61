# SPDX-License-Identifier: Apache-2.0
"""Clean metrics of every bundle's weights on its test cases, with 95 % intervals by group, into its README."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._clean_cases import CleanCases, Interval, clean_cases
from benchmarks._measure import data_folder
from benchmarks._torchvision import load_torchvision
from benchmarks._units import ROOT
from benchmarks.robustness_table import BUNDLES, WEIGHTS, markdown, replace_region
from monai_smia.data.groups import UNKNOWN
from monai_smia.reports.files import write_whole

BEGIN, END = "<!-- clean metrics: begin -->", "<!-- clean metrics: end -->"
TITLES = {
    "val_auc": "AUC",
    "val_accuracy": "accuracy",
    "val_kappa": "quadratic kappa",
    "val_ap50": "AP50",
    "val_ap30": "AP30",
    "val_mean_dice": "mean Dice",
    "val_mean_iou": "mean IoU",
}
CAMERAS = {"patients below 1900": False, "patients from 1900 (nearly all wide field)": True}


def title(name: str) -> str:
    return TITLES.get(name, name.removeprefix("val_").replace("dice_", "Dice, ").replace("_", " "))


def about(cases: CleanCases) -> str:
    """How many cases and groups, and what a group is."""
    count, groups = len(cases.outputs), len(set(cases.groups))
    if count == 1:
        return "One case: no interval."
    if cases.kind == UNKNOWN:
        return f"{count} cases; whose they are is not known, so the intervals are over cases."
    return f"{count} cases of {groups} {cases.kind}s; the intervals are over {cases.kind}s."


def main_table(measured: dict[str, CleanCases]) -> str:
    first = next(iter(measured.values()))
    header = ["weights", *map(title, first.metrics)]
    rows = [
        [f"`{WEIGHTS[name]}`", *(str(cases.interval(metric)) for metric in cases.metrics)]
        for name, cases in measured.items()
    ]
    return markdown(header, rows)


def camera_table(measured: dict[str, CleanCases]) -> str:
    """The AUC within each camera, and how well the score tells the cameras apart in eyes without retinopathy."""
    rows = []
    for name, cases in measured.items():
        camera, ill = by_camera(cases)
        within = [cases.interval("val_auc", np.flatnonzero(camera == wide).tolist()) for wide in CAMERAS.values()]
        rows.append([f"`{WEIGHTS[name]}`", *map(str, within), str(camera_interval(cases, camera, ill))])
    _, ill = by_camera(next(iter(measured.values())))
    camera, _ = by_camera(next(iter(measured.values())))
    counts = [f"{(ill & (camera == wide)).sum()} of {(camera == wide).sum()}" for wide in CAMERAS.values()]
    text = ", ".join(f"{name}: {count} with retinopathy" for name, count in zip(CAMERAS, counts, strict=True))
    header = ["weights", *(f"AUC, {name}" for name in CAMERAS), "AUC of the camera, no retinopathy"]
    return f"By camera ({text}); the last column is 0.5 where the score does not know the camera.\n\n" + markdown(
        header, rows
    )


def by_camera(cases: CleanCases) -> tuple[np.ndarray, np.ndarray]:
    """Whether each photograph is of a patient from 1900, and whether it shows retinopathy."""
    camera = np.array([bool(item["camera"]) for item in cases.items])
    return camera, np.array([int(item["label"]) > 0 for item in cases.items])


def camera_interval(cases: CleanCases, camera: np.ndarray, ill: np.ndarray) -> Interval:
    """The AUC of 1 - p(grade 0) for the camera, over the photographs without retinopathy, and its interval."""
    scores = np.array([1 - float(output[0]["pred"][0]) for output in cases.outputs])
    healthy = np.flatnonzero(~ill)
    groups = np.array(cases.groups)
    names = np.unique(groups[healthy])
    generator, drawn = np.random.default_rng(0), []
    for _ in range(2000):
        picked = [i for name in generator.choice(names, len(names)) for i in healthy[groups[healthy] == name]]
        drawn.append(auc(scores[picked], camera[picked]))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(auc(scores[healthy], camera[healthy]), float(low), float(high))


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Share of pairs in the right order, ties half; NaN without a pair.

    Example:
        >>> auc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
        0.875
    """
    difference = scores[positive][:, None] - scores[~positive][None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean()) if difference.size else float("nan")


def measure(name: str, weights: Sequence[str], folder: Path | None, split: str | None) -> dict[str, CleanCases]:
    root, data = ROOT / "bundles" / name, BUNDLES[name].data
    models = root / "models" if folder is None else folder / name
    place = None if data is None else (data_folder() / data).resolve()
    return {kind: clean_cases(root, models / WEIGHTS[kind], place, split) for kind in weights}


def text_of(name: str, measured: dict[str, CleanCases], command: str) -> str:
    first = next(iter(measured.values()))
    parts = [f"`{command}`: {about(first)}", main_table(measured)]
    if first.items and "camera" in first.items[0]:
        parts.append(camera_table(measured))
    return "\n\n".join(parts)


def parse(options: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks clean_metrics", description=__doc__)
    parser.add_argument("--bundles", nargs="+", choices=BUNDLES, default=list(BUNDLES), help="default: all")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS), help="default: both")
    parser.add_argument("--weights-dir", type=Path, help="DIR/<bundle>/model.pt, model_robust.pt")
    parser.add_argument("--split", help="training, validation or test (default: the bundle's, test)")
    parser.add_argument("--write", action="store_true", help="put each table between the two markers of its README")
    arguments = parser.parse_args(options)
    if arguments.write and (arguments.split or arguments.weights_dir or len(arguments.weights) < len(WEIGHTS)):
        parser.error("--write takes the shipped weights, both, on the test cases")
    return arguments


def main(options: list[str] | None = None) -> None:
    load_torchvision()
    logging.disable(logging.INFO)
    arguments = parse(options)
    for name in arguments.bundles:
        measured: dict[str, Any] = measure(name, arguments.weights, arguments.weights_dir, arguments.split)
        command = shlex.join(["python", "-m", "benchmarks", "clean_metrics", "--bundles", name])
        text = text_of(name, measured, command)
        print(f"## {name}\n\n{text}\n", flush=True)
        if arguments.write:
            readme = ROOT / "bundles" / name / "docs" / "README.md"
            write_whole(readme, replace_region(readme.read_text(encoding="utf-8"), text, BEGIN, END), overwrite=True)


if __name__ == "__main__":
    sys.exit(main())
