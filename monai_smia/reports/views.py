# SPDX-License-Identifier: Apache-2.0
"""`CaseView`: the images and predictions of one case for the page's viewer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monai_smia.reports.packing import Array

Shown = Any
"""A label map, boxes or a text; see `CaseView`."""


@dataclass(frozen=True)
class Boxes:
    """Detections.

    Attributes:
        corners: ``(K, 2n)`` for n spatial axes: the lower corner, then the upper one, axis by axis, in pixels.
        labels: class numbers or names, one for each box, or none.
        scores: one for each box, or none.
    """

    corners: Array
    labels: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class CaseView:
    """One case to look at.

    Page and figures show it as radiologists do where `orientation` is known: the patient's left on the viewer's right,
    anterior and superior up. Else the first spatial axis runs to the right; the second goes down in a 2-D image and up
    in a volume, where the third goes up too.

    A prediction or label is one of: whole numbers 0 to 255 of the image's spatial shape, 0 being background; boxes,
    either ``(K, 2n)`` numbers (lower corner, then upper corner) or a mapping with ``boxes`` and, where there are any,
    ``labels`` and ``scores``; a text, such as the name of a class; ``None``.

    Args:
        case: name, that of the report where it is in there.
        image: ``(C, H, W[, D])``, in the report's unit. Three channels of a 2-D image are shown in colour; of other
            numbers the first channel is shown, and the page says so.
        adversarial: run to the image under that attack, of the same shape and unit.
        clean_prediction: without an attack.
        predictions: run to prediction.
        label: what would be right.
        spacing: mm between neighbours along each spatial axis; ``None`` draws square pixels.
        orientation: where each axis points, such as ``"RAS"``; then the planes and their sides are named.
        classes: name of each value of the label maps, background first; numbers are shown where there is none.

    Raises:
        ValueError: naming the argument whose shape or values do not fit.

    Example:
        >>> image = np.zeros((1, 8, 8))
        >>> view = CaseView("a.png", image, {"PGD_2grey": image + 2}, label="healthy")
        >>> view.spatial, list(view.adversarial)
        ((8, 8), ['PGD_2grey'])
    """

    case: str
    image: Any
    adversarial: Mapping[str, Any]
    clean_prediction: Shown = None
    predictions: Mapping[str, Shown] = field(default_factory=dict)
    label: Shown = None
    spacing: Sequence[float] | None = None
    orientation: str = ""
    classes: Sequence[str] = ()

    def __post_init__(self) -> None:
        image = as_array(self.image)
        if image.ndim not in (3, 4) or 0 in image.shape:
            raise ValueError(f"image: expected the shape (C, H, W) or (C, H, W, D), not empty; got {image.shape}")
        arrays = {run: as_array(value) for run, value in self.adversarial.items()}
        for name, array in {"image": image, **arrays}.items():
            where = name if array is image else f"adversarial[{name!r}]"
            if array.shape != image.shape:
                raise ValueError(f"{where}: expected the image's shape {image.shape}; got {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{where}: expected finite numbers; got NaN or infinity")
        n = image.ndim - 1
        if self.spacing is not None and (len(self.spacing) != n or not min(self.spacing) > 0):
            raise ValueError(f"spacing: expected {n} positive numbers; got {self.spacing}")
        if self.orientation and sorted(map(_axis_of, self.orientation)) != list(range(n)):
            raise ValueError(f"orientation: expected a letter of R/L, A/P, S/I for each axis; got {self.orientation!r}")
        stray = set(self.predictions) - set(arrays)
        if stray:
            raise ValueError(f"predictions: expected runs of adversarial, {list(arrays)}; got {sorted(stray)}")
        values = {"image": image, "adversarial": arrays, "label": parsed("label", self.label, image.shape[1:])}
        values["clean_prediction"] = parsed("clean_prediction", self.clean_prediction, image.shape[1:])
        values["predictions"] = {
            run: parsed(f"predictions[{run!r}]", value, image.shape[1:]) for run, value in self.predictions.items()
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def spatial(self) -> tuple[int, ...]:
        """Spatial shape."""
        shape: tuple[int, ...] = self.image.shape[1:]
        return shape

    def shown_things(self) -> list[Shown]:
        """Label and predictions that are there."""
        values = [self.label, self.clean_prediction, *self.predictions.values()]
        return [value for value in values if value is not None]


def as_array(value: Any) -> Array:
    """A tensor or array as numpy, floats as float32 (float64 where they are that)."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.as_tensor() if hasattr(value, "as_tensor") else value
        value = value.float().numpy() if str(value.dtype) == "torch.bfloat16" else value.numpy()
    array = np.asarray(value)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def parsed(name: str, value: Shown, spatial: tuple[int, ...]) -> Shown:
    """A label map as uint8, `Boxes`, a text or ``None``.

    Raises:
        ValueError: for anything else.
    """
    if value is None or isinstance(value, (str, Boxes)):
        return value
    details: Mapping[str, Any] = value if isinstance(value, Mapping) else {"boxes": value}
    if "boxes" not in details:
        raise ValueError(f"{name}: expected the key 'boxes'; got {list(details)}")
    array = as_array(details["boxes"])
    if array.shape == spatial and not isinstance(value, Mapping):
        if array.min() < 0 or array.max() > 255 or bool((array != np.rint(array)).any()):
            raise ValueError(f"{name}: expected whole numbers from 0 to 255; got {array.min():g} to {array.max():g}")
        return array.astype(np.uint8)
    width = 2 * len(spatial)
    array = array.reshape(-1, width) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(
            f"{name}: expected the image's spatial shape {spatial} or boxes (K, {width}); got {array.shape}"
        )
    labels = tuple(_word(label) for label in details.get("labels", ()))
    scores = tuple(float(score) for score in details.get("scores", ()))
    for key, entries in (("labels", labels), ("scores", scores)):
        if len(entries) not in (0, len(array)):
            raise ValueError(f"{name}: expected {key} for none or each of {len(array)} boxes; got {len(entries)}")
    return Boxes(array, labels, scores)


def _word(label: Any) -> str:
    return label if isinstance(label, str) else f"{float(label):g}"


def _axis_of(letter: str) -> int:
    for i, pair in enumerate(("RL", "AP", "SI")):
        if letter in pair:
            return i
    return -1
