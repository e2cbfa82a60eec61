# SPDX-License-Identifier: Apache-2.0
"""`radiological`: a view as radiologists look at it, whatever way its axes run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_smia.reports.packing import Array
from monai_smia.reports.views import Boxes, CaseView, Shown

VOLUME, PLANE = "LAS", "LPI"
"""Where the axes of what is shown point, for the three directions of a body. The first axis of a picture runs to the
right, so that the patient's left is on the viewer's right; the others go up in a volume, and down in a 2-D image."""

OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
_DIRECTIONS = ("RL", "AP", "SI")


@dataclass(frozen=True)
class Turn:
    """How arrays are turned for showing.

    Attributes:
        axes: for each axis shown, the axis of the array it is.
        flipped: for each axis shown, whether it runs the other way.

    Example:
        >>> turn = Turn.of("RAS")
        >>> turn.axes, turn.flipped, turn.letters("RAS")
        ((0, 1, 2), (True, False, False), 'LAS')
        >>> Turn.of("PSR").letters("PSR"), Turn.of("").axes
        ('LAS', None)
    """

    axes: tuple[int, ...] | None
    flipped: tuple[bool, ...] = ()

    @classmethod
    def of(cls, orientation: str) -> Turn:
        """The turn of an image whose axes point this way; none where that is not known."""
        if not orientation:
            return cls(None)
        wanted = VOLUME if len(orientation) == 3 else PLANE
        kinds = [next(k for k, pair in enumerate(_DIRECTIONS) if letter in pair) for letter in orientation]
        axes = tuple(sorted(range(len(kinds)), key=kinds.__getitem__))
        return cls(axes, tuple(orientation[axis] != wanted[kinds[axis]] for axis in axes))

    @property
    def is_none(self) -> bool:
        """Whether nothing changes."""
        return self.axes is None or (self.axes == tuple(range(len(self.axes))) and not any(self.flipped))

    def letters(self, orientation: str) -> str:
        """Where the axes shown point."""
        if self.axes is None:
            return orientation
        found = (orientation[axis] for axis in self.axes)
        return "".join(OPPOSITE[k] if flip else k for k, flip in zip(found, self.flipped, strict=True))

    def array(self, value: Array) -> Array:
        """An array whose last axes are the spatial ones."""
        if self.is_none or self.axes is None:
            return value
        lead = value.ndim - len(self.axes)
        turned = value.transpose(*range(lead), *(lead + axis for axis in self.axes))
        way = (..., *(slice(None, None, -1 if flip else 1) for flip in self.flipped))
        return np.ascontiguousarray(turned[way])

    def boxes(self, value: Boxes, spatial: tuple[int, ...]) -> Boxes:
        """Corners in an image of this spatial shape."""
        if self.is_none or self.axes is None:
            return value
        n = len(spatial)
        low, high = [], []
        for axis, flip in zip(self.axes, self.flipped, strict=True):
            first, last = value.corners[:, axis], value.corners[:, n + axis]
            low.append(spatial[axis] - last if flip else first)
            high.append(spatial[axis] - first if flip else last)
        return Boxes(np.stack([*low, *high], 1), value.labels, value.scores)

    def shown(self, value: Shown, spatial: tuple[int, ...]) -> Shown:
        """A label map, boxes or a text."""
        if isinstance(value, Boxes):
            return self.boxes(value, spatial)
        return self.array(value) if isinstance(value, np.ndarray) else value

    def stored(self, sizes: tuple[int, ...]) -> list[list[Any]]:
        """For each axis of the array: the axis that shows it, whether that runs the other way, and its size."""
        axes = tuple(range(len(sizes))) if self.axes is None else self.axes
        flips = self.flipped or (False,) * len(axes)
        return [[axes.index(k), flips[axes.index(k)], sizes[k]] for k in range(len(axes))]


def radiological(view: CaseView) -> CaseView:
    """The view turned so that the patient's left is on the viewer's right, and anterior and superior are up.

    Of a view without an orientation nothing changes. Oblique axes count as the direction that they are nearest to.

    Example:
        >>> image = np.zeros((1, 4, 3, 2))
        >>> image[0, 0] = 1  # the first axis points to the right: low indices are on the left
        >>> seen = radiological(CaseView("a", image, {}, orientation="RAS"))
        >>> seen.orientation, seen.image[0, :, 0, 0].tolist()
        ('LAS', [0.0, 0.0, 0.0, 1.0])
    """
    turn = Turn.of(view.orientation)
    if turn.is_none or turn.axes is None:
        return view
    return dataclasses.replace(
        view,
        image=turn.array(view.image),
        adversarial={run: turn.array(value) for run, value in view.adversarial.items()},
        clean_prediction=turn.shown(view.clean_prediction, view.spatial),
        predictions={run: turn.shown(value, view.spatial) for run, value in view.predictions.items()},
        label=turn.shown(view.label, view.spatial),
        spacing=None if view.spacing is None else tuple(view.spacing[axis] for axis in turn.axes),
        orientation=turn.letters(view.orientation),
    )
