# SPDX-License-Identifier: Apache-2.0
"""Pieces of HTML text that several sections of the page use."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from monai_smia.reports.readout import Estimate
from monai_smia.reports.wording import UNDEFINED, counted, shown, sized


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], name: str = "") -> str:
    """A table in a box of its own that scrolls; `head` and `rows` are HTML, the first cell of a row heads it."""
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    identity = f' id="{name}"' if name else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table{identity}><caption>{escape(caption)}</caption><thead><tr>{columns}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def value_html(value: float, digits: int = 3) -> str:
    """A number, or "undefined" set apart."""
    text = shown(value, digits)
    return f'<span class="undefined">{text}</span>' if text == UNDEFINED else text


def size_html(value: float) -> str:
    """A size of a change."""
    return value_html(value) if math.isnan(value) else sized(value)


def estimate_html(estimate: Estimate) -> str:
    """Mean, interval and how many cases have no value."""
    parts = [f'<span class="number">{value_html(estimate.mean)}</span>']
    if not math.isnan(estimate.low):
        parts.append(f'<span class="interval">{shown(estimate.low)} to {shown(estimate.high)}</span>')
    if estimate.undefined and estimate.defined:
        parts.append(f'<span class="interval">{counted(estimate.undefined, "case")} undefined</span>')
    return " ".join(parts)


def as_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def rounded(value: float) -> float | str | None:
    """Six digits; ``None`` for NaN, and what JSON has no number for as a text."""
    if math.isnan(value):
        return None
    return float(f"{value:.6g}") if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")
