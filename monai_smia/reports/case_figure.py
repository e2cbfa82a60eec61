# SPDX-License-Identifier: Apache-2.0
"""`case_figure`: one case under attack as a matplotlib figure, for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from monai_smia.reports.case_slices import change, chosen_slice, classes, picture, rectangles
from monai_smia.reports.figures import COLOURS
from monai_smia.reports.orientation import radiological
from monai_smia.reports.packing import Array
from monai_smia.reports.views import Boxes, CaseView, Shown

COLUMNS = ("image", "adversarial", "difference", "prediction, clean", "prediction, adversarial")
_WIDTH = 2.6  # inches of a panel
_BOX, _OUTLINE = "#ffc23d", "#ffffff"
_PLAIN: dict[str, Any] = {"parse_math": False}  # a name may hold a dollar sign


def case_figure(view: CaseView, unit: str, *, runs: Sequence[str] | None = None, index: int | None = None) -> Any:
    """Image, adversarial image, difference and both predictions; a row for each run.

    Images of a row share the grey levels of the clean one; the difference has its own scale, the same on both sides of
    zero (of a colour image, the channel that changed most). Label maps are drawn over the images, boxes too; the label
    is the white outline. Texts are titles. Axes run as in `CaseView`.

    Args:
        view: which case.
        unit: of its images, for the colour bars.
        runs: which, in this order; ``None`` for all of the view.
        index: slice on the third axis shown, from below where the orientation is known; ``None`` for that with most
            label, else most prediction, else most change. Without effect on a 2-D image.

    Returns:
        A ``matplotlib.figure.Figure``, bound to no window; ``savefig`` writes it. Its axes are those of the panels,
        row by row, then the colour bars.

    Raises:
        ValueError: for a run that the view does not have, a view without any, or a slice outside.
        ImportError: without matplotlib (the extra ``report``).

    Example:
        .. code-block:: python

            case_figure(load_view("a.npz"), "HU", runs=["PGD_5HU"]).savefig("a.png", dpi=200)
    """
    from matplotlib.figure import Figure  # an extra; only figures need it

    view = radiological(view)
    chosen = tuple(view.adversarial) if runs is None else (runs,) if isinstance(runs, str) else tuple(runs)
    if not chosen or set(chosen) - set(view.adversarial):
        raise ValueError(f"runs: expected at least one of {list(view.adversarial)}; got {list(chosen)}")
    if len(view.spatial) == 2:
        index = None
    elif index is None:
        index = chosen_slice(view, chosen)
    elif not 0 <= index < view.spatial[2]:
        raise ValueError(f"index: expected a slice from 0 to {view.spatial[2] - 1}; got {index}")
    aspect = 1.0 if view.spacing is None else view.spacing[1] / view.spacing[0]
    height = min(max(_WIDTH * aspect * view.spatial[1] / view.spatial[0], 1.2), 2.5 * _WIDTH)
    drawn = Figure(figsize=(_WIDTH * len(COLUMNS) + 0.8, (height + 0.25) * len(chosen) + 0.9), layout="constrained")
    axes = drawn.subplots(len(chosen), len(COLUMNS), squeeze=False)
    for row, run in zip(axes, chosen, strict=True):
        _draw_row(drawn, row, view, run, index, unit, aspect)
    for axis, title in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(axis.get_title() or title, **_PLAIN)
    drawn.suptitle(_heading(view, index), **_PLAIN)
    _legend(drawn, view, chosen, index)
    return drawn


def _draw_row(
    drawn: Any, row: Sequence[Any], view: CaseView, run: str, index: int | None, unit: str, aspect: float
) -> None:
    clean, adversarial = (picture(image, index) for image in (view.image, view.adversarial[run]))
    ends = float(clean.min()), float(clean.max())
    style: dict[str, Any] = {"aspect": aspect, "origin": "upper" if index is None else "lower"}
    style["interpolation"] = "nearest"
    for axis, image in zip(row, (clean, adversarial, None, clean, adversarial), strict=True):
        if image is not None:
            axis.imshow(_in_range(image, *ends), cmap="gray", vmin=ends[0], vmax=ends[1], **style)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    difference = change(view.image, view.adversarial[run], index)
    size = float(np.abs(difference).max()) or 1.0
    shown = row[2].imshow(difference, cmap="RdBu_r", vmin=-size, vmax=size, **style)
    drawn.colorbar(shown, ax=row[2], shrink=0.8).set_label(unit, **_PLAIN)
    for axis, said, title in zip(row[3:], (view.clean_prediction, view.predictions.get(run)), COLUMNS[3:], strict=True):
        if said is None or isinstance(said, str):
            axis.set_title(f"{title}:\n{said or 'not known'}", **_PLAIN)
        _draw_shown(axis, said, index, style)
        _draw_label(axis, view.label, index)
    row[0].set_ylabel(run, **_PLAIN)


def _in_range(image: Array, low: float, high: float) -> Array:
    """Colours as numbers from 0 to 1; grey levels as they are."""
    return image if image.ndim == 2 else np.clip((image - low) / ((high - low) or 1.0), 0, 1)


def _draw_shown(axis: Any, shown: Shown, index: int | None, style: dict[str, Any]) -> None:
    from matplotlib.colors import to_rgba

    if isinstance(shown, Boxes):
        _draw_boxes(axis, shown, index, _BOX, "-", named=True)
    elif isinstance(shown, np.ndarray):
        values = classes(shown, index)
        layer = np.zeros((*values.shape, 4))
        for k in np.unique(values[values > 0]):
            layer[values == k] = to_rgba(_colour(k), 0.5)
        axis.imshow(layer, **style)


def _draw_label(axis: Any, label: Shown, index: int | None) -> None:
    if isinstance(label, Boxes):
        _draw_boxes(axis, label, index, _OUTLINE, "--", named=False)
    elif isinstance(label, np.ndarray) and min(label.shape[:2]) > 1:
        values = classes(label, index)
        for k in np.unique(values[values > 0]):
            if (values != k).any():
                for colour, width in (("black", 2.0), (_OUTLINE, 0.9)):
                    axis.contour(values == k, levels=[0.5], colors=colour, linewidths=width)


def _draw_boxes(axis: Any, boxes: Boxes, index: int | None, colour: str, line: str, *, named: bool) -> None:
    from matplotlib.patches import Rectangle

    stroke = _stroke()
    for k, left, end, width, height in rectangles(boxes, index):
        style: dict[str, Any] = {"edgecolor": colour, "linestyle": line, "linewidth": 1.2, "path_effects": stroke}
        axis.add_patch(Rectangle((left, end), width, height, fill=False, **style))
        words = [*boxes.labels[k : k + 1], *(f"{score:.2f}" for score in boxes.scores[k : k + 1])]
        if named and words:
            style = {"color": colour, "fontsize": 7, "va": "bottom", "clip_on": True, "path_effects": stroke}
            axis.text(left, end, " ".join(words), **style, **_PLAIN)


def _stroke() -> list[Any]:
    """A dark rim, for what is bright to be seen on a bright image."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.2, foreground="black")]


