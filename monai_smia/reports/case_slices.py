# SPDX-License-Identifier: Apache-2.0
"""`chosen_slice`: which slice of a volume a figure shows, and arrays as an axis draws them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monai_smia.reports.packing import Array
from monai_smia.reports.views import Boxes, CaseView, Shown


def chosen_slice(view: CaseView, runs: Sequence[str]) -> int | None:
    """Index on the third spatial axis of the slice with most label; ``None`` for a 2-D image.

    Where nothing is labelled, that with most clean prediction; then the runs', then most change in all of them. Of
    several equal ones, the middle one.

    Example:
        >>> image, label = np.zeros((1, 4, 4, 5)), np.zeros((4, 4, 5))
        >>> label[1:3, 1:3, 3] = 1
        >>> chosen_slice(CaseView("a", image, {}, label=label), ())
        3
    """
    if len(view.spatial) == 2:
        return None
    predictions = [_amounts(view.predictions.get(run), view.spatial) for run in runs]
    changes = [np.abs(view.adversarial[run][0] - view.image[0]).sum((0, 1), dtype=float) for run in runs]
    nothing = np.zeros(view.spatial[2])
    candidates = [_amounts(view.label, view.spatial), _amounts(view.clean_prediction, view.spatial)]
    for amounts in (*candidates, sum(predictions, nothing), sum(changes, nothing)):
        if amounts.any():
            break
    largest = np.flatnonzero(amounts == amounts.max())
    return int(largest[len(largest) // 2])


def picture(image: Array, index: int | None) -> Array:
    """Rows and columns to draw of ``(C, H, W[, D])``: the first axis runs to the right.

    Three channels of a 2-D image stay, as the last axis; else the first channel is taken.
    """
    if index is None:
        return image.transpose(2, 1, 0) if len(image) == 3 else image[0].T
    return image[0, :, :, index].T


def change(image: Array, adversarial: Array, index: int | None) -> Array:
    """The signed difference to draw; in colour that of the channel that changed most, as in the page's viewer."""
    difference = picture(adversarial, index) - picture(image, index)
    if difference.ndim == 2:
        return difference
    largest = np.abs(difference).argmax(-1)
    return np.take_along_axis(difference, largest[..., None], -1)[..., 0]


def classes(shown: Array, index: int | None) -> Array:
    """Rows and columns to draw of a label map."""
    return shown.T if index is None else shown[:, :, index].T


def rectangles(boxes: Boxes, index: int | None) -> list[tuple[int, float, float, float, float]]:
    """Number, left, upper end, width and height of the boxes in this slice, in pixels, whose centres are whole numbers.

    A box from 0 to 1 covers the first pixel, which is drawn from -0.5 to 0.5.

    Example:
        >>> rectangles(Boxes(np.array([[2.0, 3.0, 0.0, 4.0, 9.0, 2.0]]), (), ()), 1)
        [(0, 1.5, 2.5, 2.0, 6.0)]
    """
    n = 2 if index is None else 3
    found = []
    for k, corners in enumerate(boxes.corners.tolist()):
        if index is None or _covered(corners[2], corners[5], index):
            found.append((k, corners[0] - 0.5, corners[1] - 0.5, corners[n] - corners[0], corners[n + 1] - corners[1]))
    return found


def _covered(low: float, high: float, index: int) -> bool:
    """Whether any part of a slice, from its index to the next, is between these."""
    return low < index + 1 and high > index


def _amounts(shown: Shown, spatial: tuple[int, ...]) -> Array:
    """Area in each slice that is labelled or predicted."""
    amounts = np.zeros(spatial[2])
    if isinstance(shown, np.ndarray):
        amounts += (shown > 0).sum((0, 1))
    elif isinstance(shown, Boxes):
        for index in range(spatial[2]):
            amounts[index] = sum(width * height for *_, width, height in rectangles(shown, index))
    return amounts
