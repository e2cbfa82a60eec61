# SPDX-License-Identifier: Apache-2.0
"""`polyp_datalist` on tiny folders of both layouts."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest

from monai_smia.data import polyp_datalist


def kvasir(folder: Path, count: int = 12) -> Path:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
        (folder / part / "._00.jpg").touch()
        for i in range(count):
            (folder / part / f"{i:02d}.jpg").touch()
    (folder / "kavsir_bboxes.json").write_text("{}")
    return folder


def test_own_layout_comes_first(tmp_path: Path) -> None:
    kvasir(tmp_path)
    case = {"image": "images/03.jpg", "label": "masks/04.jpg"}
    (tmp_path / "dataset.json").write_text(json.dumps({"test": [case]}))
    assert polyp_datalist(tmp_path, "test") == [
        {
            "image": f"{tmp_path}/images/03.jpg",
            "label": f"{tmp_path}/masks/04.jpg",
            "group": "03",
            "group_kind": "image",
        }
    ]
    with pytest.raises(ValueError, match="split: 'training' does not exist; there are test"):
        polyp_datalist(tmp_path, "training")


@pytest.mark.parametrize("root", [".", "Kvasir-SEG", "kvasir-seg"])
def test_kvasir_pairs_each_frame_with_its_own_mask(tmp_path: Path, root: str) -> None:
    kvasir(tmp_path / root)
    found = {split: polyp_datalist(str(tmp_path), split) for split in ("training", "validation", "test")}
    numbers = {split: [int(Path(item["image"]).stem) for item in items] for split, items in found.items()}
    assert numbers == {"test": [0, 10], "validation": [5], "training": [1, 2, 3, 4, 6, 7, 8, 9, 11]}
    for item in chain.from_iterable(found.values()):
        image, label = Path(item["image"]), Path(item["label"])
        assert (image.parent.name, label.parent.name, image.name) == ("images", "masks", label.name)
        assert label.is_file()
        assert (item["group"], item["group_kind"]) == (image.stem, "image")


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_frame_without_a_mask_and_a_mask_without_a_frame_are_named(tmp_path: Path, part: str) -> None:
    kvasir(tmp_path)
    (tmp_path / part / "10.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=rf"expected .*{part}/10\.jpg"):
        polyp_datalist(tmp_path, "test")
    assert len(polyp_datalist(tmp_path, "training")) == 9


def test_missing_layout_and_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dataset_dir: expected a folder"):
        polyp_datalist(tmp_path / "nowhere", "test")
    with pytest.raises(FileNotFoundError, match=r"expected .*dataset\.json, or images.*found neither"):
        polyp_datalist(tmp_path, "test")
    kvasir(tmp_path)
    with pytest.raises(ValueError, match="split: 'val' does not exist; there are training, validation, test"):
        polyp_datalist(tmp_path, "val")
