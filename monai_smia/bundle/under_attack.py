# SPDX-License-Identifier: Apache-2.0
"""`evaluate_under_attack`: an evaluator as it is, attacked at budgets in its own units, with a report in a folder."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from monai.utils import CommonKeys
from tqdm.auto import tqdm

from monai_smia.attacks import Attack, Criterion
from monai_smia.bundle.budget_grid import BudgetGrid, grid_of
from monai_smia.bundle.cases import as_cases, loader_as_found, use_cases
from monai_smia.bundle.certifying import check_decides, noise_of
from monai_smia.bundle.eps import Budget, default_eps, parse_eps
from monai_smia.bundle.grid import known_attacks
from monai_smia.bundle.honoured import refuse_ignored, refuse_unused
from monai_smia.bundle.label_free import without_labels
from monai_smia.bundle.probing import Probe, probe
from monai_smia.bundle.provenance import data_checksum, hardware, list_checksum
from monai_smia.bundle.report_files import FILES, write_report
from monai_smia.bundle.structures import named_structures
from monai_smia.bundle.units import IntensityReading, read_intensity
from monai_smia.bundle.view_keeper import ViewKeeper
from monai_smia.engines import CaseByCase
from monai_smia.engines.batches import Failure
from monai_smia.engines.folder_lock import FolderInUse, FolderLock
from monai_smia.engines.guards import postprocessing_of
from monai_smia.engines.keeping import holding
from monai_smia.engines.shards import Shard, group_shard, missing_shards
from monai_smia.intensity import IntensityScale
from monai_smia.reports import Reading, RobustnessReport
from monai_smia.reports.own_files import OwnFiles, clear_temporary

FINISHED = "finished attacks have their own; expected names of attacks instead"
ATTACKS = ("SMIA", "PGD", "GaussianNoise")
"""What is tried where nothing else is asked for: the paper's attack, the field's, and noise of the same size."""


@dataclass(frozen=True)
class Outcome:
    """What an evaluation under attack gave.

    Attributes:
        report: clean and adversarial metrics.
        failures: cases that failed.
        folder: where everything was written.
        page: the HTML page; ``None`` for a shard that is done before others are, of which `report` has the cases.
        missing: the shards that are not finished.
    """

    report: RobustnessReport
    failures: tuple[Failure, ...]
    folder: Path
    page: Path | None
    missing: tuple[str, ...] = ()


@holding("out")
@loader_as_found
def evaluate_under_attack(
    evaluator: Any,
    attacks: Sequence[str] | str | Mapping[str, Attack] = ATTACKS,
    eps: Any = None,
    *,
    unit: str | None = None,
    steps: int | None = None,
    cases: Any = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    loss_function: Any = None,
    criterion: Criterion | None = None,
    tolerance: float | None = None,
    preprocessing: Any = None,
    postprocessing: Any = None,
    bounds: tuple[float, float] | None = None,
    intensity: IntensityScale | None = None,
    modality: str | None = None,
    value_range: Sequence[float] | None = None,
    label_names: Any = (),
    image_key: str = CommonKeys.IMAGE,
    label_key: str = CommonKeys.LABEL,
    mask_key: str | None = None,
    seed: int = 0,
    certify: Any = None,
    views: int = 4,
    out: str | Path = "under_attack",
    resume: bool = False,
    retry_failed: bool = False,
    shard: Any = None,
    diagnose: bool = True,
    about: Mapping[str, str] | None = None,
    title: str = "Robustness to adversarial attacks",
    progress: bool = True,
    **shared: Any,
) -> Outcome:
    """Evaluate clean and under attack, case by case, and write the report.

    Data, network, inferer, postprocessing and metrics are the evaluator's own. What it does not say (the head, the
    loss, the intensity range) is read from its first case and its transforms, and said in the report. Batches without
    labels are attacked against the network's own clean prediction, and the report says that too.

    Args:
        evaluator: a MONAI `SupervisedEvaluator` or a subclass.
        attacks: names in `monai_smia.attacks`, or finished attacks by name.
        eps: budgets, see `monai_smia.bundle.parse_eps`; ``None`` takes `default_eps` of the unit that is found.
        unit: of those numbers in `eps` that have none.
        steps: of the iterated attacks; ``None`` for 10.
        cases: how many, the first ones, or file names; ``None`` for all.
        options: attack's name to arguments of its own.
        loss_function: on the network's raw output; ``None`` infers one.
        criterion: what counts as success; ``None`` for the task's usual one.
        tolerance: of a regression, see `infer_task`.
        preprocessing, postprocessing: ``None`` takes the dataset's transform and the evaluator's.
        bounds: of the network's input; ``None`` reads them.
        intensity: the physical unit; ``None`` reads it.
        modality, value_range: what the bundle's metadata say, as a help for reading the unit.
        label_names: names of the classes, for the report.
        image_key, label_key, mask_key, seed: as in `AttackHandler`.
        certify: noise to certify the clean images under, such as ``"20HU"``, or a mapping with it as ``"sigma"`` and
            further arguments of `monai_smia.certificates.certify`; ``None`` for no certificates.
        views: how many cases the report shows pictures of, the worst.
        out: folder of the report.
        resume: go on with a run that was interrupted there; of shards that are all finished it makes the report.
        retry_failed: go on with it, and try the cases again that failed.
        shard: ``"i/n"``, the i-th of n shares of the batches, counted from 1, as for the tasks of a job array: all of
            the same `out` and arguments. The one that is finished last writes the report. ``None`` for all, or in a
            distributed group for the share of this process; its first process writes the report.
        diagnose: look for reasons not to believe the numbers, see `monai_smia.diagnose`; they stand in the report.
        about: further rows of "How it was made".
        title: of the page.
        progress: show a bar, and say what was found.
        shared: further arguments of every attack that has them, such as ``norm``.

    Returns:
        Report, failures and where they were written.

    Raises:
        TypeError, ValueError: in one line, naming the argument; also for one that would have no effect, such as `eps`
            beside finished attacks.
        FileExistsError: when `out` holds an earlier run and `resume` is false, or what is not of this program.
        FolderInUse: when another run writes into `out`.
        MachineFault: when the machine fails (a full disk, no memory): what is done is kept.
        RuntimeError: when nothing could be evaluated.

    Example:
        .. code-block:: python

            outcome = evaluate_under_attack(evaluator, ["SMIA", "PGD"], "2HU,5HU,10HU", out="report")
            print(outcome.report.to_markdown())
    """
    folder = Path(out).absolute()
    if cases is not None:
        use_cases(evaluator, as_cases(cases))
    shard = None if shard is None else Shard.of(shard)
    resume = resume or retry_failed
    _check_place(folder, resume, shard)
    transform = preprocessing if preprocessing is not None else _transform_of(evaluator)
    post = postprocessing if postprocessing is not None else postprocessing_of(evaluator)
    ready = dict(attacks) if isinstance(attacks, Mapping) else None
    if ready is not None:
        numbers: dict[str, Any] = {"eps": eps, "unit": unit, "steps": steps, "options": options, "bounds": bounds}
        refuse_ignored(FINISHED, **numbers, criterion=criterion, tolerance=tolerance, **shared)
    if ready is not None or intensity is not None:
        hints: dict[str, Any] = {"preprocessing": preprocessing, "modality": modality, "value_range": value_range}
        refuse_ignored("the intensity is not read where it, or finished attacks are given", **hints)
    if eps is None:
        refuse_ignored("it is the unit of the numbers in eps; expected eps as well", unit=unit)
    reading = IntensityReading.unknown()
    if intensity is not None:
        reading = _given(intensity)
    elif ready is None:
        reading = read_intensity(transform, image_key, modality=modality, value_range=value_range)
    if ready is None:  # what is wrong with it is said before anything is computed
        eps = default_eps(reading) if eps is None else parse_eps(_with_unit(eps, unit), reading)
    certify = noise_of(certify, reading)
    found = probe(evaluator, loss_function, criterion, post, tolerance, image_key, label_key, required=ready is None)
    check_decides(certify, found.task)
    if criterion is not None or (found.task is not None and found.task.kind != "regression"):
        refuse_ignored("it is for a regression, and without a criterion", tolerance=tolerance)
    grid = BudgetGrid(ready or {}, {}, reading)
    if ready is None:
        grid = _grid(attacks, eps, reading, found, bounds, criterion, {"steps": steps, **shared}, options)
        intensity = reading.scale
    prepare = None
    if found.label_free:
        if found.task is None or ready is not None:
            raise ValueError(f"label_key: an attack needs labels; the batches have none under {label_key!r}")
        evaluator, prepare = without_labels(evaluator, found.task, image_key, label_key)
    words = _words(evaluator, grid, found, seed, about)
    if progress:
        for name in ("task", "loss", "intensity", "labels"):
            if name in words:
                tqdm.write(f"{name}: {words[name]}", file=sys.stderr)
    detections = found.task is not None and found.task.kind == "detection"
    progress_folder = folder / "progress"
    own = shard if shard is not None else group_shard()
    keeper = ViewKeeper(
        progress_folder if own is None else progress_folder / own.name,
        keep=views,
        activation="softmax" if found.task is None else found.task.activation,
        intensity=intensity,
        label_names=() if detections else label_names,  # of a detector's raw head
        detections=detections,
        image_key=image_key,
        label_key=label_key,
    )
    settings = {**grid.described(), "seed": str(seed), "cases": list_checksum(_dataset_of(evaluator))}
    if certify is not None:
        settings["certify"] = str(certify)
    if tolerance is not None:
        settings["tolerance"] = str(tolerance)
    run = CaseByCase(
        evaluator,
        grid.attacks,
        image_key=image_key,
        label_key=label_key,
        mask_key=mask_key,
        seed=seed,
        intensity=intensity,
        certify=certify,
        folder=progress_folder,
        settings=settings,
        resume=resume,
        retry_failed=retry_failed,
        shard=shard,
        fitted=grid.fitted,
        prepare=prepare,
        watchers=[keeper],
        diagnose=diagnose,
        progress=progress,
    )
    keeper.known(run.state.names)
    report = run.concluded(dataclasses.replace(run.run(), attacks=grid.described()))
    if not run.complete:
        return Outcome(report, run.failures, folder, None, tuple(missing_shards(progress_folder)))
    if not run.state.names:
        raise RuntimeError(_nothing(run.failures))
    page = folder / "report.html"
    if idist.get_rank() == 0 or shard is not None:
        words |= {f"seconds in {name}": f"{seconds:.1f}" for name, seconds in run.state.seconds.items()}
        page = _written(
            folder,
            report,
            shard is not None,
            views=keeper.views(run.case_names(), sorted(progress_folder.glob("shard-*-of-*/"))),
            about=words,
            failures=run.failures,
            title=title,
            reading=Reading(names=named_structures(report, label_names)),
        )
    if shard is None:
        idist.barrier()
    return Outcome(report, run.failures, folder, page)


def _check_place(folder: Path, resume: bool, shard: Shard | None) -> None:
    own = "progress.pt" if shard is None else f"{shard.name}.pt"
    files = OwnFiles(folder)
    files.refuse_links("progress", "views")
    there = [name for name in (*FILES, f"progress/{own}") if (folder / name).exists() or (folder / name).is_symlink()]
    if there and not resume:
        raise FileExistsError(
            f"out: {folder / there[0]} exists; expected a new folder, or resume to go on with that run"
        )
    files.refuse_others(FILES)
    if shard is None and group_shard() is None:
        clear_temporary(folder, folder / "progress", folder / "views")


def _written(folder: Path, report: RobustnessReport, shared: bool, **arguments: Any) -> Path:
    """The report's files, in place of those of an earlier report of this run alone.

    Of shards that finish together (`shared`) one writes it, which is the same report.
    """
    with ExitStack() as stack:
        try:
            if shared:
                stack.enter_context(FolderLock(folder, "report"))
            made = stack.enter_context(OwnFiles(folder).replacing())
            write_report(made, report, **arguments)
        except FolderInUse:
            pass
    return folder / "report.html"


def _dataset_of(evaluator: Any) -> Any:
    return getattr(evaluator.data_loader, "dataset", None)


def _grid(
    attacks: Any,
    budgets: Sequence[Budget],
    reading: IntensityReading,
    found: Probe,
    bounds: Any,
    criterion: Criterion | None,
    shared: dict[str, Any],
    options: Mapping[str, Mapping[str, Any]] | None,
) -> BudgetGrid:
    assert found.task is not None
    names = attack_names(attacks)
    refuse_unused(shared, names, known_attacks())
    shared["steps"] = 10 if shared.get("steps") is None else shared["steps"]
    bounds = tuple(bounds) if bounds is not None else reading.bounds
    criterion = criterion if criterion is not None else found.task.criterion
    activation = found.task.activation
    return grid_of(
        names,
        budgets,
        found.task.loss_function,
        reading,
        options=options,
        **{"bounds": bounds, "criterion": criterion, "activation": activation, **shared},
    )


def attack_names(attacks: Sequence[str] | str) -> list[str]:
    """Names from a sequence, or from a text with commas."""
    return [name.strip() for name in attacks.split(",")] if isinstance(attacks, str) else list(attacks)


def _with_unit(eps: Any, unit: str | None) -> Any:
    if unit is None:
        return eps
    numbers = eps.split(",") if isinstance(eps, str) else eps if isinstance(eps, (list, tuple)) else [eps]
    return [f"{number:g}{unit}" if isinstance(number, (int, float)) else _united(number, unit) for number in numbers]


def _united(text: Any, unit: str) -> Any:
    """A text that is a number and nothing else, with its unit."""
    try:
        float(text)
    except (TypeError, ValueError):
        return text
    return f"{text.strip()}{unit}"


def _given(intensity: IntensityScale) -> IntensityReading:
    return IntensityReading(
        scale=intensity,
        bounds=intensity.bounds,
        units=(intensity.unit,),
        default_unit=intensity.unit,
        said=f"1 network unit is {intensity.unit_size:g} {intensity.unit}, as given",
        missing=None,
    )


def _words(
    evaluator: Any, grid: BudgetGrid, found: Probe, seed: int, about: Mapping[str, str] | None
) -> dict[str, str]:
    """The rows of "How it was made"."""
    words = dict(about or {})
    if found.task is not None:
        words["task"] = f"{found.task.kind}, {found.task.activation} head"
        words["loss"] = " ".join(found.task.said).removeprefix("Loss: ")
    if grid.reading.said:
        words["intensity"] = grid.reading.said
    if found.label_free:
        words["labels"] = "none: the attacks lead away from the network's own clean prediction, and so do the metrics"
    words |= {
        "seed": str(seed),
        "data": data_checksum(_dataset_of(evaluator)),
        "hardware": hardware(torch.device(evaluator.state.device)),
    }
    return words


def _transform_of(evaluator: Any) -> Any:
    return getattr(_dataset_of(evaluator), "transform", None)


def _nothing(failures: Sequence[Failure]) -> str:
    if not failures:
        return "evaluator: its loader gave no case"
    first = failures[0]
    return f"evaluator: all {len(failures)} cases failed; the first, {first.case}, in {first.stage}: {first.error}"
