# SPDX-License-Identifier: Apache-2.0
"""`fit_loss`: which changes of form a bundle's loss needs on the outputs and labels that really come, if any."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses import DeepSupervisionLoss

from monai_smia.attacks.heads import LossFunction, is_regression, takes_floats
from monai_smia.bundle.fitting import (
    FittedLoss,
    Step,
    as_floats,
    converts_indices,
    is_library,
    one_hot,
    with_axes,
)
from monai_smia.bundle.outputs import Output

CHANGES = {
    with_axes.__name__: "the label given the prediction's axes",
    one_hot.__name__: "class indices made one-hot",
    as_floats.__name__: "the label made floating",
}


def fit_loss(
    loss_function: LossFunction, prediction: Any, label: torch.Tensor | None, output: Output, *, indices: bool
) -> LossFunction:
    """The loss itself where it reads prediction and label as attacks hand them over, else a `FittedLoss`.

    Attacks themselves make booleans floats, and labels of torch's losses on classes what those want. A loss that is
    neither MONAI's nor torch's is left as it is.

    Args:
        loss_function: a bundle's.
        prediction: the network's.
        label: the loader's; without one the label is what `own_prediction` gives.
        output: the tensor of the prediction that is judged.
        indices: whether the label holds class indices for several channels.
    """
    by_monai, by_torch = (is_library(loss_function, name) for name in ("monai", "torch"))
    if not by_monai and not by_torch:
        return loss_function
    tensor, steps = output(prediction), list[Step]()
    known = 1 if is_regression(loss_function) else 2 if by_monai else 3
    several = not isinstance(prediction, torch.Tensor)
    whole = several and isinstance(loss_function, DeepSupervisionLoss)
    if indices and (takes_floats(loss_function) or converts_indices(loss_function) is False):
        steps = [one_hot]
    elif label is None:
        steps = [with_axes] if by_monai and tensor.ndim == 2 else []
    elif tuple(label.shape) not in layouts(tensor)[:known]:
        steps = [with_axes]
    whole_numbers = label is not None and not label.is_floating_point() and label.dtype != torch.bool
    if whole_numbers and one_hot not in steps and (whole or (by_monai and not indices)):
        steps.append(as_floats)
    if steps or (not whole and (several or output != Output())):
        return FittedLoss(loss_function, tuple(steps), output, whole)
    return loss_function


def changes(loss_function: LossFunction, alone: bool) -> str:
    """What was changed, for the end of a sentence; `alone` says that ``batch=True`` was."""
    found = ["batch=False, the same number for each sample alone"] if alone else []
    if isinstance(loss_function, FittedLoss):
        found += [CHANGES[step.__name__] for step in loss_function.steps]
        found += [] if loss_function.whole or loss_function.output == Output() else ["one output of several"]
    return f", with {'; '.join(found)}" if found else ""


def layouts(output: torch.Tensor) -> list[tuple[int, ...]]:
    """The shapes of labels that criteria read for an output ``BC[HW[D]]``: its own, and two of class indices."""
    batch, _, *spatial = output.shape
    return [tuple(output.shape), (batch, 1, *spatial), (batch, *spatial)]


def needs_axes(label: torch.Tensor | None, output: torch.Tensor) -> bool:
    """Whether the label has none of these shapes, and only axes of length 1 are at fault.

    Raises:
        ValueError: when it fits no layout.
    """
    known = layouts(output)
    if label is None or tuple(label.shape) in known:
        return False
    if _long(tuple(label.shape)) not in (_long(known[0]), _long(known[2])):
        raise ValueError(
            f"label: expected class indices {known[2]} or {known[1]}, or the prediction's shape {known[0]}; "
            f"got {tuple(label.shape)}"
        )
    return True


def _long(shape: tuple[int, ...]) -> list[int]:
    return [n for n in shape[1:] if n > 1]
