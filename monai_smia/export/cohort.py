# SPDX-License-Identifier: Apache-2.0
"""`write_cohort`: an adversarial copy of every case, as files, and what is left of the damage when they are read."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from monai.utils import CommonKeys

from monai_smia.attacks import Attack, EoT
from monai_smia.engines import CaseByCase
from monai_smia.engines.batches import Failure, named, one_by_one, other_loader
from monai_smia.engines.folder_lock import NAME
from monai_smia.engines.keeping import holding
from monai_smia.engines.progress import Progress
from monai_smia.export.case_maker import IN_MEMORY, NAIVE_IN_MEMORY, NAIVE_ON_DISK, ON_DISK, CaseMaker
from monai_smia.export.deidentify import Deidentification, require
from monai_smia.export.manifest import IMAGES, Manifest
from monai_smia.export.recompression import SAMPLES, Recompression
from monai_smia.export.replay import Approximation
from monai_smia.export.survival import Survival, survival_markdown, survival_of
from monai_smia.intensity import IntensityScale
from monai_smia.reports import RobustnessReport
from monai_smia.reports.files import write_whole
from monai_smia.reports.own_files import OwnFiles, clear_temporary

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cohort:
    """What was written, and how much of it survived.

    Attributes:
        folder: with ``images``, ``manifest.json``, ``report`` and ``progress``.
        manifest: a MONAI data list, see `Manifest`.
        report: the evaluator's metrics for the clean images, the attacked ones in memory, and their files.
        survival: of the damage, by metric and for the loss.
        naive: the same of attacks on the network's input whose change was rounded to the files' levels afterwards;
            empty where it was not asked for.
        failures: cases that failed.
    """

    folder: Path
    manifest: Path
    report: RobustnessReport
    survival: tuple[Survival, ...]
    naive: tuple[Survival, ...]
    failures: tuple[Failure, ...]


@holding("folder")
def write_cohort(
    evaluator: Any,
    attack: Attack,
    folder: str | Path,
    *,
    relative: bool = False,
    image_key: str = CommonKeys.IMAGE,
    label_key: str = CommonKeys.LABEL,
    bpda: Mapping[str, Approximation | None] | None = None,
    qualities: Sequence[int] | None = None,
    naive: bool = False,
    as_png: bool = False,
    deidentify: bool = False,
    keep_link: bool = False,
    intensity: IntensityScale | None = None,
    unit: str = "",
    seed: int = 0,
    resume: bool = False,
    retry_failed: bool = False,
    progress: bool = True,
) -> Cohort:
    """Attack every case on its file's own grid, write the copy, and evaluate it once in memory and once from disk.

    Case by case: what is done is kept at once, and an interrupted run goes on with ``resume=True``. A case that fails
    is noted, has no file, and the others go on.

    Args:
        evaluator: a MONAI `SupervisedEvaluator` whose data set loads its images from files.
        attack: its `eps` in the physical units of the files (HU, grey levels).
        relative: its `eps` is a share of each image's own range instead, in [0, 1]; for files without a unit.
        folder: where to; it must not exist, unless `resume`.
        image_key, label_key: of the data list.
        bpda: see `native_case`.
        qualities: ``(lowest, highest)``: the attack is on the mean over JPEG of these qualities, see `Recompression`;
            for pictures that will be compressed again by others.
        naive: attack the network's input as well, at the same budget, bring the change back to the file's grid (see
            `carried_back`), round it, write it and read it: what is usual elsewhere. Its copies are not kept.
        as_png: write copies of JPEG files as PNG, which keeps what a second compression would take away.
        deidentify: take what names the patient out of the copies, the manifest and the report, see `Deidentification`;
            the key is ``deidentify.key`` in `folder`, which like ``progress`` is not to be handed on.
        keep_link: with `deidentify`, still say in file names and manifest where each copy came from.
        intensity: physical unit of the network's input, for the report.
        unit: name of the files' physical unit, for the manifest.
        seed: of the attacks' randomness; every case has its own stream.
        resume: go on with what `folder` holds. A copy that is gone is made again; one that is not what was written is
            refused.
        retry_failed: go on, and try the cases again that failed.
        progress: show a bar.

    Raises:
        FileExistsError: when `folder` holds something and `resume` is false, or something else than a cohort; when
            something is where a copy goes, or a copy is not what was written. Nothing of it is touched.
        FolderInUse: when another run writes into `folder`.
        MachineFault: when the machine fails (a full disk): what is done is kept.
        ValueError: when the cohort to go on with is of other images, made in another way, or not of this program; with
            `naive`, for an attack in another norm than Linf.
        TypeError: with `qualities`, for an attack that does not step along gradients.
        RuntimeError: when the first cases all fail alike; in a distributed group, whose processes would write one
            manifest.

    Example:
        .. code-block:: python

            with open_bundle("hippocampus_mri_segmentation", dataset_dir="Task04") as bundle:
                cohort = write_cohort(bundle.evaluator(), SMIA(bundle.loss(), eps=10.0), "adversarial")
            print(cohort.survival)
    """
    if idist.get_world_size() > 1:
        raise RuntimeError(f"write_cohort: expected one process; got a group of {idist.get_world_size()}")
    place = Path(folder).absolute()
    manifest = Manifest(place / "manifest.json", image_key)
    resume = resume or retry_failed
    own = OwnFiles(place)
    if any(path.name != NAME for path in place.iterdir()):
        if not (resume and manifest.exists()):
            wanted = "one with a cohort" if resume else "a new folder, or resume=True"
            raise FileExistsError(f"folder: {place} holds something; expected {wanted}")
        own.refuse_links(IMAGES, "progress", "report")
        manifest.read()  # refuses a foreign one
        clear_temporary(place, place / IMAGES, place / "progress", place / "report")
    if qualities is not None:
        EoT(attack, Recompression(qualities), samples=SAMPLES)  # refuses now what it would refuse for every case
    if naive and float(attack.norm) != float("inf"):
        raise ValueError(f"naive: expected an attack in Linf, whose budget is the same on both grids; got {attack!r}")
    if deidentify:
        require()
    manifest.begin()
    hidden = Deidentification.of_folder(place, keep_link) if deidentify else None
    manifest = Manifest(manifest.file, image_key, None if hidden is None or keep_link else hidden.seal)
    loader = evaluator.data_loader
    swap = ExitStack()
    swap.enter_context(other_loader(evaluator, one_by_one(evaluator)))
    maker = CaseMaker(
        evaluator,
        loader,
        attack,
        relative,
        manifest,
        dict(bpda or {}),
        unit,
        seed,
        qualities,
        as_png,
        hidden,
        label_key,
    )
    runs = [IN_MEMORY, ON_DISK, *([NAIVE_IN_MEMORY, NAIVE_ON_DISK] if naive else [])]
    try:
        run = CaseByCase(
            evaluator,
            dict.fromkeys(runs, attack),
            image_key=image_key,
            label_key=label_key,
            seed=seed,
            intensity=intensity,
            folder=place / "progress",
            settings={
                "attack": repr(attack),
                "relative": str(relative),
                "seed": str(seed),
                "naive": str(naive),
                "qualities": repr(qualities),
                "as_png": str(as_png),
                "deidentify": f"{deidentify}, keep_link {keep_link}",
                "images": listed(loader.dataset, image_key),
                "unit": unit,
            },
            resume=resume,
            retry_failed=retry_failed,
            made=maker,
            diagnose=False,
            progress=progress,
        )
        _check_copies(manifest, run.state)
        report = run.run()
    finally:
        swap.close()
    _drop_unfinished(manifest, run.state.names)
    usual = survival_of(report, NAIVE_IN_MEMORY, NAIVE_ON_DISK) if naive else ()
    cohort = Cohort(place, manifest.file, report, survival_of(report, IN_MEMORY, ON_DISK), usual, run.failures)
    shown = cohort
    if hidden is not None and not keep_link:
        shown = _nameless(cohort, manifest, run.case_names())
    with own.replacing() as made:
        shown.report.save(made / "report")
        write_whole(made / "report" / "survival.md", cohort_markdown(shown) + "\n")
    return cohort


def _nameless(cohort: Cohort, manifest: Manifest, names: Mapping[str, str]) -> Cohort:
    """The cohort whose cases have the names of their copies."""
    sealed = {name: manifest.identity_of(file) for file, name in names.items()}
    copies = {manifest.identity(row): row[manifest.image_key] for row in manifest.read()}
    rows = tuple({**row, "case": copies.get(sealed.get(str(row["case"]), ""), "")} for row in cohort.report.cases)
    failures = tuple(Failure("a case", one.stage, "told when it happened") for one in cohort.failures)
    return dataclasses.replace(cohort, report=dataclasses.replace(cohort.report, cases=rows), failures=failures)


def _check_copies(manifest: Manifest, state: Progress) -> None:
    """The copies of the cases done are what was written; the cases of those that are gone are done again.

    Raises:
        FileExistsError: naming the first that is not.
    """
    rows = {manifest.identity(row): row for row in manifest.read() if manifest.image_key in row}
    gone = []
    for number, record in state.records.items():
        for name in (name for part in record.parts for name in part.names):
            row = rows.get(manifest.identity_of(name))
            found = "gone" if row is None else manifest.state(row)
            if row is not None and found == "changed":
                raise FileExistsError(
                    f"resume: {manifest.file.parent / row[manifest.image_key]} is not what was written; expected "
                    "the copies of an export unchanged; nothing was touched"
                )
            if found == "gone":
                LOG.warning("monai-smia: the copy of %s is gone; it is made again", name)
                gone.append(number)
    for number in gone:
        state.records.pop(number, None)


def _drop_unfinished(manifest: Manifest, done: Sequence[str]) -> None:
    """Take away the copies of cases that failed after their file was there."""
    rows = manifest.others(done)
    for row in rows:
        for left in manifest.remove(row):
            LOG.warning("monai-smia: %s is not what was written, and was left where it is", left)
    manifest.drop(rows)


def listed(dataset: Any, image_key: str) -> str:
    """The images of a data set in their order, as one number: a cohort is gone on with by the same ones alone."""
    rows = getattr(dataset, "data", None) or ()
    files = [os.path.abspath(named(dataset, index, image_key)) for index in range(len(rows))]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def cohort_markdown(cohort: Cohort) -> str:
    """The survival of the damage, and what failed."""
    parts = [survival_markdown(cohort.survival)]
    if cohort.naive:
        parts += ["Attacked on the network's input and rounded afterwards:", survival_markdown(cohort.naive)]
    if cohort.failures:
        parts.append("\n".join(f"- failed: {one.case} ({one.stage}): {one.error}" for one in cohort.failures))
    return "\n\n".join(parts)
