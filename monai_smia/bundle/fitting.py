# SPDX-License-Identifier: Apache-2.0
"""A bundle's loss and criterion, fitted to the outputs and labels that its network and loader really give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import Criterion
from monai_smia.attacks.heads import LossFunction, core_loss, ignore_index, is_regression, takes_floats, takes_indices
from monai_smia.attacks.losses import fit_target
from monai_smia.bundle.outputs import Output

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``step(target, output) -> target``; a target that has the form already comes back as it is."""


def with_axes(target: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """The target with the output's axes: its shape where the numbers are as many, else ``(B, 1, ...)`` for indices."""
    batch, _, *spatial = output.shape
    shape = output.shape if target.numel() == output.numel() else (batch, 1, *spatial)
    return target.reshape(shape)


def one_hot(target: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Class indices ``(B, ...)`` or ``(B, 1, ...)`` as floats, one-hot in the output's shape."""
    if target.shape == output.shape:
        return target.to(output.dtype)
    index = with_axes(target, output)[:, 0].long()
    return F.one_hot(index, output.shape[1]).movedim(-1, 1).to(output.dtype)


def as_floats(target: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """The target in the output's precision."""
    return target.to(output.dtype)


@dataclass(frozen=True)
class FittedLoss:
    """A loss behind small changes of form: one tensor of the prediction, axes and dtype of the label.

    Attacks see no class of loss through it; give them the `activation` of the task, where they take one, and its
    `criterion`.

    Args:
        loss_function: any loss on (prediction, target).
        steps: changes of the target, in order.
        output: the tensor that the loss is given, and that the steps look at.
        whole: give the loss the whole prediction, as deep supervision wants.

    Example:
        >>> from monai.losses import DiceLoss
        >>> loss = FittedLoss(DiceLoss(to_onehot_y=True, softmax=True), (with_axes,))
        >>> round(float(loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4))), 3)  # no channel axis in the label
        0.667
        >>> loss
        FittedLoss(DiceLoss, with_axes)
    """

    loss_function: LossFunction
    steps: tuple[Step, ...] = ()
    output: Output = field(default_factory=Output)
    whole: bool = False

    def __call__(self, prediction: Any, target: Any) -> Any:
        tensor = self.output(prediction)
        given = prediction if self.whole else tensor
        if isinstance(target, torch.Tensor):
            target = fit_target(self.loss_function, given, _fitted(self.steps, target, tensor))
        return self.loss_function(given, target)

    def opened(self, prediction: Any, target: torch.Tensor) -> tuple[LossFunction, Any, torch.Tensor]:
        """The loss inside, and what it is given: for the check of labels."""
        tensor = self.output(prediction)
        return self.loss_function, prediction if self.whole else tensor, _fitted(self.steps, target, tensor)

    @property
    def ignore_index(self) -> int | None:
        """The label value that the loss inside leaves out."""
        return ignore_index(self.loss_function)

    def __repr__(self) -> str:
        shown = [name_of(self.loss_function), *(step.__name__ for step in self.steps)]
        return f"FittedLoss({', '.join(shown if self.output == Output() else [*shown, repr(self.output)])})"


@dataclass(frozen=True)
class FittedCriterion(Criterion):
    """A criterion on one tensor of the prediction, and a target with its axes.

    Args:
        criterion: what counts as success.
        steps: changes of the target, in order.
        output: the tensor that is judged.
    """

    criterion: Criterion
    steps: tuple[Step, ...]
    output: Output

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        tensor = self.output(prediction)
        return self.criterion(tensor, _fitted(self.steps, target, tensor))


def is_library(loss_function: LossFunction, library: str) -> bool:
    """Whether the deciding loss is a class or function of ``"torch"`` or ``"monai"``."""
    core = core_loss(loss_function)
    function = takes_indices(core) or takes_floats(core) or is_regression(core)
    return type(core).__module__.partition(".")[0] == library or (library == "torch" and function)


def converts_indices(loss_function: LossFunction) -> bool | None:
    """Whether a loss of MONAI's makes class indices one-hot itself (``to_onehot_y``); ``None`` for any other loss."""
    core = core_loss(loss_function)
    if not isinstance(core, nn.Module) or not is_library(core, "monai"):
        return None
    flags = [part.to_onehot_y for part in core.modules() if hasattr(part, "to_onehot_y")]
    return any(flags) if flags else None


def sample_by_sample(loss_function: LossFunction) -> tuple[LossFunction, bool]:
    """The loss, or where one in it says ``batch=True`` a copy that does not; and whether it is a copy.

    Attacks evaluate each sample alone, for which both give the same number.
    """
    if not isinstance(loss_function, nn.Module):
        return loss_function, False
    if not any(getattr(part, "batch", False) is True for part in loss_function.modules()):
        return loss_function, False
    alone = copy.deepcopy(loss_function)
    for part in alone.modules():
        if getattr(part, "batch", False) is True:
            vars(part)["batch"] = False
    return alone, True


def name_of(loss_function: Any) -> str:
    """A short name: that of the class, or of the function."""
    core = core_loss(loss_function)
    inner = getattr(core, "__name__", type(core).__name__)
    outer = getattr(loss_function, "__name__", type(loss_function).__name__)
    return inner if core is loss_function else f"{outer}({inner})"


def _fitted(steps: tuple[Step, ...], target: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    for step in steps:
        target = step(target, output)
    return target
