# SPDX-License-Identifier: Apache-2.0
"""`encode_views`: views packed into a number of characters, with what had to be left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_smia.reports.orientation import Turn, radiological
from monai_smia.reports.packing import Array, Packed, pack_classes, pack_difference, pack_image
from monai_smia.reports.views import Boxes, CaseView, Shown
from monai_smia.reports.wording import listed

MARGIN = 8  # voxels around what is labelled or predicted


@dataclass(frozen=True)
class Encoded:
    """Views ready for the page.

    Attributes:
        views: one dictionary for each, for JSON; arrays are numbers of `payloads`.
        payloads: base64 texts.
    """

    views: tuple[dict[str, Any], ...]
    payloads: tuple[str, ...]


@dataclass(frozen=True)
class _Cut:
    """What is kept of the spatial axes, and with how many bits changes are stored."""

    start: tuple[int, ...]
    stop: tuple[int, ...]
    stride: int
    bits: int

    def of(self, array: Array) -> Array:
        """From an array whose last axes are the spatial ones."""
        spans = zip(self.start, self.stop, strict=True)
        where: tuple[Any, ...] = (..., *(slice(start, stop, self.stride) for start, stop in spans))
        cut: Array = array[where]
        return cut


def encode_views(views: Sequence[CaseView], room: int, unit: str) -> Encoded:
    """Pack views so that all payloads together have at most `room` characters.

    What does not fit is reduced, in this order until it does: changes in 15 steps instead of 255; only the box around
    everything labelled or predicted with a margin, in 255 or 15 steps; every second, third, ... voxel along each axis
    of it. Each view says in its ``notes`` what was done. Axes are those of `radiological`; ``stored`` leads back to
    those of the array.

    Args:
        views: which.
        room: characters.
        unit: of the images, for the notes.

    Raises:
        ValueError: when not even a few pixels fit.
    """
    described: list[dict[str, Any]] = []
    payloads: list[str] = []
    for i, given in enumerate(views):
        view = radiological(given)
        share = (room - sum(map(len, payloads))) // (len(views) - i)
        for cut in _cuts(view):
            packed = _packed(view, cut)
            if sum(array.size() for array in packed.values()) > share * 1.1:
                continue
            texts = {key: array.text() for key, array in packed.items()}
            if sum(map(len, texts.values())) <= share:
                break
        else:
            raise ValueError(f"views: expected room for {len(views)}; {view.case!r} does not fit into {share} bytes")
        numbers = {key: len(payloads) + k for k, key in enumerate(texts)}
        payloads += texts.values()
        stored = Turn.of(given.orientation).stored(given.spatial)
        described.append({**_described(view, cut, packed, numbers, unit), "stored": stored})
    return Encoded(tuple(described), tuple(payloads))


def _cuts(view: CaseView) -> list[_Cut]:
    whole = ((0,) * len(view.spatial), view.spatial)
    inner = _box(view)
    cuts = [_Cut(*whole, 1, 8), _Cut(*whole, 1, 4), _Cut(*inner, 1, 8), _Cut(*inner, 1, 4)]
    cuts += [_Cut(*inner, stride, 4) for stride in range(2, max(view.spatial) + 1)]
    return list(dict.fromkeys(cuts))


def _box(view: CaseView) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Around every label and prediction, with a margin; the whole image where there is none."""
    starts, stops = [], []
    for shown in view.shown_things():
        if isinstance(shown, Boxes) and len(shown.corners):
            n = len(view.spatial)
            starts.append(np.floor(shown.corners[:, :n].min(0)))
            stops.append(np.ceil(shown.corners[:, n:].max(0)))
        elif isinstance(shown, np.ndarray) and shown.any():
            where = [np.flatnonzero(shown.any(_others(axis, shown.ndim))) for axis in range(shown.ndim)]
            starts.append(np.array([own[0] for own in where]))
            stops.append(np.array([own[-1] + 1 for own in where]))
    if not starts:
        return (0,) * len(view.spatial), view.spatial
    low = np.clip(np.min(starts, 0) - MARGIN, 0, np.array(view.spatial) - 1).astype(int)
    high = np.clip(np.max(stops, 0) + MARGIN, low + 1, view.spatial).astype(int)
    return tuple(low.tolist()), tuple(high.tolist())


def _others(axis: int, ndim: int) -> tuple[int, ...]:
    return tuple(other for other in range(ndim) if other != axis)


def _channels(view: CaseView) -> slice:
    return slice(None) if view.image.ndim == 3 and len(view.image) == 3 else slice(0, 1)


