# SPDX-License-Identifier: Apache-2.0
"""``monai-smia export``, and the same from a configuration file of MONAI's command line."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from monai_smia.bundle.command_note import say_that_it_runs
from monai_smia.bundle.exporting import export_cohort
from monai_smia.bundle.opening import open_bundle
from monai_smia.export import Cohort
from monai_smia.export.cohort import cohort_markdown
from monai_smia.export.dicom import SUFFIXES
from monai_smia.export.manifest import IMAGES, MADE, Manifest

KEPT = (
    "monai-smia: the DICOM copies keep what their originals say of the patient (name, ID, dates, private elements); "
    "--deidentify takes it out"
)


def export(
    bundle: str,
    attack: str = "SMIA",
    eps: Any = "10HU",
    dataset_dir: str | None = None,
    cases: Any = None,
    steps: int = 10,
    weights: str | None = None,
    out: str | None = None,
    resume: bool = False,
    retry_failed: bool = False,
    naive: bool = False,
    qualities: Any = None,
    as_png: bool = False,
    deidentify: bool = False,
    keep_link: bool = False,
    configs: Any = None,
    device: str | None = None,
    seed: int = 0,
    **overrides: Any,
) -> int:
    """Write an adversarial copy of every image file of a MONAI bundle's evaluation, and evaluate the copies.

    Each image is attacked on its file's own grid and levels, through the bundle's own preprocessing. What is left of
    the damage once the copies are read from disk is printed. Nothing is overwritten.

    Examples:
        monai-smia export lung_ct_segmentation --eps 10HU --out adversarial
        monai-smia export hippocampus_mri_segmentation --dataset_dir Task04 --eps 1% --resume

    Args:
        bundle: folder of the bundle.
        attack: its name; see monai-smia attacks.
        eps: one budget as files hold it, such as 10HU, 2grey, 1% (of each image's range).
        dataset_dir: folder of the data, where the bundle's configuration asks for one.
        cases: how many, the first ones, or file names.
        steps: of an iterated attack.
        weights: file of the weights, if not models/model.pt.
        out: folder of the copies; adversarial/NAME here where nothing else is said.
        resume: go on with an export that was interrupted.
        retry_failed: go on, and try the cases again that failed.
        naive: show beside it what is left of an attack on the network's input that is rounded afterwards.
        qualities: lowest,highest of JPEG that the attack shall outlast, such as 50,95; for pictures.
        as_png: write copies of JPEG files as PNG, without loss.
        deidentify: take what names the patient out of the copies (DICOM PS3.15 basic profile) and the manifest.
        keep_link: with deidentify, still say in the manifest where each copy came from.
        configs: names of configuration files, if others than the bundle's usual ones.
        device: such as cpu or cuda:0.
        seed: of the attack's randomness.
        overrides: ids of the bundle's configuration (--validate#inferer#overlap 0.5).
    """
    place = Path(out) if out is not None else Path("adversarial") / Path(bundle).resolve().name
    place = place.absolute()  # an open bundle is the working folder
    say_that_it_runs(bundle)
    with open_bundle(
        bundle,
        configs=configs,
        overrides=overrides,
        dataset_dir=dataset_dir,
        weights=weights,
        cases=cases,
        device=device,
    ) as opened:
        opened.require()
        cohort = export_cohort(
            opened.evaluator(),
            attack,
            eps,
            loss_function=opened.loss(),
            steps=steps,
            intensity=opened.intensity(),
            seed=seed,
            out=place,
            resume=resume,
            retry_failed=retry_failed,
            naive=naive,
            qualities=qualities,
            as_png=as_png,
            deidentify=deidentify,
            keep_link=keep_link,
        )
    return tell(cohort)


def tell(cohort: Cohort) -> int:
    """Print what a person wants to know; the exit status."""
    print(cohort_markdown(dataclasses.replace(cohort, failures=())))
    print(f"\nCohort: {cohort.manifest}")
    if keeps_patients(cohort):
        print(KEPT, file=sys.stderr)
    for failure in cohort.failures:
        print(f"failed: {failure.case} ({failure.stage}): {failure.error}", file=sys.stderr)
    return 1 if cohort.failures else 0


def keeps_patients(cohort: Cohort) -> bool:
    """Whether there are DICOM copies that say whose they are."""
    rows = Manifest(cohort.manifest, "").read()
    copies = [
        cohort.folder / value
        for row in rows
        if "deidentified" not in row[MADE]
        for value in row.values()
        if isinstance(value, str) and value.startswith(f"{IMAGES}/")
    ]
    return any(copy.is_dir() or copy.suffix.lower() in SUFFIXES for copy in copies)


def export_from_config(evaluator: Any, **arguments: Any) -> None:
    """The last line of a configuration file: export, print, and end with status 1 where cases failed.

    Args:
        evaluator: of the bundle.
        arguments: of `export_cohort`.

    Raises:
        SystemExit: when cases failed.
    """
    status = tell(export_cohort(evaluator, **arguments))
    if status:
        sys.exit(status)
