# SPDX-License-Identifier: Apache-2.0
"""`read_yolo_boxes`: corners found by hand, a round trip, MONAI's own conversion, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from monai.data.box_utils import CenterSizeMode, convert_box_mode

from monai_smia.data import read_yolo_boxes


def write(folder: Path, text: str) -> Path:
    path = folder / "a.txt"
    path.write_text(text)
    return path


def test_corners_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path, "0 0.5 0.25 0.2 0.1\n\n12 1 0 0.5 1\n")
    boxes, labels = read_yolo_boxes(str(path), (100, 40))
    np.testing.assert_allclose(boxes, [[40, 8, 60, 12], [75, -20, 125, 20]], rtol=1e-6)
    assert labels.tolist() == [0, 12]
    assert (boxes.dtype, labels.dtype) == (np.float32, np.int64)


def test_boxes_survive_a_round_trip_and_agree_with_monai(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    size = (622, 530)
    low = generator.uniform(0, 0.5, (20, 2)) * size
    corners = np.concatenate([low, low + generator.uniform(0.01, 0.5, (20, 2)) * size], axis=1)
    centred = np.concatenate([corners[:, :2] + corners[:, 2:], 2 * (corners[:, 2:] - corners[:, :2])], axis=1) / 2
    rows = ["7 " + " ".join(map(repr, row)) for row in (centred / np.tile(size, 2)).tolist()]
    boxes, labels = read_yolo_boxes(write(tmp_path, "\n".join(rows)), size)
    np.testing.assert_allclose(boxes, corners, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(boxes, convert_box_mode(centred, src_mode=CenterSizeMode), rtol=1e-6, atol=1e-4)
    assert set(labels.tolist()) == {7}


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_text_is_an_image_without_boxes(tmp_path: Path, text: str) -> None:
    boxes, labels = read_yolo_boxes(write(tmp_path, text), (10, 10))
    assert (boxes.shape, boxes.dtype) == ((0, 4), np.float32)
    assert (labels.shape, labels.dtype) == ((0,), np.int64)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.1 0.2 0.3", r"expected 5 columns \(class cx cy w h\), got 4"),
        ("0 0.1 0.2 0.3 0.4 0.9", "expected 5 columns .* got 6"),
        ("-1 0.1 0.2 0.3 0.4", "expected a class, an integer from 0, got '-1'"),
        ("1.0 0.1 0.2 0.3 0.4", "expected a class, an integer from 0, got '1.0'"),
        ("blur 0.1 0.2 0.3 0.4", "expected a class, an integer from 0, got 'blur'"),
        ("0 0.1 1.2 0.3 0.4", r"expected numbers in \[0, 1\] for cx cy w h, got '1.2'"),
        ("0 -0.1 0.2 0.3 0.4", "got '-0.1'"),
        ("0 nan 0.2 0.3 0.4", "got 'nan'"),
        ("0 0.1 0.2 0.3 half", "got 'half'"),
    ],
)
def test_a_line_that_is_not_a_box_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, f"0 0.1 0.2 0.3 0.4\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"a\.txt, line 3: .*{message}"):
        read_yolo_boxes(path, (10, 10))


def test_size_and_path_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    for size in ((0, 10), (10,), (10, -1)):
        with pytest.raises(ValueError, match=r"size: expected \(width, height\) in pixels"):
            read_yolo_boxes(path, size)
    with pytest.raises(FileNotFoundError, match=r"path: expected a text file with boxes, .*b\.txt"):
        read_yolo_boxes(tmp_path / "b.txt", (10, 10))
