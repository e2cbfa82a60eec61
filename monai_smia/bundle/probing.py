# SPDX-License-Identifier: Apache-2.0
"""`probe`: what an evaluator's first case says about its head, its loss and its labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks import checks, frozen
from monai_smia.bundle.tasks import Task, infer_task
from monai_smia.engines.batches import Failure, Planned, plan
from monai_smia.handlers.batch import autocast_of, check_engine

ENOUGH = 3
"""So many first cases that fail tell of the network or the arguments, not of the cases."""


@dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
        task: the head and the loss; ``None`` where they cannot be read and need not be.
        label_free: whether the batches have no labels.
    """

    task: Task | None
    label_free: bool


def probe(
    evaluator: Any,
    loss_function: Any,
    criterion: Any,
    postprocessing: Any,
    tolerance: float | None,
    image_key: str,
    label_key: str,
    required: bool,
) -> Probe:
    """Predict the first case that can be attacked, and read head, loss and labels from it.

    A case that cannot be loaded, or that the network, the loss or a check refuses, is passed over: the evaluation names
    it among the failures. Where the first few fail, what all have in common is the reason.

    Args:
        evaluator: its ``prepare_batch``, inferer and network are used; the network stays as it is.
        loss_function, criterion, postprocessing, tolerance: see `infer_task`.
        image_key, label_key: of the batch.
        required: whether a head that cannot be read is an error.

    Raises:
        ValueError: in one line, where no case can be loaded or the head cannot be read.
    """
    check_engine(evaluator)
    failures: list[Failure] = []
    errors: list[Exception] = []
    label_free = False
    loader = evaluator.data_loader
    cases = _cases(plan(loader, image_key, evaluator.state.epoch_length))
    for batch, failed in cases:
        failures += failed
        if batch is None:
            continue
        try:
            return _probe(evaluator, batch, loss_function, criterion, postprocessing, tolerance)
        except _Refused as refused:
            errors.append(refused.error)
            label_free = refused.label_free
        if len(errors) == ENOUGH:
            break
    if not errors:
        reason = f"; the last one: {failures[-1].error}" if failures else ""
        raise ValueError(f"dataset_dir: expected at least one case that can be loaded; got none{reason}")
    if required or not isinstance(errors[0], ValueError):
        raise errors[0]
    return Probe(None, label_free)


class _Refused(Exception):
    """A case cannot be attacked, for this reason."""

    def __init__(self, error: Exception, label_free: bool) -> None:
        super().__init__()
        self.error, self.label_free = error, label_free


def _cases(batches: Iterable[Planned]) -> Iterator[tuple[Any, list[Failure]]]:
    """Cases in their order, each a batch of one where the loader has an index, and what failed in loading it."""
    for planned in batches:
        single: list[tuple[int, ...]] = [(index,) for index in planned.indices]
        for indices in single or [()]:
            batch, failures, _ = planned.load(indices)
            yield batch, failures


def _probe(
    evaluator: Any, batch: Any, loss_function: Any, criterion: Any, postprocessing: Any, tolerance: float | None
) -> Probe:
    label: Any = None
    try:
        prepared = evaluator.prepare_batch(batch, evaluator.state.device, evaluator.non_blocking, **evaluator.to_kwargs)
        image, label, args, kwargs = prepared if len(prepared) == 4 else (*prepared, (), {})
        if isinstance(image, torch.Tensor) and not bool(torch.isfinite(image).all()):
            raise ValueError("image: expected finite values; got NaN or infinity")
        with torch.no_grad(), frozen(evaluator.network), autocast_of(evaluator):
            prediction = evaluator.inferer(image, evaluator.network, *args, **kwargs)
        task = infer_task(
            prediction,
            label,
            loss_function=loss_function,
            criterion=criterion,
            postprocessing=postprocessing,
            tolerance=tolerance,
            network=evaluator.network,
        )
        if isinstance(label, torch.Tensor) and isinstance(prediction, torch.Tensor):
            checks.check_target(task.loss_function, prediction, label, task.activation)
    except (OSError, MemoryError):  # of the machine, not of the case
        raise
    except Exception as error:
        raise _Refused(error, label is None) from error
    return Probe(task, label is None)
