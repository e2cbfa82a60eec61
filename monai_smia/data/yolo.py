# SPDX-License-Identifier: Apache-2.0
"""Reading boxes from the text of YOLO: a line ``class cx cy w h`` for each box, in fractions of the image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def read_yolo_boxes(
    path: str | os.PathLike[str], size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read the boxes of one image as corners in pixels.

    With centre (c_x, c_y) and extent (w, h) in fractions of the image's width W and height H:
    xmin = (c_x - w/2) W, xmax = (c_x + w/2) W, ymin = (c_y - h/2) H, ymax = (c_y + h/2) H.

    Args:
        path: the text file. Blank lines are skipped; an empty file means an image without boxes.
        size: (width, height) of the image in pixels, above 0.

    Returns:
        Boxes (N, 4), float32: xmin, ymin, xmax, ymax in pixels, and labels (N,), int64: the class of each box. Boxes
        are not clipped: the corners of one whose centre is near the border may lie outside the image.

    Raises:
        FileNotFoundError: the text is missing.
        ValueError: `size` is not two numbers above 0, or a line does not hold five columns, a class from 0 and four
            numbers in [0, 1]; names the file and the line.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = path.write_text("5 0.5 0.5 0.25 0.5\\n")
        >>> boxes, labels = read_yolo_boxes(path, (200, 100))
        >>> boxes.tolist(), labels.tolist()
        ([[75.0, 25.0, 125.0, 75.0]], [5])
    """
    text = Path(path)
    if not text.is_file():
        raise FileNotFoundError(f"path: expected a text file with boxes, {text} is none")
    if len(size) != 2 or min(size) <= 0:
        raise ValueError(f"size: expected (width, height) in pixels, both above 0, got {size!r}")
    lines = enumerate(text.read_text(encoding="utf-8-sig").splitlines(), 1)
    rows = [_parsed(text, number, line) for number, line in lines if line.strip()]
    labels = np.asarray([label for label, _ in rows], np.int64)
    centre, extent = np.split(np.asarray([box for _, box in rows], np.float64).reshape(-1, 4), 2, axis=1)
    corners = np.concatenate([centre - extent / 2, centre + extent / 2], axis=1) * np.tile(size, 2)
    return corners.astype(np.float32), labels


def _parsed(path: Path, number: int, line: str) -> tuple[int, list[float]]:
    columns = line.split()
    if len(columns) != 5:
        raise ValueError(f"{path}, line {number}: expected 5 columns (class cx cy w h), got {len(columns)}: {line!r}")
    if not columns[0].isdecimal():
        raise ValueError(f"{path}, line {number}: expected a class, an integer from 0, got {columns[0]!r}")
    return int(columns[0]), [_fraction(path, number, column) for column in columns[1:]]


def _fraction(path: Path, number: int, column: str) -> float:
    try:
        value = float(column)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise ValueError(f"{path}, line {number}: expected numbers in [0, 1] for cx cy w h, got {column!r}")
    return value
