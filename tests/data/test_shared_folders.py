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
    ("hippocampus_mri", decathlon_datalist, (153, 19, 40), "subject"),
    ("fundus_dr", fundus_dr_datalist, (319, 56, 105), "patient"),
    ("endoscopy_polyp", polyp_datalist, (693, 199, 60), "image"),
    ("chest_xray", chest_xray_datalist, (356, 60, 100), "image"),
]


@pytest.mark.parametrize(("name", "datalist", "counts", "kind"), FOLDERS, ids=[row[0] for row in FOLDERS])
def test_counts_and_disjoint_splits(
    shared_data: Path,
    name: str,
    datalist: Callable[[Path, str], list[dict[str, Any]]],
    counts: tuple[int, ...],
    kind: str,
) -> None:
    parts = [datalist(shared_data / name, split) for split in SPLITS]
    assert tuple(map(len, parts)) == counts
    assert {item["group_kind"] for item in chain.from_iterable(parts)} == {kind}
    groups = [{item["group"] for item in part} for part in parts]
    assert sum(map(len, groups)) == len(set.union(*groups))
    for item in chain.from_iterable(parts):
        if "label" in item:
            assert Path(item["image"]).name.split(".")[0] == Path(item["label"]).name.split(".")[0]


@pytest.mark.parametrize(("name", "datalist", "counts", "kind"), FOLDERS, ids=[row[0] for row in FOLDERS])
def test_items_are_those_of_the_file(
    shared_data: Path, name: str, datalist: Callable[[Path, str], list[dict[str, Any]]], counts: object, kind: str
) -> None:
    content = json.loads((shared_data / name / "dataset.json").read_text())
    for split in SPLITS:
        for item, case in zip(datalist(shared_data / name, split), content[split], strict=True):
            paths = {key: f"{shared_data}/{name}/{case[key]}" for key in ("image", "label") if key in case}
            added = {"group", "group_kind"} | ({"subject"} if kind == "subject" else set())
            assert {key: item[key] for key in item if key not in added} == {**case, **paths}
            assert item.keys() == case.keys() | added


def test_the_two_sides_of_a_subject_are_in_one_split_or_left_out(shared_data: Path) -> None:
    folder = shared_data / "hippocampus_mri"
    left_out = json.loads((folder / "dataset.json").read_text())["left_out"]
    assert len(left_out) == 18
    listed = {Path(item["image"]).name: item for split in SPLITS for item in decathlon_datalist(folder, split)}
    assert not listed.keys() & {Path(name).name for name in left_out}
    for name, item in listed.items():
        assert item["subject"] == (int(name[12:15]) + 1) // 2


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
