# SPDX-License-Identifier: Apache-2.0
"""Networks that predict numbers, such as landmarks: how they are known, and `ErrorAbove`, success against them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from monai.losses import (
    GlobalMutualInformationLoss,
    JukeboxLoss,
    LocalNormalizedCrossCorrelationLoss,
    PerceptualLoss,
    SSIMLoss,
)

from monai_smia.attacks import Criterion, checks
from monai_smia.attacks.heads import LossFunction, core_loss, is_regression, main_output
from monai_smia.bundle.evidence import Evidence, from_values, one_class_each
from monai_smia.bundle.fitting import is_library, name_of

IMAGE_SIMILARITIES = (
    GlobalMutualInformationLoss,
    JukeboxLoss,
    LocalNormalizedCrossCorrelationLoss,
    PerceptualLoss,
    SSIMLoss,
)
"""MONAI's losses between images, whose prediction holds intensities."""


@dataclass(frozen=True)
class ErrorAbove(Criterion):
    r"""The sample's mean absolute error is above a tolerance.

    .. math:: \frac{1}{n} \sum_{i=1}^{n} |f(x)_i - y_i| > \tau

    Args:
        tolerance: :math:`\tau \ge 0`, in the label's unit: voxels for landmarks in voxels, years for an age.

    Raises:
        TypeError, ValueError: when `tolerance` is no finite number of at least 0.

    Example:
        >>> criterion = ErrorAbove(2.0)
        >>> criterion(torch.tensor([[1.0, 5.0], [9.0, 9.0]]), torch.tensor([[1.0, 1.0], [9.0, 4.0]])).tolist()
        [False, True]
    """

    tolerance: float

    def __post_init__(self) -> None:
        value = checks.as_numbers("tolerance", self.tolerance, low=0.0)
        if not isinstance(value, float):
            raise TypeError(f"tolerance: expected one number, in the label's unit; got {self.tolerance!r}")

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        return self.error(prediction, target) > self.tolerance

    def error(self, prediction: Any, target: torch.Tensor) -> torch.Tensor:
        """The mean absolute error that is compared, ``(B,)``; of a label as large as the prediction, in any shape.

        Raises:
            ValueError: when prediction and label hold unlike many numbers.
        """
        output = main_output(prediction)
        if target.numel() != output.numel():
            raise ValueError(
                f"target: expected as many numbers as the prediction {tuple(output.shape)}; got {tuple(target.shape)}"
            )
        return (output - target.reshape(output.shape)).abs().flatten(1).mean(1)


def why_regression(
    loss_function: LossFunction | None,
    postprocessing: Evidence | None,
    label: torch.Tensor | None,
    output: torch.Tensor,
) -> str | None:
    """Why an output holds numbers and not classes, for a sentence; ``None`` where it does not.

    A regression loss or an image similarity says so. Without a loss that means classes, and without a postprocessing
    or probabilities that do, the values of the label say it: of a label in the prediction's shape, or for one channel,
    those that are neither 0 and 1 nor shares of classes that sum to 1.

    Args:
        loss_function: the bundle's.
        postprocessing: what it says of classes.
        label: with the output's axes.
        output: raw output ``BC[HW[D]]``.

    Raises:
        ValueError: when the loss says numbers and the postprocessing classes.
    """
    if loss_function is not None and (
        is_regression(loss_function) or isinstance(core_loss(loss_function), IMAGE_SIMILARITIES)
    ):
        if postprocessing is not None:
            raise ValueError(
                f"loss_function: {name_of(loss_function)} compares numbers, but {postprocessing.source} makes classes "
                "of the prediction; expected a loss on classes, or no such postprocessing"
            )
        return f"the loss {name_of(loss_function)} compares numbers"
    by_library = loss_function is not None and any(is_library(loss_function, name) for name in ("torch", "monai"))
    if by_library or postprocessing is not None or label is None or label.shape != output.shape:
        return None
    values = from_values(output)
    classes = bool(((label == 0) | (label == 1)).all()) or (label.shape[1] > 1 and one_class_each(label))
    if classes or (values is not None and values.sure):
        return None
    low, high = float(label.min()), float(label.max())
    return f"the label has the prediction's shape and values from {low:g} to {high:g}, not only 0 and 1"
