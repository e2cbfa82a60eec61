# SPDX-License-Identifier: Apache-2.0
"""The section of the page on what is certified: there only where something was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from monai_smia.certificates import certificate_findings, certificate_table
from monai_smia.certificates.table import COLUMNS, how_made
from monai_smia.reports.page_html import size_html, table, value_html

TITLE = "Certified"


def certified_link(rows: Sequence[Mapping[str, Any]]) -> str:
    """The entry of the table of contents; nothing where nothing was certified."""
    return f'<li><a href="#certified">{TITLE}</a></li>' if rows else ""


def certified_section(rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole section, from the rows of a report; nothing where there are none."""
    if not rows:
        return ""
    means = certificate_table(rows)
    unit = escape(str(means["unit"][0]))
    shown = [name for name in COLUMNS if name in means]
    head = [f"L2 radius [{unit}]", f"for each voxel at once [{unit}]", "cases", *(COLUMNS[name] for name in shown)]
    body = []
    for _, row in means.iterrows():
        cells = [size_html(float(row[name])) for name in ("physical_radius", "per_voxel_radius")]
        values = [math.nan if pd.isna(row[name]) else float(row[name]) for name in shown]
        body.append([*cells, str(row["cases"]), *map(value_html, values)])
    return (
        f'<section id="certified" aria-labelledby="certified-title"><h2 id="certified-title">{TITLE}</h2><ul>'
        + "".join(f"<li>{escape(finding)}</li>" for finding in certificate_findings(rows))
        + "</ul>"
        + table("What no change within the radius can alter, the mean over cases", head, body)
        + f"<p>{escape(how_made(rows))}</p></section>"
    )