def _packed(view: CaseView, cut: _Cut) -> dict[tuple[str, str], Packed]:
    """Kind and run to array."""
    image = cut.of(view.image[_channels(view)])
    packed = {("image", ""): pack_image(image)}
    for run, adversarial in view.adversarial.items():
        packed["difference", run] = pack_difference(cut.of(adversarial[_channels(view)]) - image, cut.bits)
    maps: dict[tuple[str, str], Shown] = {("label", ""): view.label, ("clean", ""): view.clean_prediction}
    maps.update({("prediction", run): shown for run, shown in view.predictions.items()})
    for key, shown in maps.items():
        if isinstance(shown, np.ndarray):
            packed[key] = pack_classes(cut.of(shown))
    return packed


def _described(
    view: CaseView,
    cut: _Cut,
    packed: Mapping[tuple[str, str], Packed],
    numbers: Mapping[tuple[str, str], int],
    unit: str,
) -> dict[str, Any]:
    shape = cut.of(view.image[_channels(view)]).shape

    def array(kind: str, run: str = "") -> dict[str, Any]:
        own = packed[kind, run]
        return {"payload": numbers[kind, run], "low": own.low, "step": own.step, "bits": own.bits}

    def shown(value: Shown, kind: str, run: str = "") -> dict[str, Any] | None:
        if value is None:
            return None
        if isinstance(value, str):
            return {"kind": "text", "text": value}
        if isinstance(value, Boxes):
            boxes = np.round(value.corners.astype(float), 2).tolist()
            return {"kind": "boxes", "boxes": boxes, "labels": value.labels, "scores": value.scores}
        return {"kind": "map", **array(kind, run)}

    return {
        "case": view.case,
        "shape": shape,
        "origin": cut.start,
        "stride": cut.stride,
        "full": view.spatial,
        "spacing": [1.0] * len(view.spatial) if view.spacing is None else [float(size) for size in view.spacing],
        "orientation": view.orientation,
        "classes": list(view.classes),
        "start": _start(view, cut),
        "image": array("image"),
        "label": shown(view.label, "label"),
        "clean": shown(view.clean_prediction, "clean"),
        "runs": [
            {
                "run": run,
                "difference": array("difference", run),
                "prediction": shown(view.predictions.get(run), "prediction", run),
            }
            for run in view.adversarial
        ],
        "notes": _notes(view, cut, packed, unit),
    }


def _start(view: CaseView, cut: _Cut) -> list[int]:
    """Where the viewer opens: on each axis the slice with most label, else prediction; else the middle."""
    for shown in view.shown_things():
        if isinstance(shown, np.ndarray):
            kept = cut.of(shown) > 0
            if kept.any():
                return [int(kept.sum(_others(axis, kept.ndim)).argmax()) for axis in range(kept.ndim)]
        if isinstance(shown, Boxes) and len(shown.corners):
            n = len(view.spatial)
            centre = (shown.corners[0, :n] + shown.corners[0, n:]) / 2
            kept_shape = np.array(cut.of(view.image[0]).shape)
            place = ((centre - cut.start) // cut.stride).clip(0, kept_shape - 1)
            return [int(index) for index in place]
    return [size // 2 for size in cut.of(view.image[0]).shape]


def _notes(view: CaseView, cut: _Cut, packed: Mapping[tuple[str, str], Packed], unit: str) -> list[str]:
    """What differs from the arrays given."""
    steps = [array.step for (kind, _), array in packed.items() if kind == "difference"]
    changes = f", changes in steps of {max(steps):.3g} {unit} or smaller" if steps else ""
    notes = [
        f"Image values are stored in steps of {packed['image', ''].step:.3g} {unit}{changes}; numbers shown are exact "
        "to half a step."
    ]
    if (cut.start, cut.stop) != ((0,) * len(view.spatial), view.spatial):
        spans = [f"{a} to {b - 1} of {n}" for a, b, n in zip(cut.start, cut.stop, view.spatial, strict=True)]
        notes.append(
            "To keep this file small, only the box around everything labelled or predicted, with a margin of "
            f"{MARGIN}, is shown: {listed(spans)} along the axes. What lies outside is not in this file."
        )
    if cut.stride > 1:
        ordinal = {2: "second", 3: "third"}.get(cut.stride, f"{cut.stride}th")
        notes.append(f"To keep this file small, only every {ordinal} pixel or voxel along each axis is shown.")
    if _channels(view) != slice(None) and len(view.image) > 1:
        notes.append(f"Of {len(view.image)} channels the first is shown.")
    return notes
