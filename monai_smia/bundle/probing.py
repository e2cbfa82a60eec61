# SPDX-License-Identifier: Apache-2.0
"""`probe`: what an evaluator's first case says about its head, its loss and its labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks import frozen
from monai_smia.bundle.tasks import Task, infer_task
from monai_smia.engines.batches import Failure, plan
from monai_smia.handlers.batch import autocast_of


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
    """Predict the first case that can be loaded, and read head, loss and labels from it.

    Args:
        evaluator: its ``prepare_batch``, inferer and network are used; the network stays as it is.
        loss_function, criterion, postprocessing, tolerance: see `infer_task`.
        image_key, label_key: of the batch.
        required: whether a head that cannot be read is an error.

    Raises:
        ValueError: in one line, where no case can be loaded or the head cannot be read.
    """
    batch = None
    failures: list[Failure] = []
    for planned in plan(evaluator.data_loader, image_key):
        batch, failures, _ = planned.load(planned.indices[:1])
        if batch is not None:
            break
    if batch is None:
        reason = f"; the last one: {failures[-1].error}" if failures else ""
        raise ValueError(f"dataset_dir: expected at least one case that can be loaded; got none{reason}")
    prepared = evaluator.prepare_batch(batch, evaluator.state.device, evaluator.non_blocking, **evaluator.to_kwargs)
    image, label, args, kwargs = prepared if len(prepared) == 4 else (*prepared, (), {})
    try:
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
    except ValueError:
        if required:
            raise
        task = None
    return Probe(task, label is None)
