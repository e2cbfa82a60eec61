# SPDX-License-Identifier: Apache-2.0
"""Checks of the network's outputs: randomness, probabilities in the place of logits and the reverse."""

from __future__ import annotations

from torch import nn

from monai_smia.attacks.heads import main_output
from monai_smia.doctor.examination import Examination
from monai_smia.doctor.log_odds import head_of
from monai_smia.reports.finding import Finding

REPEATS = 2  # of the prediction: a draw from few values may come up twice
RANDOM = 1e-4  # of the largest output, where the order of a sum in single precision changes 1e-6
RANDOM_HALF = 1e-1  # the same for an image in half precision, whose sums differ by a hundredth
SPREAD = 0.25  # of outputs in [0, 1] that do not sum to 1: raw ones of a network that has learnt little vary less
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
SUM = 1e-3  # softmax outputs sum to 1 within rounding, in half precision too; raw outputs do so by accident only


def random_forward(exam: Examination) -> Finding | None:
    """Predictions at the same image that differ."""
    try:
        first = main_output(exam.prediction)
    except TypeError:
        return _random_boxes(exam)
    size, change = float(first.abs().max()), 0.0
    for _ in range(REPEATS):
        other = main_output(exam.query.judge(exam.image))
        if other.shape != first.shape:
            return _random(f"have different shapes, {tuple(first.shape)} and {tuple(other.shape)}")
        change = max(change, float((first - other).abs().max()))
    if change <= (RANDOM_HALF if exam.query.dtype.itemsize < 4 else RANDOM) * size:
        return None
    return _random(f"differ by up to {change:.2g}, {change / size:.1%} of the largest output")


def batch_statistics(exam: Examination) -> Finding | None:
    """Batch normalisation without running statistics: it takes those of the batch, in evaluation mode too."""
    if not isinstance(exam.module, nn.Module):
        return None
    found = [
        name
        for name, module in exam.module.named_modules()
        if isinstance(module, BATCH_NORMS) and module.running_mean is None
    ]
    if not found:
        return None
    shown = ", ".join(repr(name) for name in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return Finding(
        "batch_statistics",
        f"{len(found)} batch normalisation{'s' * (len(found) > 1)} without running statistics: {shown}.",
        "A sample's prediction, and so its attack, depends on the other samples of its batch: the same image has "
        "another result in another batch, and an image may be attacked through its neighbours.",
        "Attack and evaluate one image at a time, or build the layers with track_running_stats=True and train them, or "
        "use instance or group normalisation.",
        "warning",
    )


def _random_boxes(exam: Examination) -> Finding | None:
    """A detector's loss in the place of its outputs, of which no two need belong to one anchor."""
    first = exam.losses(exam.prediction)
    change = (exam.losses(exam.query.judge(exam.image)) - first).abs()
    if not bool((change > RANDOM * first.abs()).any()):
        return None
    return _random(f"differ in their loss by up to {float(change.max()):.2g}")


def _random(words: str) -> Finding:
    return Finding(
        "random_forward",
        f"Predictions at one image {words}.",
        "The network draws at random in evaluation mode: a single gradient is that of one draw, and the attack is "
        "judged on another.",
        "Switch the randomness off, or average the gradient over many draws (expectation over transformation) and "
        "judge over many, too.",
        "error",
    )


def probabilities(exam: Examination) -> Finding | None:
    """Outputs that are probabilities at every image asked for, where the loss expects raw outputs."""
    head = head_of(exam.loss_function, exam.prediction)
    if head not in ("softmax", "sigmoid"):
        return None
    if exam.slope is not None and head == "sigmoid":
        # few raw outputs may lie in [0, 1] by accident, but not when the image is driven to the end of its range
        assert exam.walk
    low = min(low for low, _, _ in exam.outputs)
    high = max(high for _, high, _ in exam.outputs)
    off = max(off for _, _, off in exam.outputs)
    summing = head == "softmax" and off <= SUM
    if low < -SUM or high > 1 + SUM or high - low < (SPREAD if head == "softmax" and not summing else SUM):
        return None
    name = type(exam.loss_function).__name__
    return Finding(
        "probabilities",
        f"All outputs lie between {low:.3g} and {high:.3g}"
        + (" and sum to 1 over the classes" if summing else "")
        + f", while {name} expects raw outputs and applies the {head} itself.",
        "The second activation flattens the loss: its gradient is small and confident samples seem robust.",
        f"Take the {head} off the network, or use a loss on probabilities.",
        "error",
    )


def raw_outputs(exam: Examination) -> Finding | None:
    """Outputs outside [0, 1] where the loss takes probabilities."""
    prediction = exam.prediction
    if head_of(exam.loss_function, prediction) != "none":
        return None
    values = main_output(prediction)
    low, high = float(values.min()), float(values.max())
    if low >= -SUM and high <= 1 + SUM:
        return None
    return Finding(
        "raw_outputs",
        f"Outputs lie between {low:.3g} and {high:.3g}, while {type(exam.loss_function).__name__} was built without an "
        "activation and expects probabilities.",
        "The loss has no meaning there, and an attack that raises it need not worsen the prediction.",
        "Build the loss with sigmoid=True or softmax=True, or put the activation into the network.",
        "warning",
    )
