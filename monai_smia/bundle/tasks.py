# SPDX-License-Identifier: Apache-2.0
"""`infer_task`: what kind of head a bundle has, with which loss it is attacked, and what counts as success."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.data import MetaTensor

from monai_smia.attacks import Criterion, DiceBelow, Misclassification
from monai_smia.attacks.detection import HeadOutputs
from monai_smia.attacks.heads import LossFunction, ignore_index
from monai_smia.attacks.losses import check_loss, per_sample
from monai_smia.bundle.default_loss import default_loss
from monai_smia.bundle.evidence import from_postprocessing
from monai_smia.bundle.fit_loss import changes, fit_loss, needs_axes
from monai_smia.bundle.fitting import FittedCriterion, name_of, sample_by_sample, with_axes
from monai_smia.bundle.head import MEANING, Head, decide_head
from monai_smia.bundle.outputs import Output, find_output, is_detection
from monai_smia.bundle.own_prediction import own_prediction
from monai_smia.bundle.regression import ErrorAbove, why_regression


@dataclass(frozen=True)
class Task:
    """What is attacked, ready for an attack's arguments.

    Attributes:
        kind: ``"classification"``, ``"multilabel classification"``, ``"segmentation"``, ``"multilabel segmentation"``,
            ``"regression"`` or ``"detection"``.
        activation: between raw output and probability, ``"softmax"``, ``"sigmoid"`` or ``"none"``: the attacks'
            `activation`.
        loss_function: the bundle's, fitted where its labels need it, or the one inferred.
        criterion: what counts as success.
        channels: of the output; of a detector the classes, 0 where they are not known.
        said: sentences for a person: where the loss comes from, what was inferred, and why.
        output: the tensor of the prediction that is judged.
    """

    kind: str
    activation: str
    loss_function: LossFunction
    criterion: Criterion | None
    channels: int
    said: tuple[str, ...]
    output: Output = field(default_factory=Output, kw_only=True)


def infer_task(
    prediction: Any,
    label: Any,
    *,
    loss_function: LossFunction | None = None,
    criterion: Criterion | None = None,
    postprocessing: Any = None,
    tolerance: float | None = None,
    activation: str | None = None,
    network: Any = None,
) -> Task:
    """The task of a bundle, from one real batch and whatever the bundle says of it.

    The activation is read from the loss's flags, then the postprocessing, then the values of the prediction (channels
    that sum to 1 hold probabilities), then the label's shape. The loss is tried on the batch before it is returned.

    Args:
        prediction: raw output of the network, in the mode in which it is attacked: ``BC[HW[D]]``, a sequence of several
            resolutions or ``(B, n, C, ...)`` (deep supervision).
        label: as the loader gives it: class indices ``(B,)``, ``(B, HW[D])`` or ``(B, 1, HW[D])``, or one-hot, several
            at once or numbers in the prediction's shape; ``None`` where there is none and `own_prediction` is left.
        loss_function: the bundle's; ``None`` infers one.
        criterion: what counts as success; ``None`` takes a wrong decision for classifiers, a mean Dice under 0.5 for
            dense outputs and for a regression `ErrorAbove` of `tolerance`.
        postprocessing: the bundle's transforms after the network, instantiated.
        tolerance: error of a regression from which the attack succeeded, in the label's unit.
        activation: ``"softmax"``, ``"sigmoid"`` or ``"none"`` (probabilities), where a person knows better; it settles
            a contradiction.
        network: refused, or known for a detector, by its class.

    Raises:
        TypeError: when `loss_function` is not callable.
        ValueError: when two sources contradict each other, naming both; when the loss refuses the batch; when a
            regression has neither `tolerance` nor `criterion`; for what is not covered, by name: a detector without a
            loss and criterion of its own, dictionaries of heads (HoVerNet), prompts (VISTA3D).

    Example:
        >>> task = infer_task(torch.randn(2, 3, 8, 8), torch.zeros(2, 1, 8, 8))
        >>> task.kind, task.activation, type(task.loss_function).__name__
        ('segmentation', 'softmax', 'DiceCELoss')
        >>> print(task.said[0])
        Loss: DiceCELoss(to_onehot_y=True, softmax=True), inferred, as the bundle brings none.
    """
    if loss_function is not None and not callable(loss_function):
        raise TypeError(f"loss_function: expected a callable or None; got {type(loss_function).__name__}")
    if is_detection(prediction, label, network):
        return _detection(prediction, loss_function, criterion)
    prediction, label = _plain(prediction), _plain(label)
    chosen, sentence = find_output(prediction, label, network)
    output = chosen(prediction)
    needs_axes(label, output)
    aligned = None if label is None else with_axes(label, output)
    why = None
    if activation is None:
        why = why_regression(loss_function, from_postprocessing(postprocessing, output), aligned, output)
    if why is not None:
        task = _regression(loss_function, criterion, tolerance, why, prediction, label, chosen)
    else:
        head = decide_head(
            output, aligned, loss_function=loss_function, postprocessing=postprocessing, activation=activation
        )
        task = _classes(head, loss_function, criterion, prediction, label, chosen)
    more = [sentence, "" if label is not None else "Labels: none; the network's own clean prediction is attacked."]
    task = dataclasses.replace(task, said=(*task.said, *filter(None, more)))
    _try(task, prediction, own_prediction(prediction, task) if label is None else label, len(output))
    return task


def _detection(prediction: Any, loss_function: LossFunction | None, criterion: Criterion | None) -> Task:
    if loss_function is None or criterion is None:
        missing = " and ".join(
            name for name, value in (("loss_function", loss_function), ("criterion", criterion)) if value is None
        )
        raise ValueError(
            f"{missing}: this is a detector (boxes), for which none is inferred; expected both with the bundle, such "
            "as DetectionLoss(heads) and BoxesMissed(heads) of heads = DetectorHeads(detector)"
        )
    classes = prediction.classification.shape[-1] if isinstance(prediction, HeadOutputs) else 0
    said = (f"Loss: the bundle's {name_of(loss_function)}, as it is.", f"Success: the bundle's {criterion!r}.")
    return Task("detection", "none", loss_function, criterion, classes, said)


def _regression(
    loss_function: LossFunction | None,
    criterion: Criterion | None,
    tolerance: float | None,
    why: str,
    prediction: Any,
    label: torch.Tensor | None,
    chosen: Output,
) -> Task:
    output = chosen(prediction)
    if criterion is None:
        if tolerance is None:
            raise ValueError(
                f"tolerance: {why}, so this is a regression, whose success only you can define; expected the mean "
                "absolute error, in the label's unit, from which an attack succeeded (or a `criterion`); got None"
            )
        criterion = ErrorAbove(tolerance)
    if label is not None and label.numel() != output.numel():
        raise ValueError(
            f"label: {why}, so it needs as many numbers as the prediction {tuple(output.shape)}; "
            f"got {tuple(label.shape)}"
        )
    loss: LossFunction = torch.nn.MSELoss() if loss_function is None else loss_function
    fitted = fit_loss(loss, prediction, label, chosen, indices=False)
    origin = "MSELoss(), inferred, as the bundle brings none" if loss_function is None else _given(loss)
    said = (
        f"Loss: {origin}{changes(fitted, False)}.",
        f"Head: regression, because {why}.",
        f"Success: {criterion!r}.",
    )
    judged = criterion if chosen == Output() else FittedCriterion(criterion, (), chosen)
    return Task("regression", "none", fitted, judged, output.shape[1], said, output=chosen)


def _classes(
    head: Head,
    loss_function: LossFunction | None,
    criterion: Criterion | None,
    prediction: Any,
    label: torch.Tensor | None,
    chosen: Output,
) -> Task:
    output = chosen(prediction)
    channels, dense, alone = output.shape[1], output.shape[2:].numel() > 1, False
    if loss_function is None:
        inferred, text = default_loss(head, channels, dense)
        loss: LossFunction = inferred
        origin = f"{text}, inferred, as the bundle brings none"
    else:
        loss, alone = sample_by_sample(loss_function)
        origin = _given(loss)
    check_loss(loss)
    fitted = fit_loss(loss, prediction, label, chosen, indices=head.indices)
    decided = "softmax" if head.exclusive else head.activation  # argmax reads logits and probabilities alike
    if criterion is None:
        ignored = ignore_index(loss)
        criterion = DiceBelow(activation=decided, ignore_index=ignored) if dense else Misclassification(decided)
    said = (
        f"Loss: {origin}{changes(fitted, alone)}.",
        f"Head: {MEANING[head.activation]}, read from {head.why}"
        f"{'; the largest channel is chosen' if head.exclusive and head.activation != 'softmax' else ''}.",
        f"Success: {criterion!r}.",
    )
    steps = (with_axes,) if needs_axes(label, output) else ()
    judged = FittedCriterion(criterion, steps, chosen) if steps or chosen != Output() else criterion
    kind = "segmentation" if dense else "classification"
    kind = f"multilabel {kind}" if channels > 1 and not head.exclusive else kind
    return Task(kind, head.activation, fitted, judged, channels, said, output=chosen)


def _given(loss_function: LossFunction) -> str:
    return f"the bundle's {name_of(loss_function)}"


def _try(task: Task, prediction: Any, label: torch.Tensor, batch: int) -> None:
    """Loss and criterion on the batch, so that what they refuse is known before an attack."""
    with torch.no_grad():
        try:
            values = per_sample(task.loss_function, prediction, label, batch)
        except RuntimeError as error:  # torch's way of refusing shapes and dtypes
            raise ValueError(
                f"loss_function: {task.loss_function!r} refuses a prediction {tuple(task.output(prediction).shape)} "
                f"with a label {tuple(label.shape)} {label.dtype}: {error}"
            ) from error
        if not bool(values.isfinite().all()):
            raise ValueError(f"loss_function: expected finite values on the batch; got {values.tolist()}")
        if task.criterion is not None:
            task.criterion(prediction, label)


def _plain(value: Any) -> Any:
    """Tensors without metadata and graph."""
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(_plain(item) for item in value)
    if not isinstance(value, torch.Tensor):
        return value
    return (value.as_tensor() if isinstance(value, MetaTensor) else value).detach()
