"""Training in two processes with gloo: what each of them does, importable by a process that is started anew."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

import torch
from evaluators import CPU, EPS, Task
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from trainers import SeedDropout, optimizer_of

from monai_smia.attacks import FGSM, PGD
from monai_smia.attacks.tpgd import TPGD
from monai_smia.engines.robust_trainer import RobustTrainer
from monai_smia.handlers import AttackHandler
from monai_smia.handlers.overfitting_alarm import OverfittingAlarm
from monai_smia.losses import TRADESLoss

RANKS, LIMIT = 2, 1200.0  # seconds; a backstop only, far above what a busy machine needs
TASK = Task(2, cases=8)
STEP, STEPS = 0.04, 2
LINF: dict[str, Any] = {"eps": EPS, "bounds": (0.0, 1.0)}
SPARSE = 0.3  # probability of the run in which a batch has nothing to attack


def batches_of(rank: int) -> list[dict[str, torch.Tensor]]:
    """Two batches of two cases, others for each process."""
    return TASK.batches(2)[rank::RANKS]


def train(network: nn.Module, rank: int, loss: Any, kind: Any = SupervisedTrainer, **arguments: Any) -> Any:
    trainer = kind(
        device=CPU,
        max_epochs=arguments.pop("max_epochs", 2),
        train_data_loader=batches_of(rank),
        network=network,
        optimizer=optimizer_of(network),
        loss_function=loss,
        **arguments,
    )
    trainer.run()
    return trainer


def handled(rank: int) -> nn.Module:
    """PGD-AT."""
    network, handler = TASK.network(), AttackHandler(PGD(TASK.loss(), steps=STEPS, step_size=STEP, **LINF))
    train(DistributedDataParallel(network), rank, TASK.loss(), train_handlers=[SeedDropout(), handler])
    return network


def sparse(rank: int) -> tuple[nn.Module, list[int]]:
    """PGD-AT of few samples, drawn by each process for itself; and how many each batch had."""
    network, counts = TASK.network(), []
    handler = AttackHandler(PGD(TASK.loss(), steps=STEPS, step_size=STEP, **LINF), probability=SPARSE, seed=10 * rank)

    class Count:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: counts.append(len(e.state.attacked)))

    train(DistributedDataParallel(network), rank, TASK.loss(), train_handlers=[SeedDropout(), handler, Count()])
    return network, counts


def trades(rank: int) -> nn.Module:
    """TRADES: two predictions for one gradient."""
    network = TASK.network()
    wrapped = DistributedDataParallel(network, broadcast_buffers=False)
    attack = TPGD(TASK.loss(), steps=STEPS, step_size=STEP, **LINF)
    train(wrapped, rank, TRADESLoss(TASK.loss()), RobustTrainer, attack=attack, train_handlers=[SeedDropout()])
    return network


def alarmed(rank: int) -> tuple[int, dict[str, float]]:
    """The last epoch of a training that the alarm may stop, and the alarm's metrics.

    The processes see other losses; only their mean decides.
    """
    network = TASK.network()
    handler = AttackHandler(FGSM(TASK.loss(), eps=0.0))
    probe = PGD(TASK.loss(), steps=1, eps=0.5 if rank else 0.0)  # the first process alone would find nothing
    alarm = OverfittingAlarm(handler, probe, measure="loss", threshold=1e-4, terminate=True)
    wrapped = DistributedDataParallel(network)
    trainer = train(wrapped, rank, TASK.loss(), train_handlers=[SeedDropout(), handler, alarm], max_epochs=3)
    return trainer.state.epoch, trainer.state.metrics


def work(rank: int, folder: str) -> None:
    """Everything, in one start of the processes; the results go to a file for each."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=LIMIT),
    )
    network, counts = sparse(rank)
    results = {
        "handled": handled(rank).state_dict(),
        "sparse": network.state_dict(),
        "counts": counts,
        "trades": trades(rank).state_dict(),
        "alarmed": alarmed(rank),
    }
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def run(folder: Path) -> list[dict[str, Any]]:
    """The results of both processes.

    Raises:
        TimeoutError: when they are not done in time; they are stopped.
    """
    context = torch.multiprocessing.start_processes(work, (str(folder),), RANKS, join=False, start_method="spawn")
    end = time.monotonic() + LIMIT
    while not context.join(timeout=1.0):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"the processes did not finish within {LIMIT:g} s")
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]
