# SPDX-License-Identifier: Apache-2.0
"""Figures: what an attack did to an image and to its segmentation."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch

from monai_smia.reports.orientation import Turn

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""Of structures, by class number from 1 and again from the first: in the page, in pictures and in figures."""


def label_map(prediction: torch.Tensor) -> torch.Tensor:
    """Class of every voxel, ``HW[D]``, from a one-hot or a single-channel channel-first prediction or label."""
    prediction = torch.as_tensor(prediction)
    return prediction.argmax(0) if len(prediction) > 1 else prediction[0].round().long()


def central_slice(labels: torch.Tensor) -> int | None:
    """Index on the last axis of the slice with most foreground; ``None`` for a 2-D image."""
    if labels.ndim == 2:
        return None
    return int((labels > 0).flatten(0, 1).sum(0).argmax())


def overlay(
    clean: torch.Tensor,
    adversarial: torch.Tensor,
    clean_prediction: torch.Tensor,
    prediction: torch.Tensor,
    label: torch.Tensor | None,
    *,
    title: str = "",
    unit: str = "",
    orientation: str = "",
) -> bytes:
    """A PNG: clean image, adversarial image, their difference, and both predictions drawn over their images.

    Args:
        clean, adversarial: channel-first images ``CHW[D]`` in the same unit; of a volume the slice with most label is
            shown, of several channels the first.
        clean_prediction, prediction: one-hot or single-channel, channel-first.
        label: likewise; its outline is drawn over the predictions. ``None`` draws none.
        title: above the panels.
        unit: of the images, beside the difference's scale.
        orientation: where the spatial axes point, such as ``"RAS"``: shown as radiologists do, see `radiological`.
    """
    from matplotlib.figure import Figure  # an extra; only figures need it

    turn = Turn.of(orientation)
    clean, adversarial = (torch.as_tensor(turn.array(_numpy(value)).copy()) for value in (clean, adversarial))
    maps = [_turned(label_map(value), turn) for value in (clean_prediction, prediction)]
    truth = None if label is None else _turned(label_map(label), turn)
    index = central_slice(maps[0] if truth is None else truth)
    cut = [_slice(torch.as_tensor(value)[0], index) for value in (clean, adversarial)]
    difference = cut[1] - cut[0]
    figure = Figure(figsize=(15, 3.6), layout="constrained")
    axes = figure.subplots(1, 5)
    low, high = float(cut[0].min()), float(cut[0].max())
    for axis, image, name in zip(axes, cut, ("clean", "adversarial"), strict=False):
        axis.imshow(image, cmap="gray", vmin=low, vmax=high)
        axis.set_title(name)
    size = max(float(np.abs(difference).max()), 1e-12)
    shown = axes[2].imshow(difference, cmap="RdBu_r", vmin=-size, vmax=size)
    figure.colorbar(shown, ax=axes[2], label=unit, shrink=0.8)
    axes[2].set_title("difference")
    for axis, image, classes, name in zip(axes[3:], cut, maps, ("clean", "adversarial"), strict=True):
        axis.imshow(image, cmap="gray", vmin=low, vmax=high)
        _paint(axis, _slice(classes, index))
        if truth is not None:
            axis.contour(_slice(truth, index) > 0, levels=[0.5], colors="white", linewidths=0.8)
        axis.set_title(f"prediction, {name}")
    for axis in axes:
        axis.set_axis_off()
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _numpy(value: Any) -> Any:
    return torch.as_tensor(value).cpu().numpy()


def _turned(classes: torch.Tensor, turn: Turn) -> torch.Tensor:
    return torch.as_tensor(turn.array(_numpy(classes)).copy())


def _slice(image: torch.Tensor, index: int | None) -> Any:
    """Rows and columns to draw; a volume's second axis goes up."""
    return image.cpu().numpy().T if index is None else np.rot90(image[..., index].cpu().numpy())


def _paint(axis: Any, classes: Any) -> None:
    from matplotlib.colors import to_rgba

    layer = np.zeros((*classes.shape, 4))
    for k in range(1, int(classes.max()) + 1):
        layer[classes == k] = to_rgba(COLOURS[(k - 1) % len(COLOURS)], 0.5)
    axis.imshow(layer)
