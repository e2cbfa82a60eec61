# SPDX-License-Identifier: Apache-2.0
"""`own_prediction`: the label of a bundle that has none, from the network's own clean prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from monai.data import MetaTensor

from monai_smia.attacks.checks import one_of
from monai_smia.attacks.heads import ACTIVATIONS, decisions, like_target, main_output
from monai_smia.bundle.evidence import from_values

if TYPE_CHECKING:
    from monai_smia.bundle.tasks import Task


def own_prediction(prediction: Any, task: Task | str, like: torch.Tensor | None = None) -> torch.Tensor:
    r"""The hard label that an attack without labels leaves: what the network decides at the clean image.

    .. math:: \hat y = \arg\max_k f_k(x) \quad\text{or}\quad \hat y_k = [f_k(x) > \tau]

    with :math:`\tau = 0` for logits and 0.5 for probabilities.

    Args:
        prediction: raw output at the clean image, ``BC[HW[D]]`` or one of several resolutions.
        task: what `infer_task` says of it, or an activation, ``"softmax"``, ``"sigmoid"`` or ``"none"``
            (probabilities, of which one is chosen where the channels sum to 1).
        like: a label whose shape and dtype are wanted.

    Returns:
        Without `like`: class indices, ``(B,)`` for a classifier and ``(B, 1, HW[D])`` for dense outputs, long; zeros
        and ones of the prediction's shape and dtype where each channel is a decision of its own; for a regression the
        prediction itself, at which its loss has its minimum and no gradient: start an attack at random.

    Raises:
        ValueError: for a detector, or an unknown activation.

    Example:
        >>> own_prediction(torch.tensor([[0.1, 2.0], [3.0, 1.0]]), "softmax").tolist()
        [1, 0]
        >>> own_prediction(torch.tensor([[0.1, -2.0]]), "sigmoid").tolist()
        [[1.0, 0.0]]
    """
    if isinstance(task, str):
        activation = one_of("task", task, ACTIVATIONS)
        output = _plain(main_output(prediction))
        values = from_values(output) if activation == "none" else None
        exclusive = activation == "softmax" or (values is not None and values.exclusive is True)
    else:
        if task.kind == "detection":
            raise ValueError("task: a detector's own boxes are no label here; expected labels with the bundle")
        activation, output = task.activation, _plain(task.output(prediction))
        exclusive = task.channels > 1 and task.kind in ("classification", "segmentation")
        if task.kind == "regression":
            return output if like is None else output.reshape(like.shape).to(like.dtype)
    hard = (
        decisions(output, "softmax", multilabel=False) if exclusive else decisions(output, activation, multilabel=True)
    )
    if like is not None:
        return like_target(hard, like, output)
    if not exclusive:
        return hard.to(output.dtype)
    return hard if output.ndim == 2 else hard.unsqueeze(1)


def _plain(output: torch.Tensor) -> torch.Tensor:
    return (output.as_tensor() if isinstance(output, MetaTensor) else output).detach()
