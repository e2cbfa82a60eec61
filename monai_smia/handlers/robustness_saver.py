# SPDX-License-Identifier: Apache-2.0
"""`RobustnessSaver`: the files of an evaluation under attack, case by case and in summary."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events

from monai_smia.reports.files import write_whole
from monai_smia.reports.report import CLEAN, RobustnessReport
from monai_smia.reports.safe_text import csv_text
from monai_smia.reports.summary import check_settings, paired_cases, summarize

FILES = (
    "cases.csv",
    "pairs.csv",
    "pairs.json",
    "robustness.csv",
    "robustness.json",
    "robustness.md",
    "summary.csv",
    "summary.json",
)


class RobustnessSaver:
    """Writes what every attack did to every case, and its statistics, when an evaluation is complete.

    For an `AttackEvaluator`, on its own or under a `ValidationHandler`, beside MONAI's handlers in any order. One
    folder for each evaluation:

    ======================  =====================================================================================
    file                    what
    ======================  =====================================================================================
    ``pairs.csv, .json``    a row for each attack and case: file name, patient, clean and adversarial value of every
                            metric and their difference, losses, success, size of the perturbation, passes; see
                            `monai_smia.reports.summary.paired_cases`
    ``summary.csv, .json``  a row for each run and column: mean, standard deviation, quantiles, bootstrap interval of
                            the mean by patient; see `monai_smia.reports.summary.summarize`
    ``cases.csv``,          the `RobustnessReport`: a row for each run and case, a row for each run
    ``robustness.*``
    ======================  =====================================================================================

    Each file appears whole or not at all. That none of them is there yet is checked before an evaluation starts.

    Args:
        folder: where to; it is made.
        patient_of: whose case it is, for the interval: a callable of the case's name, or a key of the batch or of the
            image's metadata; ``None`` takes every case for a patient of its own.
        by_epoch: write into ``folder/epoch_0001`` and so on, by the epoch that the evaluator is run with (the
            trainer's, under a `ValidationHandler`); a second evaluation in an epoch goes into ``epoch_0001_2``. If
            false, into the folder itself, which then has place for one evaluation.
        overwrite: whether files that are there may be replaced.
        quantiles, level, resamples, seed: as in `monai_smia.reports.summary.summarize`.

    Raises:
        TypeError, ValueError: at construction or attachment, naming the argument.
        RuntimeError: at the start of an evaluation by several processes, of which none sees all cases.
        FileExistsError: at the start of an evaluation.

    Example:
        .. code-block:: python

            saver = RobustnessSaver("robustness", patient_of=lambda case: case.split("_")[0])
            AttackEvaluator(..., attacks={"pgd": pgd}, val_handlers=[saver]).run()
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        patient_of: Callable[[str], str] | str | None = None,
        by_epoch: bool = True,
        overwrite: bool = False,
        quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
        level: float = 0.95,
        resamples: int = 2000,
        seed: int = 0,
    ) -> None:
        if not (patient_of is None or isinstance(patient_of, str) or callable(patient_of)):
            raise TypeError(
                f"patient_of: expected a callable of the case's name, a key, or None; got {type(patient_of).__name__}"
            )
        check_settings(quantiles, level, resamples)
        self.folder = Path(folder)
        self.patient_of = patient_of
        self.by_epoch = by_epoch
        self.overwrite = overwrite
        self.quantiles = tuple(quantiles)
        self.level = level
        self.resamples = resamples
        self.seed = seed
        self._patients: list[str] = []
        self._written: list[int] = []  # epochs

    def attach(self, engine: Any) -> None:
        """Write after each evaluation.

        Args:
            engine: an `AttackEvaluator`.

        Raises:
            TypeError: for an engine without attacks.
        """
        if not callable(getattr(engine, "report", None)):
            raise TypeError(f"engine: expected an AttackEvaluator, which has a report(); got {type(engine).__name__}")
        if not engine.has_event_handler(self, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_STARTED, self.start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.note_patients)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def start(self, engine: Any) -> None:
        """Check, before anything is computed, that there is place for the files."""
        if idist.get_world_size() > 1:
            raise RuntimeError(
                f"RobustnessSaver: expected one process, which sees all cases; got {idist.get_world_size()}"
            )
        self._patients = []
        folder = self._place(engine.state.epoch)
        for name in FILES:
            if (folder / name).exists() and not self.overwrite:
                raise FileExistsError(
                    f"folder: {folder / name} exists; expected a new folder, by_epoch=True or overwrite=True"
                )

    def note_patients(self, engine: Any) -> None:
        """Read the patients of the batch, where `patient_of` is a key."""
        if isinstance(self.patient_of, str):
            self._patients += _values(engine.state.batch, self.patient_of, engine.image_key)

    def __call__(self, engine: Any) -> None:
        """Write the files of the evaluation that is complete."""
        report: RobustnessReport = engine.report()
        folder = self._place(engine.state.epoch)
        patient_of = self._patient_of(report)
        settings: dict[str, Any] = {"level": self.level, "resamples": self.resamples, "seed": self.seed}
        pairs = paired_cases(report, patient_of)
        summary = summarize(report, patient_of, quantiles=self.quantiles, **settings)
        about = {"unit": report.unit, "attacks": report.attacks}
        report.save(folder, overwrite=self.overwrite)
        for name, frame, words in (("pairs", pairs, about), ("summary", summary, {**about, **settings})):
            write_whole(folder / f"{name}.csv", csv_text(frame), self.overwrite)
            rows = json.loads(frame.to_json(orient="records", double_precision=15))  # null for what is not finite
            write_whole(folder / f"{name}.json", json.dumps({**words, name: rows}, indent=2) + "\n", self.overwrite)
        self._written.append(engine.state.epoch)

    def _place(self, epoch: int) -> Path:
        if not self.by_epoch:
            return self.folder
        before = self._written.count(epoch)
        return self.folder / (f"epoch_{epoch:04d}" + (f"_{before + 1}" if before else ""))

    def _patient_of(self, report: RobustnessReport) -> Callable[[str], str] | None:
        if not isinstance(self.patient_of, str):
            return self.patient_of
        cases = [row["case"] for row in report.cases if row["attack"] == CLEAN]
        return dict(zip(cases, self._patients, strict=True)).__getitem__


def _values(batch: Any, key: str, image_key: str) -> list[str]:
    """What each case of a batch, decollated or not, has under a key, of its own or in its image's metadata."""
    if isinstance(batch, (tuple, list)):
        return [str(_plain(_found(item, key, image_key))) for item in batch]
    values = _found(batch, key, image_key)
    return [str(_plain(value)) for value in values]


def _found(item: Any, key: str, image_key: str) -> Any:
    if isinstance(item, dict):
        for holder in (item, getattr(item.get(image_key), "meta", {})):
            if key in holder:
                return holder[key]
    raise ValueError(f"patient_of: expected the key {key!r} in the batch or in the metadata of {image_key!r}; got none")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
