# SPDX-License-Identifier: Apache-2.0
"""`curve_svg`: curves over the budget as SVG text, styled by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby

from monai_smia.reports.curves import Curve, Point
from monai_smia.reports.wording import UNDEFINED, shown

WIDTH, HEIGHT = 470.0, 300.0
_TOP, _LEFT, _BOTTOM = 14.0, 46.0, 46.0
_LETTER = 10.0  # width of a capital of the labels, which are bold
_APART = 15.0  # least distance of two labels' lines
_STYLES = 8

Marks = dict[int, str]
_MARKS: Marks = {
    0: "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0Z",
    1: "M-3.2 -3.2H3.2V3.2H-3.2Z",
    2: "M0 -4.4L4.2 3.2H-4.2Z",
    3: "M0 -4.6L4.6 0L0 4.6L-4.6 0Z",
    4: "M0 4.4L4.2 -3.2H-4.2Z",
    5: "M-4.4 0L3.2 -4.2V4.2Z",
    6: "M4.4 0L-3.2 -4.2V4.2Z",
    7: "M-1.4 -4H1.4V-1.4H4V1.4H1.4V4H-1.4V1.4H-4V-1.4H-1.4Z",
}


def curve_svg(curves: Sequence[Curve], *, title: str, x_label: str) -> str:
    """One chart: bands, lines, marks, and each curve's name at its right end.

    Args:
        curves: of one norm.
        title: what the chart shows, for screen readers.
        x_label: below the axis, with the unit.

    Returns:
        An ``<svg>`` element; its colours are the classes ``s0`` to ``s7``, which the page defines for light and dark.
    """
    points = [point for curve in curves for point in curve.points]
    means = [point.estimate.mean for point in points if math.isfinite(point.estimate.mean)]
    ends = [end for point in points for end in _band(point) if math.isfinite(end)]
    low, high = _range([*means, *ends])
    right = WIDTH - 14 - _LETTER * max((len(_name(curve)) for curve in curves), default=0)
    most = max((point.eps for point in points), default=1.0) or 1.0
    x_ticks, y_ticks = ticks(0.0, most), ticks(low, high)
    x_high, low, high = max(most, x_ticks[-1]), min(low, y_ticks[0]), max(high, y_ticks[-1])
    bottom = HEIGHT - _BOTTOM

    def across(eps: float) -> float:
        return _LEFT + (right - _LEFT) * eps / x_high

    def down(value: float) -> float:
        return bottom - (bottom - _TOP) * (value - low) / (high - low)

    parts = [f'<svg class="curve" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(title)}">']
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{_LEFT:g} {down(tick):.1f}H{right:.1f}"/>')
        parts.append(_text("tick", _LEFT - 7, down(tick) + 4, _tick(tick), "end"))
    for tick in x_ticks:
        parts.append(f'<path class="axis" d="M{across(tick):.1f} {bottom:g}v4"/>')
        parts.append(_text("tick", across(tick), bottom + 18, _tick(tick), "middle"))
    parts.append(f'<path class="axis" d="M{_LEFT:g} {bottom:g}H{right:.1f}"/>')
    parts.append(_text("tick", (_LEFT + right) / 2, HEIGHT - 8, x_label, "middle"))
    for i, curve in enumerate(curves):
        for piece in _pieces(curve.points, with_band=True):
            forth = [f"{across(point.eps):.1f} {down(point.estimate.high):.1f}" for point in piece]
            back = [f"{across(point.eps):.1f} {down(point.estimate.low):.1f}" for point in reversed(piece)]
            parts.append(f'<path class="band s{i % _STYLES}" d="M{"L".join(forth + back)}Z"/>')
    for i, curve in enumerate(curves):
        style = f"s{i % _STYLES}"
        for piece in _pieces(curve.points, with_band=False):
            line = "L".join(f"{across(point.eps):.1f} {down(point.estimate.mean):.1f}" for point in piece)
            parts.append(f'<path class="line {style} d{i % 4}" d="M{line}"/>')
            for point in piece:
                place = f"translate({across(point.eps):.1f} {down(point.estimate.mean):.1f})"
                said = escape(f"{curve.family}, {point.eps:g}: {_said(point)}")
                mark = f'<path class="mark {style}" transform="{place}" d="{_MARKS[i % _STYLES]}">'
                parts.append(f"{mark}<title>{said}</title></path>")
    parts += _labels(curves, right, down, bottom)
    return "".join(parts) + "</svg>"


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, four to eight of them, from at most `low` to at least `high`.

    Example:
        >>> ticks(0, 20), ticks(0, 1)
        ([0.0, 5.0, 10.0, 15.0, 20.0], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    """
    raw = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{step * k:.10g}") for k in range(first, last + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Of the vertical axis: 0 to 1 where everything is inside."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    low = min(low, 0.0) if low < 0.5 * high else low
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _band(point: Point) -> tuple[float, float]:
    return point.estimate.low, point.estimate.high


def _said(point: Point) -> str:
    low, high = _band(point)
    interval = "" if math.isnan(low) else f" ({shown(low)} to {shown(high)})"
    return UNDEFINED if math.isnan(point.estimate.mean) else shown(point.estimate.mean) + interval


def _pieces(points: Sequence[Point], *, with_band: bool) -> list[list[Point]]:
    """Runs of neighbours that have a finite mean (and band)."""

    def drawable(point: Point) -> bool:
        return all(map(math.isfinite, (point.estimate.mean, *(_band(point) if with_band else ()))))

    return [list(piece) for can, piece in groupby(points, drawable) if can]


def _labels(curves: Sequence[Curve], right: float, down: Callable[[float], float], bottom: float) -> list[str]:
    """Names at the curves' right ends, moved apart where they would overlap, with a line to the end."""
    ends = []
    for i, curve in enumerate(curves):
        drawn = [point for point in curve.points if math.isfinite(point.estimate.mean)]
        if drawn:
            ends.append((down(drawn[-1].estimate.mean), i, _name(curve)))
    ends.sort()
    places: list[float] = []
    for y, _, _ in ends:
        places.append(max(y, places[-1] + _APART) if places else y)
    lowest = bottom
    for k in reversed(range(len(places))):
        places[k] = min(places[k], lowest)
        lowest = places[k] - _APART
    parts = []
    for (y, i, name), place in zip(ends, places, strict=True):
        style = f"s{i % _STYLES}"
        parts.append(f'<path class="leader {style}" d="M{right + 1:.1f} {y:.1f}L{right + 9:.1f} {place:.1f}"/>')
        parts.append(_text(f"name {style}", right + 12, place + 4, name, "start"))
    return parts


def _name(curve: Curve) -> str:
    """The attack, cut off where it would take the chart's room."""
    return curve.family if len(curve.family) <= 20 else curve.family[:19] + "…"


def _text(style: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