def _heading(view: CaseView, index: int | None) -> str:
    place = "" if index is None else f", slice {index + 1} of {view.spatial[2]}"
    return view.case + place + (f"\nlabel: {view.label}" if isinstance(view.label, str) else "")


def _legend(drawn: Any, view: CaseView, runs: Sequence[str], index: int | None) -> None:
    """The classes that are drawn, and what the outline is."""
    from matplotlib.artist import Artist
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    said = [view.clean_prediction, *(view.predictions.get(run) for run in runs)]
    found = {int(k) for shown in said if isinstance(shown, np.ndarray) for k in np.unique(classes(shown, index))} - {0}
    handles: list[Artist] = [Patch(color=_colour(k), label=_class_name(view, k)) for k in sorted(found)]
    if isinstance(view.label, (Boxes, np.ndarray)):
        line = "--" if isinstance(view.label, Boxes) else "-"
        style: dict[str, Any] = {"linestyle": line, "linewidth": 1.2, "path_effects": _stroke()}
        handles.append(Line2D([], [], color=_OUTLINE, label="label", **style))
    if handles:
        legend = drawn.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _colour(k: int) -> str:
    return COLOURS[(int(k) - 1) % len(COLOURS)]


def _class_name(view: CaseView, k: int) -> str:
    return view.classes[k] if k < len(view.classes) else f"class {k}"
