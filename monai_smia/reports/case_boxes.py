# SPDX-License-Identifier: Apache-2.0
"""`boxes_shown`: a detector's boxes, or a loader's, under the names that a view knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from monai_smia.reports.case_tensors import as_numbers
from monai_smia.reports.views import Shown

_BOXES = ("boxes", "box")
_LABELS = ("labels", "label")
_SCORES = ("scores", "labels_scores", "label_scores")


def boxes_shown(value: Any, axes: int, names: Mapping[int, str]) -> Shown:
    """Boxes with class names and scores, for a `CaseView`.

    Args:
        value: corners ``(K, 2n)``, a mapping (keys as in MONAI's detectors, ``boxes, labels, labels_scores`` or ``box,
            label, label_scores``, or as in torchvision's), or a list with one such mapping. Boxes that hold NaN or
            infinity are left out.
        axes: n, the number of spatial axes.
        names: class number to name.

    Returns:
        A mapping; ``None`` for what holds no boxes of n axes, such as the maps of a detector's head.

    Example:
        >>> found = {"boxes": [[0, 0, 4, 4], [1, 1, 2, 2]], "labels": [0, 7], "labels_scores": [0.9, 0.2]}
        >>> shown = boxes_shown(found, 2, {0: "polyp"})
        >>> shown["labels"], [round(score, 1) for score in shown["scores"]]
        (['polyp', '7'], [0.9, 0.2])
    """
    if isinstance(value, (tuple, list)) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0]
    parts = value if isinstance(value, Mapping) else {"boxes": value}
    corners = _column(parts, _BOXES)
    if corners is None:
        return None
    corners = corners.reshape(-1, 2 * axes) if corners.size == 0 else corners
    if corners.ndim != 2 or corners.shape[1] != 2 * axes:
        return None
    kept = np.isfinite(corners).all(1)
    scores, labels = _column(parts, _SCORES), _words(parts, names)
    if scores is not None and scores.shape == kept.shape:
        kept &= np.isfinite(scores)
    shown: dict[str, Any] = {"boxes": corners[kept]}
    if scores is not None and scores.shape == kept.shape:
        shown["scores"] = [float(score) for score in scores[kept]]
    if labels is not None and len(labels) == len(kept):
        shown["labels"] = [label for label, is_kept in zip(labels, kept, strict=True) if is_kept]
    return shown


def _column(parts: Mapping[str, Any], keys: tuple[str, ...]) -> np.ndarray[Any, Any] | None:
    values = as_numbers(next((parts[key] for key in keys if key in parts), None))
    return None if values is None else values.numpy()


def _words(parts: Mapping[str, Any], names: Mapping[int, str]) -> list[str] | None:
    values = next((parts[key] for key in _LABELS if key in parts), None)
    if isinstance(values, (tuple, list)) and all(isinstance(value, str) for value in values):
        return list(values)
    numbers = as_numbers(values)
    if numbers is None or numbers.ndim != 1:
        return None
    return [names.get(k, f"{k:g}") for k in numbers.tolist()]
