"""Curves, their SVG and the figure: all from the same numbers."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from page_samples import sample_report

from monai_smia.reports import CLEAN, RobustnessReport, bootstrap_interval
from monai_smia.reports.curve_svg import curve_svg, ticks
from monai_smia.reports.curves import by_norm, curves_of, figure
from monai_smia.reports.readout import Reading, read_report


def aggregated(values: dict[str, float], attacks: dict[str, str], unit: str = "network units") -> RobustnessReport:
    return RobustnessReport({run: {"auc": value} for run, value in values.items()}, (), attacks, unit)


def test_points_are_the_runs_means() -> None:
    readout = read_report(sample_report())
    pgd, smia = curves_of(readout, readout.measures[0])
    assert [(point.eps, point.run) for point in pgd.points] == [(0.0, CLEAN), (5.0, "PGD_5HU"), (20.0, "PGD_20HU")]
    assert [point.estimate.mean for point in pgd.points] == pytest.approx([0.93, 0.55, 0.35 / 3])
    assert (pgd.points[2].estimate.low, pgd.points[2].estimate.high) == bootstrap_interval([0.10, 0.05, 0.20])
    assert smia.family == "SMIA"
    assert len(smia.points) == 2


def test_norms_share_no_axis_and_unknown_budgets_have_no_place() -> None:
    attacks = {"a": "PGD(L(), eps=0.1)", "b": "PGD(L(), eps=3.0, norm=2.0)", "c": "odd"}
    readout = read_report(aggregated({CLEAN: 0.9, "a": 0.5, "b": 0.4, "c": 0.3}, attacks))
    panels = by_norm(curves_of(readout, readout.measures[0]))
    assert [[(curve.norm, curve.points[-1].run) for curve in own] for own in panels] == [
        [(math.inf, "a")],
        [(2.0, "b")],
    ]


def positions(svg: str, kind: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(svg)
    lines = [element.get("d") for element in root.iter("path") if (element.get("class") or "").startswith(kind)]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", line or "")] for line in lines]


def test_the_drawing_is_to_scale() -> None:
    readout = read_report(sample_report())
    svg = curve_svg(curves_of(readout, readout.measures[0]), title="t", x_label="change")
    line = positions(svg, "line")[0]
    xs, ys = [x for x, _ in line], [y for _, y in line]
    assert (xs[1] - xs[0]) / (xs[2] - xs[0]) == pytest.approx(5 / 20, abs=0.01)
    assert (ys[1] - ys[0]) / (ys[2] - ys[0]) == pytest.approx((0.93 - 0.55) / (0.93 - 0.35 / 3), abs=0.01)
    band = positions(svg, "band")[0]
    assert len(band) == 6
    for high, point, low in zip(band[:3], line, reversed(band[3:]), strict=True):
        assert high[1] <= point[1] <= low[1]  # down the page is down the axis


def test_undefined_and_infinite_points_leave_gaps() -> None:
    attacks = {f"P_{k}": f"P(L(), eps={k})" for k in (1, 2, 3, 4)}
    values = {CLEAN: 0.9, "P_1": 0.8, "P_2": math.nan, "P_3": math.inf, "P_4": 0.1}
    readout = read_report(aggregated(values, attacks))
    lines = positions(curve_svg(curves_of(readout, readout.measures[0]), title="t", x_label="x"), "line")
    assert [len(line) for line in lines] == [2, 1]


def test_names_do_not_overlap_and_are_escaped() -> None:
    attacks = {f"A{k}<b>": f"K{k}(L(), eps=1.0)" for k in range(8)} | {"<i>_x": "no repr"}
    values = {CLEAN: 0.9} | dict.fromkeys(attacks, 0.5)
    readout = read_report(aggregated(values, attacks))
    svg = curve_svg(curves_of(readout, readout.measures[0]), title='"<t>"', x_label="<x>")
    root = ElementTree.fromstring(svg)
    heights = sorted(float(e.get("y") or 0) for e in root.iter("text") if (e.get("class") or "").startswith("name"))
    assert len(heights) == 8
    assert min(b - a for a, b in pairwise(heights)) >= 14.9


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-3, 7), (0, 0.003), (17.2, 17.9), (0, 1400)])
def test_ticks_are_few_and_cover_the_range(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 4 <= len(found) <= 9
    assert found[0] <= low
    assert found[-1] >= high
    assert len({round(b - a, 9) for a, b in pairwise(found)}) == 1


def test_the_figure_has_the_same_numbers() -> None:
    pytest.importorskip("matplotlib")
    drawn = figure(sample_report(), "curve", reading=Reading(names={"dice": "Dice of all"}))
    axis = drawn.axes[0]
    assert list(axis.lines[0].get_xdata()) == [0, 5, 20]
    assert list(axis.lines[0].get_ydata()) == pytest.approx([0.93, 0.55, 0.35 / 3])
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("largest change [HU]", "Dice of all")
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["PGD", "SMIA"]


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="kind: expected 'curve' or 'case'; got 'pie'"):
        figure(sample_report(), "pie")
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="report: expected a metric and a run with a known budget"):
        figure(aggregated({CLEAN: 0.9, "x": 0.5}, {"x": "odd"}), "curve")
