# SPDX-License-Identifier: Apache-2.0
"""Evaluation without labels: under attack, how far does a network leave its own clean prediction?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ignite.metrics import Accuracy
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import DiceMetric
from monai.networks import one_hot
from monai.utils import CommonKeys

from monai_smia.attacks import frozen
from monai_smia.bundle.own_prediction import own_prediction
from monai_smia.bundle.tasks import Task
from monai_smia.engines.guards import loaders
from monai_smia.handlers.batch import autocast_of


def without_labels(
    evaluator: Any, task: Task, image_key: str = CommonKeys.IMAGE, label_key: str = CommonKeys.LABEL
) -> tuple[SupervisedEvaluator, Callable[[Any], Any]]:
    """An evaluator of the same network, inferer and data, whose labels are the network's own clean predictions.

    Its metric is ``dice_with_clean_prediction`` for dense heads, ``same_decision_as_clean`` for classifiers; both are 1
    without an attack. Nothing of the given evaluator's postprocessing runs, so that no file is written.

    Args:
        evaluator: what predicts.
        task: its head.
        image_key, label_key: of the batch; the prediction is put under the second.

    Returns:
        The evaluator, and what gives a batch its label.

    Raises:
        ValueError: for a head whose prediction is no decision (regression, detection).
    """
    if task.kind in ("regression", "detection"):
        raise ValueError(f"label_key: a {task.kind} without labels has no clean decision to compare with; give labels")
    dense = "segmentation" in task.kind
    take = from_engine([CommonKeys.PRED, CommonKeys.LABEL])
    dice = DiceMetric(include_background=True, reduction="mean", ignore_empty=False)  # nothing and nothing agree
    metric: dict[str, Any] = {"dice_with_clean_prediction": IgniteMetricHandler(metric_fn=dice, output_transform=take)}
    if not dense:
        metric = {"same_decision_as_clean": Accuracy(output_transform=take)}

    def prepare(batch: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> tuple[Any, Any]:
        image, label = batch[image_key].to(device, non_blocking=non_blocking, **kwargs), batch.get(label_key)
        return image, None if label is None else label.to(device)

    def discrete(item: dict[str, Any]) -> dict[str, Any]:
        label = torch.as_tensor(item[CommonKeys.LABEL])
        output = item[CommonKeys.PRED]
        output = output[None] if isinstance(output, torch.Tensor) else [level[None] for level in output]
        decided = own_prediction(output, task)[0].reshape(label.shape)
        if not dense:
            same = torch.equal(decided.to(label), label)
            return {**item, CommonKeys.PRED: torch.tensor(int(same)), CommonKeys.LABEL: torch.tensor(1)}
        pair = [value.float() for value in (decided, label)]
        if not decided.is_floating_point():  # indices of exclusive classes
            pair = [one_hot(value[None], task.channels)[0][1:] for value in pair]
        return {**item, CommonKeys.PRED: pair[0], CommonKeys.LABEL: pair[1]}

    again = SupervisedEvaluator(
        device=evaluator.state.device,
        val_data_loader=evaluator.data_loader,
        network=evaluator.network,
        epoch_length=evaluator.state.epoch_length,
        inferer=evaluator.inferer,
        prepare_batch=prepare,
        postprocessing=discrete,
        key_val_metric=metric,
        val_handlers=loaders(evaluator),
        amp=evaluator.amp,
        to_kwargs=evaluator.to_kwargs,
        amp_kwargs=evaluator.amp_kwargs,
    )

    def labelled(batch: Any) -> Any:
        if not isinstance(batch, dict):
            raise ValueError(f"label_key: expected batches that are dictionaries; got a {type(batch).__name__}")
        image = batch[image_key].to(again.state.device)
        with torch.no_grad(), frozen(again.network), autocast_of(again):
            prediction = again.inferer(image, again.network)
        return {**batch, label_key: own_prediction(prediction, task)}

    return again, labelled
