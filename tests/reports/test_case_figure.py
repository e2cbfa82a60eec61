"""The panels of a case's figure hold the numbers of its arrays, the right way round."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from page_samples import frame_view, sample_report, volume_view

from monai_smia.reports import CaseView, Reading, RobustnessReport, figure
from monai_smia.reports.case_slices import change, chosen_slice, rectangles
from monai_smia.reports.views import Boxes

pytest.importorskip("matplotlib")

REPORT = sample_report()


def shown(axis: Any, k: int = 0) -> np.ndarray:
    return np.asarray(axis.images[k].get_array())


def texts(drawn: Any) -> list[str]:
    return [axis.get_title() for axis in drawn.axes]


def test_panels_of_a_plane_image() -> None:
    """One pixel right of the middle and above it is 7 darker, one is 3 brighter."""
    image = np.arange(24.0).reshape(1, 6, 4)
    adversarial = image.copy()
    adversarial[0, 4, 1] -= 7
    adversarial[0, 2, 3] += 3
    label, wrong = np.zeros((6, 4), int), np.zeros((6, 4), int)
    label[1:4, 2] = 1
    wrong[4, 1] = 2
    view = CaseView("a.png", image, {"PGD": adversarial}, label, {"PGD": wrong}, label, classes=("", "lung"))
    drawn = REPORT.figure("case", "a.png", views=[view])
    panels = drawn.axes[:5]
    assert texts(drawn)[:5] == ["image", "adversarial", "difference", "prediction, clean", "prediction, adversarial"]
    assert np.array_equal(shown(panels[0]), image[0].T)
    assert np.array_equal(shown(panels[1]), adversarial[0].T)
    difference = shown(panels[2])
    assert (difference[1, 4], difference[3, 2]) == (-7, 3)  # row, column: second axis down, first to the right
    assert np.count_nonzero(difference) == 2
    assert panels[2].images[0].get_clim() == (-7, 7)
    assert panels[0].images[0].get_clim() == panels[1].images[0].get_clim() == (0, 23)
    assert np.array_equal(shown(panels[3], 1)[..., 3] > 0, label.T)
    assert np.array_equal(shown(panels[4], 1)[..., 3] > 0, wrong.T > 0)
    assert not np.array_equal(shown(panels[3], 1)[2, 1], shown(panels[4], 1)[1, 4])  # classes differ in colour
    assert panels[0].get_ylim() == (3.5, -0.5)  # down
    assert panels[0].get_ylabel() == "PGD"
    assert drawn.axes[5].get_ylabel() == "HU"  # the colour bar
    legend = drawn.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["lung", "class 2", "label"]


def test_slices_of_a_volume_go_up_and_are_to_scale() -> None:
    view = replace(volume_view(), spacing=(1.0, 3.0, 2.0))
    drawn = figure(REPORT, "case", views=[view])
    panels = drawn.axes[:5]
    assert drawn.get_suptitle() == "a.nii.gz, slice 7 of 12"  # the ball's centre is at 6
    assert np.array_equal(shown(panels[0]), view.image[0, :, :, 6].T)
    change = (view.adversarial["PGD_5HU"] - view.image)[0, :, :, 6].T
    assert np.array_equal(shown(panels[2]), change)
    assert np.array_equal(shown(panels[4], 1)[..., 3] > 0, view.predictions["PGD_5HU"][:, :, 6].T)
    assert panels[0].get_ylim() == (-0.5, 15.5)
    assert panels[0].get_aspect() == 3
    outline = np.concatenate([path.vertices for path in panels[4].collections[0].get_paths()])
    ball = np.argwhere(view.label[:, :, 6])
    assert outline.min(0) == pytest.approx(ball.min(0) - 0.5)
    assert outline.max(0) == pytest.approx(ball.max(0) + 0.5)
    other = figure(REPORT, "case", views=[view], index=2)
    assert np.array_equal(shown(other.axes[0]), view.image[0, :, :, 2].T)


def test_the_slice_is_the_one_with_most_to_see() -> None:
    image, nothing = np.zeros((1, 4, 4, 9)), np.zeros((4, 4, 9), int)
    adversarial = image.copy()
    adversarial[..., 8] = 1
    label, clean, attacked = nothing.copy(), nothing.copy(), nothing.copy()
    label[0, 0, 1], clean[:2, 0, 3:6], attacked[..., 7] = 1, 1, 1
    view = CaseView("a", image, {"PGD": adversarial, "same": image}, clean, {"PGD": attacked}, label)
    assert chosen_slice(view, ["PGD"]) == 1
    assert chosen_slice(replace(view, label=nothing), ["PGD"]) == 4  # the middle of three equal ones
    assert chosen_slice(replace(view, label=None, clean_prediction=nothing), ["PGD", "same"]) == 7
    assert chosen_slice(replace(view, label="ill", clean_prediction=None), ["same"]) == 4  # the middle of the volume
    assert chosen_slice(replace(view, label=None, clean_prediction=None, predictions={}), ["PGD"]) == 8
    boxes = [[0, 0, 0, 1, 1, 9], [0, 0, 5, 3, 3, 6]]
    assert chosen_slice(replace(view, label=boxes), ["PGD"]) == 5


def test_colours_and_their_change() -> None:
    """Of three channels that change by -3, 2 and 1 the first is drawn, with its sign."""
    image = np.zeros((3, 2, 4))
    image[:, 1, 0] = 100, 50, 0
    adversarial = image.copy()
    adversarial[:, 0, 3] += -3, 2, 1
    view = CaseView("a", image, {"PGD": adversarial})
    drawn = figure(REPORT, "case", views=[view])
    assert shown(drawn.axes[0]).shape == (4, 2, 3)
    assert shown(drawn.axes[0])[0, 1].tolist() == [1, 0.5, 0]
    difference = shown(drawn.axes[2])
    assert difference[3, 0] == -3
    assert np.count_nonzero(difference) == 1
    assert np.array_equal(change(image[:2], adversarial[:2], None), (adversarial - image)[0].T)


def test_boxes_cover_their_pixels() -> None:
    drawn = figure(REPORT, "case", views=[frame_view()])
    clean, attacked = drawn.axes[3:5]
    found = [(patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) for patch in clean.patches]
    assert found == [(3.5, 2.5, 8, 8), (3.5, 2.5, 8, 7)]  # predicted, labelled: 4, 3 to 12, 11 and to 12, 10
    assert [patch.get_linestyle() for patch in clean.patches] == ["-", "--"]
    assert [text.get_text() for text in clean.texts] == ["polyp 0.90"]
    assert len(attacked.patches) == 1
    deep = Boxes(np.array([[0.0, 0, 0, 1, 1, 2.5]]), (), ())
    assert [len(rectangles(deep, index)) for index in range(4)] == [1, 1, 1, 0]


def test_texts_are_titles_and_rows_are_runs() -> None:
    image = np.zeros((1, 5, 4))
    runs = {"a": image, "b$_$": image + 1, "c": image + 2}
    said = {"a": "ill (p = 0.7)", "c": "$x$"}
    view = CaseView("$case$^", image, runs, "healthy", said, "$healthy_$")
    drawn = REPORT.figure("case", views=[view, frame_view()], case="$case$^", runs=["c", "b$_$"])
    assert len(drawn.axes) == 12
    assert [drawn.axes[k].get_ylabel() for k in (0, 5)] == ["c", "b$_$"]
    assert float(shown(drawn.axes[2]).max()) == 2
    assert texts(drawn)[3:5] == ["prediction, clean:\nhealthy", "prediction, adversarial:\n$x$"]
    assert texts(drawn)[9] == "prediction, adversarial:\nnot known"
    assert drawn.get_suptitle() == "$case$^\nlabel: $healthy_$"
    drawn.savefig(io.BytesIO(), format="svg")  # nothing is read as a formula
    assert figure(REPORT, "case", views=[view], runs="a").axes[2].images[0].get_clim() == (-1, 1)  # no change


@pytest.mark.parametrize("view", [volume_view(), frame_view(), replace(volume_view(), label=None, classes=("", "$x$"))])
def test_figures_are_written_and_leave_no_state(view: CaseView) -> None:
    pillow = pytest.importorskip("PIL.Image")
    drawn = figure(REPORT, "case", views=[view])
    png, svg = io.BytesIO(), io.BytesIO()
    drawn.savefig(png, format="png", dpi=50)
    drawn.savefig(svg, format="svg")
    with pillow.open(png) as picture:
        assert picture.size == tuple(int(round(side * 50, 6)) for side in drawn.get_size_inches())
    assert ElementTree.fromstring(svg.getvalue()).tag.endswith("svg")
    assert pytest.importorskip("matplotlib.pyplot").get_fignums() == []


def test_what_cannot_be_drawn_is_refused() -> None:
    view = volume_view()
    with pytest.raises(ValueError, match="views: expected one view, or a case of several; got views of \\[\\]"):
        REPORT.figure("case")
    with pytest.raises(ValueError, match="views: expected one view of 'b'; got views of \\['a.nii.gz'\\]"):
        REPORT.figure("case", "b", views=[view])
    with pytest.raises(ValueError, match="runs: expected at least one of \\['PGD_5HU'\\]; got \\['x'\\]"):
        REPORT.figure("case", views=[view], runs=["x"])
    with pytest.raises(ValueError, match="runs: expected at least one of \\[\\]; got \\[\\]"):
        REPORT.figure("case", views=[replace(view, adversarial={}, predictions={})])
    with pytest.raises(ValueError, match="index: expected a slice from 0 to 11; got 12"):
        REPORT.figure("case", views=[view], index=12)
    with pytest.raises(ValueError, match="reading: expected none for the kind 'case'"):
        REPORT.figure("case", views=[view], reading=Reading())
    with pytest.raises(ValueError, match="case: expected none for the kind 'curve'; got 'a'"):
        REPORT.figure("curve", "a")
    with pytest.raises(ValueError, match="kind: expected 'curve' or 'case'; got 'pie'"):
        REPORT.figure("pie")


def test_the_curve_is_the_same_through_the_report() -> None:
    reading = Reading(metric="distance")
    one, other = REPORT.figure("curve", reading=reading), figure(REPORT, "curve", reading=reading)
    assert isinstance(REPORT, RobustnessReport)
    for first, second in zip(one.axes[0].lines, other.axes[0].lines, strict=True):
        assert np.array_equal(first.get_xydata(), second.get_xydata(), equal_nan=True)
