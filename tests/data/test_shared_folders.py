# SPDX-License-Identifier: Apache-2.0
"""The data lists on the shared images: known counts, nothing in two splits, and files that belong together."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from monai_smia.data import (
    chest_xray_datalist,
    decathlon_datalist,
    ead2019_classes,
    ead2019_datalist,
    fundus_dr_datalist,
    polyp_datalist,
    read_yolo_boxes,
)

SPLITS = ("training", "validation", "test")
FOLDERS = [
    ("hippocampus_mri", decathlon_datalist, (170, 20, 40), None),
    ("fundus_dr", fundus_dr_datalist, (321, 56, 105), "patient"),
    ("endoscopy_polyp", polyp_datalist, (700, 200, 60), None),
    ("chest_xray", chest_xray_datalist, (356, 60, 100), None),
]


@pytest.mark.parametrize(("name", "datalist", "counts", "group"), FOLDERS, ids=[row[0] for row in FOLDERS])
def test_counts_and_disjoint_splits(
    shared_data: Path,
    name: str,
    datalist: Callable[[Path, str], list[dict[str, Any]]],
    counts: tuple[int, ...],
    group: str | None,
) -> None:
    parts = [datalist(shared_data / name, split) for split in SPLITS]
    assert tuple(map(len, parts)) == counts
    groups = [{item[group] if group else Path(item["image"]).stem for item in part} for part in parts]
    assert sum(map(len, groups)) == len(set.union(*groups))
    for item in chain.from_iterable(parts):
        if "label" in item:
            assert Path(item["image"]).name.split(".")[0] == Path(item["label"]).name.split(".")[0]


@pytest.mark.parametrize(("name", "datalist", "counts", "group"), FOLDERS, ids=[row[0] for row in FOLDERS])
def test_items_are_those_of_the_file(
    shared_data: Path, name: str, datalist: Callable[[Path, str], list[dict[str, Any]]], counts: object, group: object
) -> None:
    content = json.loads((shared_data / name / "dataset.json").read_text())
    for split in SPLITS:
        for item, case in zip(datalist(shared_data / name, split), content[split], strict=True):
            paths = {key: f"{shared_data}/{name}/{case[key]}" for key in ("image", "label") if key in case}
            assert item == {**case, **paths}


def test_every_chest_xray_has_a_mask_and_the_label_of_its_name(shared_data: Path) -> None:
    for split in SPLITS:
        items = chest_xray_datalist(shared_data / "chest_xray", split, masks=True)
        assert items == chest_xray_datalist(shared_data / "chest_xray", split)
        assert all(item["tuberculosis"] == int(Path(item["image"]).stem[-1]) for item in items)


def test_ead2019_frames_and_boxes(shared_data: Path) -> None:
    folder = shared_data / "endoscopy_ead2019"
    items = ead2019_datalist(folder)
    assert [Path(item["image"]).name for item in items] == [f"{i:05d}.jpg" for i in (3, 16, 17, 39, 42)]
    assert (len(ead2019_datalist(folder, "test")), len(ead2019_datalist(folder, "training"))) == (1, 4)
    with pytest.raises(ValueError, match="'validation' has no case: the rule gives it none of 5 groups"):
        ead2019_datalist(folder, "validation")
    for item in items:
        with Image.open(item["image"]) as image:
            size = image.size
        boxes, labels = read_yolo_boxes(item["boxes"], size)
        rows = np.loadtxt(item["boxes"], ndmin=2)
        np.testing.assert_array_equal(labels, rows[:, 0])
        np.testing.assert_allclose((boxes[:, 2:] - boxes[:, :2]) / size, rows[:, 3:], rtol=1e-4)
        np.testing.assert_allclose((boxes[:, 2:] + boxes[:, :2]) / 2 / size, rows[:, 1:3], rtol=1e-4)
        assert labels.max() < 7


def test_ead2019_classes_without_a_list_are_those_of_the_list(shared_data: Path, tmp_path: Path) -> None:
    assert ead2019_classes(tmp_path) == ead2019_classes(shared_data / "endoscopy_ead2019")
