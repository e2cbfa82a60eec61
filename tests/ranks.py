"""Evaluations in two processes with gloo: what each of them does, importable by a process that is started anew."""

from __future__ import annotations

import datetime
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import torch
from evaluators import Task
from monai.data import DataLoader, Dataset, DistributedSampler
from torch.nn.parallel import DistributedDataParallel

from monai_smia.engines import AttackEvaluator, CaseByCase, evaluate_robustness

RANKS, LIMIT = 2, 1200.0  # seconds; a backstop only, far above what a busy machine needs
TASKS = {"segmentation": Task(2, cases=5), "classification": Task(2, dense=False, cases=5)}
QUIET: dict[str, Any] = {"progress": False, "seed": 3}


def evaluator_of(task: Task, sampler: Any = None, batch_size: int = 1, wrapped: bool = False) -> Any:
    loader = DataLoader(Dataset(task.items()), batch_size=batch_size, sampler=sampler)
    evaluator = task.evaluator(val_data_loader=loader)
    if wrapped:
        evaluator.network = DistributedDataParallel(evaluator.network)
    return evaluator


def by_loader(task: Task, even: bool) -> Any:
    """`evaluate_robustness`, the cases dealt out by MONAI's sampler."""
    sampler = DistributedSampler(Dataset(task.items()), even_divisible=even, shuffle=False)
    return evaluate_robustness(evaluator_of(task, sampler, wrapped=True), task.attacks(), **QUIET)


def by_case(task: Task, folder: Path | None = None, batch_size: int = 2, **more: Any) -> CaseByCase:
    evaluator = evaluator_of(task, batch_size=batch_size, wrapped=torch.distributed.is_initialized())
    return CaseByCase(evaluator, task.attacks(), folder=folder, **{**QUIET, **more})


def doubled(task: Task) -> str:
    """What is said when both processes have all cases."""
    try:
        evaluate_robustness(evaluator_of(task), task.attacks(), diagnose=False, **QUIET)
    except ValueError as error:
        return str(error)
    return ""


def in_one_pass(task: Task) -> str:
    """What is said of a report of one process's cases."""
    sampler = DistributedSampler(Dataset(task.items()), even_divisible=True, shuffle=False)
    loader = DataLoader(Dataset(task.items()), batch_size=1, sampler=sampler)
    evaluator = task.evaluator(AttackEvaluator, val_data_loader=loader, attacks=task.attacks(), progress=False)
    evaluator.run()
    try:
        evaluator.report()
    except RuntimeError as error:
        return str(error)
    return ""


def refused(task: Task, folder: Path) -> str:
    """What each process says where an earlier run left the file of the first."""
    try:
        by_case(task, folder)
    except (FileExistsError, RuntimeError) as error:
        return str(error)
    return ""


def reports(rank: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, task in TASKS.items():
        for even in (True, False):
            found[f"{name} even={even}"] = by_loader(task, even)
        found[f"{name} by case"] = by_case(task).run()
    found["resumed"] = by_case(TASKS["segmentation"], folder / "killed", batch_size=1, resume=True).run()
    found["one pass"] = in_one_pass(TASKS["segmentation"])
    found["refused"] = refused(TASKS["segmentation"], folder / "left")
    found["doubled"] = doubled(TASKS["segmentation"])
    return found


def killed(rank: int, folder: Path) -> None:
    """The second process is killed in the middle of its second batch; the first then waits until it is stopped."""
    run = by_case(TASKS["segmentation"], folder / "killed", batch_size=1)
    attacked, calls = run._attacked, list[str]()

    def attack(name: str, engine: Any) -> Any:
        calls.append(name)
        if rank == 1 and len(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return attacked(name, engine)

    run._attacked = attack  # type: ignore[method-assign]
    run.run()


def work(rank: int, folder: str, stage: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store_{stage}",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=LIMIT),
    )
    if stage == "killed":
        killed(rank, Path(folder))
    else:
        Path(folder, f"{rank}.pkl").write_bytes(pickle.dumps(reports(rank, Path(folder))))
    torch.distributed.destroy_process_group()


def run(folder: Path) -> list[dict[str, Any]]:
    """The results of both processes, after an earlier pair of which one was killed."""
    start = torch.multiprocessing.start_processes
    by_case(TASKS["segmentation"], folder / "left", shard="1/2", diagnose=False).run()
    try:
        start(work, (str(folder), "killed"), RANKS, start_method="spawn")
    except torch.multiprocessing.ProcessExitedException as error:
        assert error.signal_name == "SIGKILL"  # noqa: PT017 - not in a test
    start(work, (str(folder), "reports"), RANKS, start_method="spawn")
    return [pickle.loads(Path(folder, f"{rank}.pkl").read_bytes()) for rank in range(RANKS)]
