# SPDX-License-Identifier: Apache-2.0
"""Names of files, cases and metrics as text that is safe to open: in a spreadsheet, and in Markdown."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a spreadsheet takes for the beginning of a formula, or passes over to find one."""

_SPECIAL = re.compile(r"[\\`*|~]|^[\[>#]|\](?=[(\[:])")  # a bracket where it may end a link or begin its definition
_LINK = re.compile(r"(?i)(?<=[a-z]):(?=//)|\b(?<=www)\.|@|(?i:\bmailto):|(?i:\bxmpp):")


def csv_cell(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula with ``'`` before it; numbers, also as texts, as they are.

    Example:
        >>> [csv_cell(value) for value in ("=HYPERLINK(1)", "a.nii", -0.5, "-0.5", "-1+2", "@SUM(A1)")]
        ["'=HYPERLINK(1)", 'a.nii', -0.5, '-0.5', "'-1+2", "'@SUM(A1)"]
    """
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")  # a lone \r is not quoted, and begins a row to some
    if not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value if value.strip() == value else f"'{value}"


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV without its index, every text through `csv_cell`, the names of the columns too."""
    safe = frame.rename(columns=lambda name: csv_cell(str(name)))
    for k in range(safe.shape[1]):
        if not pd.api.types.is_numeric_dtype(safe.dtypes.iloc[k]):
            safe.isetitem(k, safe.iloc[:, k].map(csv_cell))
    text: str = safe.to_csv(index=False)
    return text


def escaped(text: str) -> str:
    """Text in one line of Markdown, in a table or outside, that is no HTML, link, image, code or emphasis.

    Underscores and the brackets of units stay: they mean nothing.

    Example:
        >>> print(escaped("[a](http://b) <img> | `c`, change [HU]"))
        \\[a\\](http\\://b) &lt;img> \\| \\`c\\`, change [HU]
    """
    line = _SPECIAL.sub(r"\\\g<0>", " ".join(text.split())).replace("<", "&lt;")
    return _LINK.sub(lambda found: found[0][:-1] + "\\" + found[0][-1], line)


def as_code(text: str) -> str:
    """Text as a code span of a table's cell, fenced by more backticks than it holds.

    Example:
        >>> print(as_code("PGD(goal=`x` | y)"))
        `` PGD(goal=`x` \\| y) ``
    """
    line = " ".join(text.split()).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence, room = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{room}{line}{room}{fence}"
