# SPDX-License-Identifier: Apache-2.0
"""Which tensor of a network's output is attacked, and the outputs that are refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks.detection import DetectorHeads, HeadOutputs

REFUSED = {
    "HoVerNet": "HoVerNet gives a dictionary of three heads with a loss over all of them",
    "VISTA3D": "VISTA3D is asked by prompts (classes or points), which an attack on the image alone does not give",
}
"""MONAI networks by class name, and why no single head of theirs can be attacked."""


@dataclass(frozen=True)
class Output:
    """The tensor of a prediction that is judged, ``BC[HW[D]]``.

    Args:
        index: which of a sequence; a prediction that is one tensor, as deeply supervised networks give in eval mode, is
            taken whole.
        stacked: whether the prediction is one tensor ``(B, n, C, ...)`` of n outputs, of which the first is meant.
    """

    index: int = 0
    stacked: bool = False

    def __call__(self, prediction: Any) -> torch.Tensor:
        chosen: torch.Tensor = prediction if isinstance(prediction, torch.Tensor) else prediction[self.index]
        return chosen[:, 0] if self.stacked else chosen


def is_detection(prediction: Any, label: Any, network: Any = None) -> bool:
    """Whether boxes are predicted or labelled, or the network is MONAI's detector."""
    detector = isinstance(network, DetectorHeads) or _of_monai(network, "RetinaNetDetector")
    return detector or isinstance(prediction, HeadOutputs) or _boxes(prediction) or _boxes(label)


def find_output(prediction: Any, label: Any, network: Any = None) -> tuple[Output, str]:
    """Which tensor is judged, and a sentence where there was a choice (empty where there was none).

    Of a sequence it is the one of the highest resolution, the first of several; elements that are no floating tensors
    with batch and channel axes (`None`, numbers) are passed over.

    Raises:
        ValueError: naming what cannot be attacked: dictionaries of heads or labels, prompts, class indices, no tensor.
    """
    for name, why in REFUSED.items():
        if _of_monai(network, name):
            raise ValueError(f"network: {name} is not covered: {why}")
    for argument, value in (("prediction", prediction), ("label", label)):
        if isinstance(value, dict) or (_sequence(value) and isinstance(value[0], dict)):
            keys = sorted(map(str, value if isinstance(value, dict) else value[0]))
            raise ValueError(
                f"{argument}: dictionaries are not covered (HoVerNet has such heads); expected a tensor, or a sequence "
                f"of tensors of several resolutions; got the keys {keys}"
            )
    if label is not None and not isinstance(label, torch.Tensor):
        raise ValueError(f"label: expected a tensor or None; got {type(label).__name__}")
    output, sentence = _chosen(prediction, label)
    tensor = output(prediction)
    if label is not None and (label.ndim == 0 or len(label) != len(tensor)):
        raise ValueError(
            f"prediction: its batch axis and the label's differ, {tuple(tensor.shape)} and {tuple(label.shape)}; where "
            "a network gives one output per prompt (VISTA3D) it is not covered"
        )
    return output, sentence


def _chosen(prediction: Any, label: torch.Tensor | None) -> tuple[Output, str]:
    if isinstance(prediction, torch.Tensor):
        if not _fit_to_judge(prediction):
            raise ValueError(
                "prediction: expected raw output BC[HW[D]], floating and with batch and channel axes, not classes "
                f"already chosen; got {tuple(prediction.shape)} {prediction.dtype}"
            )
        if label is None or not _is_stacked(prediction, label):
            return Output(), ""
        levels = prediction.shape[1]
        return Output(stacked=True), (
            f"Output: {levels} outputs stacked as {tuple(prediction.shape)} (deep supervision); the first, which MONAI "
            "gives at full resolution, is attacked."
        )
    if not _sequence(prediction):
        raise ValueError(f"prediction: expected a tensor or a sequence of tensors; got {type(prediction).__name__}")
    sizes = {i: item.shape[2:].numel() for i, item in enumerate(prediction) if _fit_to_judge(item)}
    if not sizes:
        kinds = [type(item).__name__ for item in prediction]
        raise ValueError(f"prediction: expected a floating tensor BC[HW[D]] in the sequence; got {kinds}")
    index = max(sizes, key=lambda i: sizes[i])  # the first of equals
    return Output(index), (
        f"Output: {len(prediction)} outputs (deep supervision); number {index}, {tuple(prediction[index].shape)}, of "
        "the highest resolution, is attacked."
    )


def _is_stacked(prediction: torch.Tensor, label: torch.Tensor) -> bool:
    """Whether this is ``(B, n, C, ...)`` rather than ``BC...``: the label has one axis less and fits behind it."""
    if label.ndim != prediction.ndim - 1 or label.ndim < 4 or label.shape[2:] != prediction.shape[3:]:
        return False
    bare = label.shape[1:] == prediction.shape[2:]  # either no channel axis, or as many channels as there are rows
    return not bare or label.shape[1] == 1 or bool((label.sum(1) == 1).all() and ((label == 0) | (label == 1)).all())


def _fit_to_judge(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim >= 2 and value.is_floating_point() and value.numel() > 0


def _sequence(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) > 0


def _boxes(value: Any) -> bool:
    """Whether this is a dictionary of boxes, or a sequence of them."""
    if _sequence(value):
        return all(_boxes(item) for item in value)
    return isinstance(value, dict) and any("box" in str(key).lower() for key in value)


def _of_monai(network: Any, name: str) -> bool:
    return any(kind.__name__ == name and kind.__module__.startswith("monai.") for kind in type(network).__mro__)
