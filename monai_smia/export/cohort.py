# SPDX-License-Identifier: Apache-2.0
"""`write_cohort`: an adversarial copy of every case, as files, and what is left of the damage when they are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader
from monai.utils import CommonKeys

from monai_smia.attacks import Attack, AttackResult, GaussianNoise
from monai_smia.engines import CaseByCase
from monai_smia.engines.batches import Failure
from monai_smia.export.manifest import Manifest, entry
from monai_smia.export.native import NativeCase, NativeResult, case_from
from monai_smia.export.replay import Approximation
from monai_smia.export.survival import Survival, survival_of
from monai_smia.intensity import IntensityScale
from monai_smia.reports import RobustnessReport

IN_MEMORY, ON_DISK = "in memory", "on disk"


@dataclass(frozen=True)
class Cohort:
    """What was written, and how much of it survived.

    Attributes:
        folder: with ``images``, ``manifest.json`` and ``progress``.
        manifest: a MONAI data list, see `Manifest`.
        report: the evaluator's metrics for the clean images, the attacked ones in memory, and their files.
        survival: of the damage, by metric and for the loss.
        failures: cases that failed.
    """

    folder: Path
    manifest: Path
    report: RobustnessReport
    survival: tuple[Survival, ...]
    failures: tuple[Failure, ...]


def write_cohort(
    evaluator: Any,
    attack: Attack,
    folder: str | Path,
    *,
    relative: bool = False,
    image_key: str = CommonKeys.IMAGE,
    label_key: str = CommonKeys.LABEL,
    bpda: Mapping[str, Approximation | None] | None = None,
    intensity: IntensityScale | None = None,
    unit: str = "",
    seed: int = 0,
    resume: bool = False,
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
        intensity: physical unit of the network's input, for the report.
        unit: name of the files' physical unit, for the manifest.
        seed: of the attacks' randomness; every case has its own stream.
        resume: go on with what `folder` holds.
        progress: show a bar.

    Raises:
        FileExistsError: when `folder` holds something and `resume` is false, or something else than a cohort.
        RuntimeError: when the first cases all fail alike.

    Example:
        .. code-block:: python

            with open_bundle("hippocampus_mri_segmentation", dataset_dir="Task04") as bundle:
                cohort = write_cohort(bundle.evaluator(), SMIA(bundle.loss(), eps=10.0), "adversarial")
            print(cohort.survival)
    """
    place = Path(folder).absolute()
    manifest = Manifest(place / "manifest.json", image_key)
    if place.exists() and any(place.iterdir()) and not (resume and manifest.exists()):
        wanted = "one with a cohort" if resume else "a new folder, or resume=True"
        raise FileExistsError(f"folder: {place} holds something; expected {wanted}")
    manifest.begin()
    loader = evaluator.data_loader
    evaluator.data_loader = DataLoader(loader.dataset, batch_size=1, num_workers=0, collate_fn=loader.collate_fn)
    maker = _Maker(evaluator, attack, relative, manifest, dict(bpda or {}), unit, seed)
    try:
        run = CaseByCase(
            evaluator,
            {IN_MEMORY: attack, ON_DISK: attack},
            image_key=image_key,
            label_key=label_key,
            seed=seed,
            intensity=intensity,
            folder=place / "progress",
            settings={"attack": repr(attack), "relative": str(relative), "seed": str(seed)},
            resume=resume,
            made=maker,
            diagnose=False,
            progress=progress,
        )
        report = run.run()
    finally:
        evaluator.data_loader = loader
    for row in manifest.keep(run.state.names):  # of cases that failed after their file was there
        (place / row[image_key]).unlink()
    return Cohort(place, manifest.file, report, survival_of(report, IN_MEMORY, ON_DISK), run.failures)


class _Maker:
    """The two runs of a case: attacked in memory and written, then read again from the file."""

    def __init__(
        self,
        evaluator: Any,
        attack: Attack,
        relative: bool,
        manifest: Manifest,
        bpda: dict[str, Approximation | None],
        unit: str,
        seed: int,
    ) -> None:
        self.evaluator, self.loader = evaluator, evaluator.data_loader
        self.attack, self.relative, self.manifest = attack, relative, manifest
        self.image_key = manifest.image_key
        self.bpda, self.unit, self.seed = bpda, unit, seed
        self._written: tuple[NativeCase, NativeResult, Path] | None = None

    def __call__(self, run: str, engine: Any, batch: Any, generator: torch.Generator) -> tuple[Any, AttackResult]:
        """The batch of a run, see `monai_smia.engines.CaseByCase`."""
        index = engine.state.first_batch
        if run == IN_MEMORY:
            return self._attack(index, batch, generator)
        return self._read(index, batch)

    def _attack(self, index: int, batch: Any, generator: torch.Generator) -> tuple[Any, AttackResult]:
        case = case_from(self.evaluator, self.loader, index, self.image_key, self.bpda)
        done = case.attack(self._fitted(case), generator=generator)
        target = self.manifest.file.parent / "images" / f"{index:04d}_{case.name}{case.stored.suffix}"
        if target.exists():  # of a run that was killed before it noted the case: the same numbers again
            target.unlink()
        case.stored.write(done.values, target)
        self._written = case, done, target
        inputs = case.network.inputs(done.values.unsqueeze(0)).detach()
        item = self.loader.dataset.data[index]
        self.manifest.add(entry(item, self.image_key, case, done, target, self.unit, self.seed))
        return {**batch, self.image_key: inputs}, dataclasses.replace(done.result, adversarial=inputs)

    def _fitted(self, case: NativeCase) -> Attack:
        """The attack with a budget in the file's own units."""
        if not self.relative:
            return self.attack
        values = case.image.as_tensor()
        return dataclasses.replace(self.attack, eps=float(self.attack.eps) * float(values.max() - values.min()))

    def _read(self, index: int, batch: Any) -> tuple[Any, AttackResult]:
        assert self._written is not None
        _, done, target = self._written
        dataset = self.loader.dataset
        again = dataset.transform({**dataset.data[index], self.image_key: str(target)})
        batch = self.loader.collate_fn([again])
        inputs, label = self.evaluator.prepare_batch(batch, self.evaluator.state.device, False)[:2]
        still = GaussianNoise(self.attack.loss_function, eps=0.0, criterion=self.attack.criterion)
        seen = still(self.evaluator.network, inputs, label, inferer=self.evaluator.inferer)
        result = dataclasses.replace(done.result, adversarial=inputs, loss=seen.clean_loss, success=seen.clean_success)
        return batch, result
