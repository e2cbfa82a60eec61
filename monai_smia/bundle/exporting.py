# SPDX-License-Identifier: Apache-2.0
"""`export_cohort`: an adversarial copy of every case of an evaluator as files, from names and units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import CommonKeys

import monai_smia.attacks
from monai_smia.attacks import Attack
from monai_smia.attacks.argument_kinds import did_you_mean
from monai_smia.bundle.cases import as_cases, loader_as_found, use_cases
from monai_smia.bundle.eps import Budget, parse_eps
from monai_smia.bundle.grid import known_attacks
from monai_smia.bundle.probing import probe
from monai_smia.bundle.torchrun import shard_of_process
from monai_smia.engines.guards import postprocessing_of
from monai_smia.export import Cohort, Verification, verify_on_disk, write_cohort
from monai_smia.intensity import IntensityScale

STORED = ("HU", "grey", "intensity", "%")
"""Units of what files hold: the unit of the stored numbers, by any name, or percent of each image's own range."""


@loader_as_found
def export_cohort(
    evaluator: Any,
    attack: str = "SMIA",
    eps: Any = "10HU",
    *,
    loss_function: Any = None,
    steps: int = 10,
    options: Mapping[str, Any] | None = None,
    cases: Any = None,
    bpda: Mapping[str, Any] | None = None,
    qualities: Sequence[int] | None = None,
    naive: bool = False,
    as_png: bool = False,
    deidentify: bool = False,
    keep_link: bool = False,
    intensity: IntensityScale | None = None,
    image_key: str = CommonKeys.IMAGE,
    label_key: str = CommonKeys.LABEL,
    seed: int = 0,
    out: str | Path = "adversarial",
    resume: bool = False,
    retry_failed: bool = False,
    progress: bool = True,
    **shared: Any,
) -> Cohort:
    """Attack every case on its file's own grid and levels, and write an adversarial copy with a manifest.

    Args:
        evaluator: a MONAI `SupervisedEvaluator` whose data set loads its images from files.
        attack: a name in `monai_smia.attacks`.
        eps: one budget with its unit: ``"10HU"``, ``"2grey"``, ``"1%"`` of each image's own range, or ``"5intensity"``
            for stored numbers without a name.
        loss_function: on the network's raw output; ``None`` infers one.
        steps: of an iterated attack.
        options: arguments of the attack.
        cases: how many, the first ones, or file names; ``None`` for all.
        bpda: see `monai_smia.export.native_case`.
        qualities, naive, as_png, deidentify, keep_link: see `monai_smia.export.write_cohort`.
        intensity: physical unit of the network's input, for the report.
        image_key, label_key, seed, resume, retry_failed, progress: see `monai_smia.export.write_cohort`.
        out: folder of the copies.
        shared: further arguments of the attack, if it has them.

    Raises:
        TypeError, ValueError: in one line, naming the argument.
        FileExistsError: when `out` holds something and `resume` is false.
        RuntimeError: in one of several processes that `torchrun` started, and as in `write_cohort`.
    """
    if (share := shard_of_process()) is not None:
        raise RuntimeError(f"export: expected one process, as all would write one manifest; got {share} of torchrun")
    known = known_attacks()
    if attack not in known:
        raise ValueError(f"attack: expected the name of an attack; got {attack!r}{did_you_mean(attack, sorted(known))}")
    budget = stored_budget(eps)
    if cases is not None:
        use_cases(evaluator, as_cases(cases))
    task = _task_of(evaluator, loss_function, image_key, label_key)
    wanted = {"steps": steps, "activation": task.activation, "criterion": task.criterion, **shared}
    strange = set(shared) - known[attack]
    if strange:
        raise TypeError(f"{attack}: expected arguments among {sorted(known[attack])}; got {sorted(strange)}")
    arguments = {name: value for name, value in wanted.items() if name in known[attack]} | dict(options or {})
    relative = budget.unit == "%"
    size = budget.value / 100 if relative else budget.value
    built: Attack = getattr(monai_smia.attacks, attack)(task.loss_function, eps=size, **arguments)
    return write_cohort(
        evaluator,
        built,
        out,
        relative=relative,
        image_key=image_key,
        label_key=label_key,
        bpda=bpda,
        qualities=qualities,
        naive=naive,
        as_png=as_png,
        deidentify=deidentify,
        keep_link=keep_link,
        intensity=intensity,
        unit=budget.unit,
        seed=seed,
        resume=resume,
        retry_failed=retry_failed,
        progress=progress,
    )


def stored_budget(eps: Any) -> Budget:
    """One budget in the unit of what files hold.

    Raises:
        ValueError: for several, and for a unit that a file's numbers do not have.

    Example:
        >>> stored_budget("10HU").value, stored_budget("1%").unit
        (10.0, '%')
    """
    budgets = parse_eps(eps)
    if len(budgets) != 1 or budgets[0].unit not in STORED:
        raise ValueError(f"eps: expected one budget in {', '.join(STORED)}, as files hold it; got {eps!r}")
    return budgets[0]


def verify_cohort(
    evaluator: Any,
    cohort: str | Path,
    *,
    loss_function: Any = None,
    files: str | Path | None = None,
    image_key: str = CommonKeys.IMAGE,
    label_key: str = CommonKeys.LABEL,
    progress: bool = True,
) -> Verification:
    """`monai_smia.export.verify_on_disk` with the loss that `export_cohort` takes.

    Args:
        evaluator: as for `export_cohort`.
        cohort: folder, or its manifest.
        loss_function: on the network's raw output; ``None`` infers one.
        files, image_key, label_key, progress: see `monai_smia.export.verify_on_disk`.
    """
    task = _task_of(evaluator, loss_function, image_key, label_key)
    return verify_on_disk(
        evaluator,
        cohort,
        task.loss_function,
        files=files,
        image_key=image_key,
        label_key=label_key,
        progress=progress,
    )


def _task_of(evaluator: Any, loss_function: Any, image_key: str, label_key: str) -> Any:
    """Loss, head and criterion.

    Raises:
        ValueError: for data without labels.
    """
    post = postprocessing_of(evaluator)
    found = probe(evaluator, loss_function, None, post, None, image_key, label_key, required=True)
    if found.label_free or found.task is None:
        raise ValueError(f"label_key: an attack needs labels; the batches have none under {label_key!r}")
    return found.task
