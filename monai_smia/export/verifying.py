# SPDX-License-Identifier: Apache-2.0
"""`verify_on_disk`: is a cohort still what it was, after an archive, a transfer, another program's hands?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.data import DataLoader, Dataset
from monai.utils import CommonKeys

from monai_smia.attacks import GaussianNoise
from monai_smia.attacks.heads import LossFunction
from monai_smia.engines import CaseByCase
from monai_smia.engines.batches import Failure, other_loader
from monai_smia.export.case_maker import IN_MEMORY, ON_DISK
from monai_smia.export.manifest import LIST, MADE, read_manifest
from monai_smia.export.stored import checksum
from monai_smia.export.survival import LOSS, Survival
from monai_smia.reports import CLEAN, RobustnessReport


@dataclass(frozen=True)
class Verification:
    """What a cohort's files do to the network now.

    Attributes:
        survival: of the damage that the manifest tells: of the loss, and of every metric where the cohort's folder has
            the report of `write_cohort` and no case failed since.
        changed: files that are not, byte for byte, those that were written.
        report: the evaluator's metrics for the files, and the loss of each.
        failures: files that could not be read or evaluated.
    """

    survival: tuple[Survival, ...]
    changed: tuple[Path, ...]
    report: RobustnessReport
    failures: tuple[Failure, ...]


def verify_on_disk(
    evaluator: Any,
    manifest: str | Path,
    loss_function: LossFunction,
    *,
    files: str | Path | None = None,
    image_key: str = CommonKeys.IMAGE,
    label_key: str = CommonKeys.LABEL,
    progress: bool = True,
) -> Verification:
    """Run an evaluator on the files of a cohort, and compare with what its manifest says.

    Args:
        evaluator: a MONAI `SupervisedEvaluator`; its data set's transform loads the files, its cases are not used.
        manifest: of `write_cohort` or `SaveAdversariald`, or the folder that holds it.
        loss_function: of the attack, as it was when the cohort was written.
        files: another folder with the images, under the same names: what came back from an archive. ``None`` for those
            beside the manifest.
        image_key, label_key: of the data list.
        progress: show a bar.

    Raises:
        FileNotFoundError: when there is no manifest.
        ValueError: when it lists nothing, or does not tell losses.

    Example:
        .. code-block:: python

            check = verify_on_disk(evaluator, "adversarial/manifest.json", loss, files="from_pacs")
            print(check.survival[0].rate, check.changed)
    """
    place = Path(manifest)
    place = place / "manifest.json" if place.is_dir() else place
    rows = _rows(place, image_key)
    folder = place.parent if files is None else Path(files)
    paths = [folder / row[image_key] if files is None else folder / Path(row[image_key]).name for row in rows]
    changed = [path for path, row in zip(paths, rows, strict=True) if not _same(path, row[MADE]["sha256"])]
    items = [
        {**{key: value for key, value in row.items() if key != MADE}, image_key: str(path)}
        for row, path in zip(rows, paths, strict=True)
    ]
    loader = evaluator.data_loader
    again = DataLoader(
        Dataset(items, loader.dataset.transform), batch_size=1, num_workers=0, collate_fn=loader.collate_fn
    )
    with other_loader(evaluator, again):
        still = {ON_DISK: GaussianNoise(loss_function, eps=0.0)}
        run = CaseByCase(evaluator, still, image_key=image_key, label_key=label_key, diagnose=False, progress=progress)
        report = run.run()
    return Verification(_survival(place.parent, rows, paths, report), tuple(changed), report, run.failures)


def _rows(manifest: Path, image_key: str) -> list[dict[str, Any]]:
    if not manifest.is_file():
        raise FileNotFoundError(f"manifest: no file {manifest}")
    try:
        rows = read_manifest(manifest, image_key)
    except ValueError as error:
        raise ValueError(f"manifest: {error}") from error
    if not rows:
        raise ValueError(f"manifest: expected a list {LIST!r} with cases; got none in {manifest}")
    if not all({"loss", "clean_loss"} <= set(row.get(MADE, {})) for row in rows):
        raise ValueError(f"manifest: expected the losses of every case in {manifest}; save with a handler's save=")
    for row in rows:
        made = row[MADE]
        if not isinstance(row.get(image_key), str) or not isinstance(made.get("sha256"), str):
            raise ValueError(
                f"manifest: expected a file under {image_key!r} and its sha256 in every case of {manifest}"
            )
        numbers = [made["clean_loss"], made["loss"]]
        if not all(isinstance(number, (int, float)) for number in numbers):
            raise ValueError(f"manifest: expected numbers for losses in {manifest}; got {numbers}")
    return rows


def _same(path: Path, digest: str) -> bool:
    return path.exists() and checksum(path) == digest


def _survival(folder: Path, rows: list[dict[str, Any]], paths: list[Path], report: RobustnessReport) -> tuple[Any, ...]:
    """Of the loss over the cases that were evaluated, and of the metrics where all were."""
    losses = {os.path.basename(row["case"]): row["loss"] for row in report.cases if row["attack"] == ON_DISK}
    made = [row[MADE] for row, path in zip(rows, paths, strict=True) if path.name in losses]
    if not made:
        return ()
    clean, memory = (sum(row[name] for row in made) / len(made) for name in ("clean_loss", "loss"))
    found = [Survival(LOSS, clean, memory, sum(losses.values()) / len(losses))]
    saved = folder / "report" / "robustness.json"
    if len(made) == len(rows) and saved.is_file():
        before, now = RobustnessReport.load(saved).metrics, report.metrics[CLEAN]
        for name in before[CLEAN]:
            values = [one.get(name) for one in (before[CLEAN], before[IN_MEMORY], now)]
            numbers = [float(one) for one in values if isinstance(one, (int, float))]
            if len(numbers) == len(values):
                found.append(Survival(name, *numbers))
    return tuple(found)
