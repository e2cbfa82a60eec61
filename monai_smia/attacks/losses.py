# SPDX-License-Identifier: Apache-2.0
"""`per_sample`: any MONAI or torch loss as one value per sample."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from monai_smia.attacks.heads import LossFunction, main_output, takes_floats, takes_indices
from monai_smia.attacks.nested import slice_sample, slice_target


def check_loss(loss_function: LossFunction) -> None:
    """Refuse a loss that is not callable or that mixes the samples of a batch.

    Raises:
        TypeError: when `loss_function` is not callable.
        ValueError: when it, or a loss inside it, was built with ``batch=True``.
    """
    if isinstance(loss_function, type):
        raise TypeError(f"loss_function: expected an instance, {loss_function.__name__}(...); got the class itself")
    if not callable(loss_function):
        raise TypeError(f"loss_function: expected a callable (prediction, target); got {type(loss_function).__name__}")
    if isinstance(loss_function, functools.partial):
        if loss_function.keywords.get("batch") is True:
            raise ValueError("loss_function: batch=True mixes the samples of a batch; expected batch=False")
        check_loss(loss_function.func)
    for module in loss_function.modules() if isinstance(loss_function, nn.Module) else ():
        if getattr(module, "batch", False) is True:
            raise ValueError(
                f"loss_function: {type(module).__name__}(batch=True) mixes the samples of a batch, so that none "
                "has a loss of its own; expected batch=False"
            )


def fit_target(loss_function: LossFunction, prediction: Any, target: Any) -> Any:
    """`target` in the form this loss wants, where MONAI's loaders and torch's losses disagree.

    Booleans become floats; torch's index losses get ``(B, *spatial)`` long from ``(B, 1, *spatial)``; torch's binary
    losses get floats of the prediction's shape from ``(B,)`` or ``(B, 1)``, also where a classifier's channel axis was
    squeezed away. Everything else is passed as it is.
    """
    if not isinstance(target, torch.Tensor):
        return target
    if takes_indices(loss_function):
        output = main_output(prediction)
        if target.shape == output.shape:
            return target.to(output.dtype)
        return (target[:, 0] if target.ndim == output.ndim and target.shape[1] == 1 else target).long()
    if takes_floats(loss_function):
        if isinstance(prediction, torch.Tensor) and prediction.ndim < 2 and prediction.numel() == target.numel():
            return target.reshape(prediction.shape).to(prediction.dtype)
        output = main_output(prediction)
        if target.ndim == output.ndim - 1 and output.shape[1] == 1:
            target = target.unsqueeze(1)
        return target.to(output.dtype)
    return target.float() if target.dtype == torch.bool else target


def per_sample(loss_function: LossFunction, prediction: Any, target: Any, batch: int) -> torch.Tensor:
    """The loss of each sample on its own.

    The batch is sliced and the loss called once per sample, so that any reduction works; a loss that returns more
    than one value for its sample (``reduction="none"``) is averaged.

    Args:
        loss_function: any callable ``(prediction, target)``.
        prediction: the network's output, ``BC[HWD]`` or a nesting of such tensors.
        target: labels, batch axis first, or a list with one dictionary per sample.
        batch: number of samples.

    Returns:
        ``(batch,)``, differentiable.

    Raises:
        ValueError: when the loss refuses this target for this prediction; both shapes are named.

    Example:
        >>> loss = per_sample(torch.nn.CrossEntropyLoss(), torch.zeros(2, 4), torch.tensor([0, 1]), 2)
        >>> [round(value, 4) for value in loss.tolist()]
        [1.3863, 1.3863]
    """
    target = fit_target(loss_function, prediction, target)
    try:
        values = [loss_function(slice_sample(prediction, i), slice_target(target, i)) for i in range(batch)]
    except (ValueError, AssertionError, IndexError) as error:
        shapes = [tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__ for x in (prediction, target)]
        raise ValueError(
            f"target: {loss_function!r} refuses a prediction {shapes[0]} with a target {shapes[1]}: {error}"
        ) from error
    for value in values:
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"loss_function: expected a tensor from it; got {type(value).__name__}")
    return torch.stack([value.mean() for value in values])
