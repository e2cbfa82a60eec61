# SPDX-License-Identifier: Apache-2.0
"""`log_odds`: how far an attack has come, on a scale that does not saturate."""

from __future__ import annotations

from typing import Any

import torch

from monai_smia.attacks.heads import (
    LossFunction,
    activation_of,
    core_loss,
    counted,
    ignore_index,
    infer_activation,
    is_binary,
    is_regression,
    labels,
    main_output,
    takes_floats,
    takes_indices,
    true_class,
)


def decides(loss_function: LossFunction, prediction: Any) -> bool:
    """Whether the loss is a known one on classes and the prediction holds a tensor to read them from."""
    core = core_loss(loss_function)
    known = takes_indices(loss_function) or takes_floats(loss_function) or type(core).__module__.startswith("monai.")
    first = prediction[0] if isinstance(prediction, (tuple, list)) and prediction else prediction
    return known and not is_regression(loss_function) and isinstance(first, torch.Tensor)


def log_odds(loss_function: LossFunction, prediction: Any, target: torch.Tensor) -> torch.Tensor:
    r"""The odds of a wrong answer, of each sample.

    .. math:: o = \log \sum_{k \ne y} e^{z_k} - z_y = \log \frac{1 - p_y}{p_y} \quad\text{(softmax)}, \qquad
              o = \log \sum_c e^{(1 - 2 y_c) z_c} \quad\text{(sigmoid)}

    The cross-entropy is :math:`\log(1 + e^o)`: of a confident network it is flat, and a small lead looks like a large
    ratio, where o is linear in the raw outputs.

    Args:
        loss_function: is read for the head.
        prediction: ``BC[HWD]``, or a sequence that starts with it.
        target: labels, as indices with or without a channel axis, or one-hot.

    Returns:
        ``(B,)``, the mean over voxels of a dense output; differentiable.

    Example:
        >>> log_odds(torch.nn.CrossEntropyLoss(), torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
        tensor([-2.])
    """
    odds = log_odds_map(loss_function, prediction, target)
    if odds.ndim == 1:
        return odds
    _, valid = _true(loss_function, main_output(prediction), target)
    return odds.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp_min(1)


def log_odds_map(loss_function: LossFunction, prediction: Any, target: torch.Tensor) -> torch.Tensor:
    """`log_odds` of every decision, ``(B, *spatial)``; 0 where the label is the one that the loss ignores."""
    output = main_output(prediction)
    activation = activation_of("auto", loss_function, output)
    tiny = torch.finfo(output.dtype).tiny
    index, valid = _true(loss_function, output, target)
    if index is None:
        raw = output
        if activation == "none":
            raw = output.clamp_min(tiny).log() - (1 - output).clamp_min(tiny).log()
        ignored = ignore_index(loss_function)
        signed = torch.where(labels(target, output, activation, ignored), -raw, raw)
        odds = signed.masked_fill(~counted(target, output, activation, ignored), -torch.inf).logsumexp(1)
        return torch.where(valid[:, 0], odds, 0.0)
    raw = output.clamp_min(tiny).log() if activation == "none" else output
    wrong = raw.scatter(1, index, -torch.inf).logsumexp(1, keepdim=True)
    return torch.where(valid, wrong - raw.gather(1, index), 0.0)[:, 0]


def _true(
    loss_function: LossFunction, output: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Index of the true class, none where each channel is a decision of its own, and which voxels count."""
    activation, ignored = activation_of("auto", loss_function, output), ignore_index(loss_function)
    if is_binary(activation, output.shape[1], target.shape == output.shape):
        return None, counted(target, output, activation, ignored).any(1, keepdim=True)
    return true_class(target, output, activation, ignored)


def head_of(loss_function: LossFunction, prediction: Any) -> str | None:
    """The activation that the loss expects between raw output and probability; ``None`` where it is not known."""
    if not decides(loss_function, prediction):
        return None
    return infer_activation(loss_function, main_output(prediction).shape[1])
