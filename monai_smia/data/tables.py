# SPDX-License-Identifier: Apache-2.0
"""Reading a CSV table whose columns are known."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header: the number of the line in the file, and the asked columns' text, stripped.

    Raises:
        ValueError: a column is missing, a row is shorter than the header, or there is no row.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: expected the columns {', '.join(columns)}, {missing[0]!r} is missing")
        rows = []
        for row in reader:
            if any(row[name] is None for name in columns):
                raise ValueError(f"{path}, line {reader.line_num}: the row is shorter than the header")
            rows.append((reader.line_num, {name: row[name].strip() for name in columns}))
    if not rows:
        raise ValueError(f"{path}: expected at least one row below the header")
    return rows
