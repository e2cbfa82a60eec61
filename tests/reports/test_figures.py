"""What the pictures are made of, on tensors small enough to see."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch

from monai_smia.reports.figures import central_slice, label_map, overlay


def test_label_map_of_one_hot_and_single_channel() -> None:
    one_hot = torch.tensor([[[1, 0], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [1, 1]]])
    classes = torch.tensor([[0, 1], [2, 2]])
    assert torch.equal(label_map(one_hot), classes)
    assert torch.equal(label_map(torch.tensor([[[0.1, 0.9], [2.0, 1.8]]])), classes)
    assert torch.equal(label_map(classes[None]), classes)


def test_central_slice_is_the_one_with_most_foreground() -> None:
    labels = torch.zeros(4, 3, 5, dtype=torch.long)
    labels[0, 0, 1] = 2
    labels[0:2, 0:2, 3] = 1  # four voxels of class 1 outweigh one of class 2
    assert central_slice(labels) == 3
    assert central_slice(torch.zeros(4, 3, 5)) == 0
    assert central_slice(labels[..., 0]) is None


@pytest.mark.parametrize(("size", "labelled"), [((8, 6), False), ((8, 6, 4), True)])
def test_overlay_is_a_png_also_where_nothing_changed(size: tuple[int, ...], labelled: bool) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    clean = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    classes = (clean > 0.5).float()
    png = overlay(clean, clean, classes, classes, classes if labelled else None, title="t", unit="HU")
    with image.open(io.BytesIO(png)) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("PNG", (1500, 360))


def centre(panel: Any, colour: tuple[int, int, int]) -> np.ndarray:
    """Mean (column, row) of the pixels of about this colour."""
    pixels = np.asarray(panel.convert("RGB")).astype(int)
    rows, columns = np.nonzero(np.abs(pixels - colour).max(-1) < 12)
    assert len(rows) > 500
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize(("size", "second_axis"), [((8, 8), 1), ((8, 8, 3), -1)], ids=["2-D", "3-D"])
def test_overlay_shows_where_and_which_way_the_image_changed(size: tuple[int, ...], second_axis: int) -> None:
    """Brighter where both indices are low, darker where both are high: the first axis runs to the right, the second
    down in a photograph and up in a volume."""
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    clean, classes = torch.zeros(1, *size), torch.zeros(1, *size)
    adversarial = clean.clone()
    adversarial[:, :4, :4] = 1.0
    adversarial[:, 4:, 4:] = -1.0
    with image.open(io.BytesIO(overlay(clean, adversarial, classes, classes, None))) as picture:
        panel = picture.crop((620, 60, 790, 320))  # the third, left of its colour bar
        right, down = centre(panel, (5, 48, 97)) - centre(panel, (103, 0, 31))
    assert right > 40
    assert down * second_axis > 40
