"""A small evaluation and views of it, for the tests of the page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from monai_smia.reports import CLEAN, RobustnessReport
from monai_smia.reports.views import CaseView

NAN = math.nan
CASES = ("a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz")
DICE = {
    CLEAN: (0.95, 0.93, 0.91, NAN),
    "PGD_5HU": (0.60, 0.50, NAN, NAN),
    "SMIA_5HU": (0.55, 0.70, 0.30, NAN),
    "PGD_20HU": (0.10, 0.05, 0.20, NAN),
}
DISTANCE = {
    CLEAN: (1.0, 2.0, 3.0, 4.0),
    "PGD_5HU": (5.0, 6.0, 7.0, 8.0),
    "SMIA_5HU": (9.0, 4.0, 7.5, 8.5),
    "PGD_20HU": (20.0, 30.0, math.inf, 10.0),
}
ATTACKS = {
    "PGD_5HU": "PGD(DiceLoss(), eps=0.0035714285714285713, bounds=(0.0, 1.0))",
    "SMIA_5HU": "SMIA(DiceLoss(), eps=0.0035714285714285713, bounds=(0.0, 1.0))",
    "PGD_20HU": "PGD(DiceLoss(), eps=0.014285714285714285, bounds=(0.0, 1.0))",
}


def sample_report(cases: tuple[str, ...] = CASES) -> RobustnessReport:
    """Two metrics per case, one (an AUC) over all cases only; the fourth case has no Dice."""
    rows: list[dict[str, Any]] = []
    for run, values in DICE.items():
        for i, case in enumerate(cases):
            row: dict[str, Any] = {"attack": run, "case": case, "dice": values[i], "distance": DISTANCE[run][i]}
            if run != CLEAN:
                eps = float(run.split("_")[1].removesuffix("HU"))
                row |= {"clean_loss": 0.25, "loss": 0.5 + i, "clean_success": False, "success": i < 3}
                row |= {"largest_change": eps, "forward_passes": 12, "backward_passes": 10}
            rows.append(row)
    metrics = {run: {"dice": 0.5, "auc": 0.9 - 0.1 * k} for k, run in enumerate(DICE)}
    return RobustnessReport(metrics, tuple(rows), ATTACKS, "HU")


def volume_view(case: str = CASES[0]) -> CaseView:
    """A ball in a noisy volume, found, and half lost under attack."""
    generator = np.random.default_rng(0)
    x, y, z = np.mgrid[0:20, 0:16, 0:12]
    ball = (x - 8) ** 2 + (y - 7) ** 2 + (z - 6) ** 2 < 17
    image = (np.where(ball, -800.0, 40.0) + generator.normal(0, 15, ball.shape))[None]
    adversarial = image + 5 * generator.choice([-1, 1], image.shape)
    label = ball.astype(int)
    return CaseView(
        case,
        image,
        {"PGD_5HU": adversarial},
        label,
        {"PGD_5HU": np.where(y < 7, label, 0)},
        label,
        spacing=(1.0, 1.0, 2.0),
        orientation="LAS",  # shown as it is stored
        classes=("background", "lung"),
    )


def frame_view(case: str = "frame.png") -> CaseView:
    """A colour frame with boxes."""
    generator = np.random.default_rng(1)
    image = generator.integers(0, 254, (3, 24, 18)).astype(float)
    return CaseView(
        case,
        image,
        {"PGD_5HU": image + generator.choice([-1.0, 1.0], image.shape)},
        {"boxes": [[4, 3, 12, 11]], "labels": ["polyp"], "scores": [0.9]},
        {"PGD_5HU": []},
        [[4, 3, 12, 10]],
    )
