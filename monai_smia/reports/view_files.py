# SPDX-License-Identifier: Apache-2.0
"""`save_view` and `load_view`: one case to look at in one compressed file, exactly."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from monai_smia.reports.files import write_whole
from monai_smia.reports.packing import Array
from monai_smia.reports.schema import CaseViewFile, validated
from monai_smia.reports.views import Boxes, CaseView, Shown

FORMAT = "monai_smia case view 1"
_ABOUT = "about"


def save_view(view: CaseView, file: str | Path, *, overwrite: bool = False) -> Path:
    """Write a view as a compressed ``.npz``, whole or not at all.

    It holds arrays (image, adversarial images, label maps, corners of boxes) and one JSON text with everything else;
    nothing in it is pickled. The same view gives the same bytes.

    Args:
        view: which.
        file: where to, usually ``<case>.npz``; the folder is made.
        overwrite: whether an existing file may be replaced.

    Returns:
        The file.

    Raises:
        FileExistsError: when there is a file and `overwrite` is false.

    Example:
        >>> import tempfile
        >>> view = CaseView("a.png", np.zeros((1, 8, 8)), {"PGD": np.ones((1, 8, 8))}, label="healthy")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load_view(save_view(view, Path(folder) / "a.npz"))
        >>> again.case, again.label, float(again.adversarial["PGD"].max())
        ('a.png', 'healthy', 1.0)
    """
    arrays: dict[str, Any] = {"image": view.image}
    for k, array in enumerate(view.adversarial.values()):
        arrays[f"adversarial_{k}"] = array
    about = {
        "version": CaseViewFile.VERSION,
        "format": FORMAT,
        "case": view.case,
        "runs": list(view.adversarial),
        "label": _put(view.label, "label", arrays),
        "clean": _put(view.clean_prediction, "clean", arrays),
        "predictions": [
            [run, _put(shown, f"prediction_{k}", arrays)] for k, (run, shown) in enumerate(view.predictions.items())
        ],
        "spacing": None if view.spacing is None else [float(size) for size in view.spacing],
        "orientation": view.orientation,
        "classes": list(view.classes),
    }
    arrays[_ABOUT] = np.array(json.dumps(about))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(file, buffer.getvalue(), overwrite)
    return Path(file)


def load_view(file: str | Path) -> CaseView:
    """The view that `save_view` wrote: arrays bit for bit; spacing and classes are tuples.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is something else, or damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        about = validated(CaseViewFile, json.loads(str(arrays[_ABOUT])), _ABOUT)
        runs = {run: arrays[f"adversarial_{k}"] for k, run in enumerate(about.runs)}
        return CaseView(
            about.case,
            arrays["image"],
            runs,
            _taken(about.clean, "clean", arrays),
            {run: _taken(kind, f"prediction_{k}", arrays) for k, (run, kind) in enumerate(about.predictions)},
            _taken(about.label, "label", arrays),
            None if about.spacing is None else tuple(about.spacing),
            about.orientation,
            tuple(about.classes),
        )
    except (AttributeError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"file: expected a case that save_view wrote; got {file} ({error})") from error


def _put(shown: Shown, name: str, arrays: dict[str, Array]) -> dict[str, Any] | None:
    """What the JSON says of a label or prediction; its numbers go to `arrays`."""
    if shown is None:
        return None
    if isinstance(shown, str):
        return {"text": shown}
    if isinstance(shown, Boxes):
        arrays[name] = shown.corners
        return {"labels": shown.labels, "scores": shown.scores}
    arrays[name] = shown
    return {}


def _taken(kind: dict[str, Any] | None, name: str, arrays: dict[str, Array]) -> Shown:
    if kind is None or "text" in kind:
        return None if kind is None else kind["text"]
    if "labels" in kind:
        return Boxes(arrays[name], tuple(kind["labels"]), tuple(kind["scores"]))
    return arrays[name]
