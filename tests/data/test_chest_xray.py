# SPDX-License-Identifier: Apache-2.0
"""`chest_xray_datalist` on tiny folders: our layout, Shenzhen and Montgomery County."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from monai.transforms import LoadImaged
from PIL import Image

from monai_smia.data import chest_xray_datalist

SPLITS = ("training", "validation", "test")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def own(folder: Path) -> Path:
    cases = [
        {"image": "images/a.jpg", "label": "lung_masks/a.png", "tuberculosis": 1},
        {"image": "images/b.jpg", "tuberculosis": 0},
    ]
    touch(folder / "images/a.jpg", folder / "images/b.jpg", folder / "lung_masks/a.png")
    (folder / "dataset.json").write_text(json.dumps({"training": cases, "test": cases[1:]}))
    return folder


def shenzhen(folder: Path, root: str = ".", masks: str = "mask", suffix: str = "_mask") -> list[str]:
    """Twelve X-rays, the odd ones with tuberculosis, every third without a mask."""
    names = [f"CHNCXR_{i:04d}_{i % 2}" for i in range(1, 13)]
    for i, name in enumerate(names):
        touch(folder / root / "CXR_png" / f"{name}.png")
        if i % 3:
            touch(folder / root / masks / f"{name}{suffix}.png")
    touch(folder / root / "CXR_png" / "Thumbs.db", folder / root / "CXR_png" / f"._{names[0]}.png")
    return names


def montgomery(folder: Path) -> None:
    for value, path in enumerate(("CXR_png", "ManualMask/leftMask", "ManualMask/rightMask")):
        (folder / path).mkdir(parents=True)
        Image.fromarray(np.full((2, 3), value * 10, np.uint8)).save(folder / path / "MCUCXR_0001_0.png")


def test_own_layout_is_kept_as_it_is(tmp_path: Path) -> None:
    own(tmp_path)
    a = {"image": f"{tmp_path}/images/a.jpg", "label": f"{tmp_path}/lung_masks/a.png", "tuberculosis": 1}
    a |= {"group": "a", "group_kind": "image"}
    b = {"image": f"{tmp_path}/images/b.jpg", "tuberculosis": 0, "group": "b", "group_kind": "image"}
    assert chest_xray_datalist(tmp_path, "training") == [a, b]
    assert chest_xray_datalist(tmp_path, "training", target="Tuberculosis", masks=True) == [a]
    with pytest.raises(ValueError, match="masks: no case of 'test' in .* has a lung mask"):
        chest_xray_datalist(tmp_path, "test", masks=True)
    with pytest.raises(ValueError, match="target: 'mass' does not exist; there are tuberculosis"):
        chest_xray_datalist(tmp_path, "training", target="mass")
    with pytest.raises(ValueError, match="split: 'validation' does not exist; there are training, test"):
        chest_xray_datalist(tmp_path, "validation")
    (tmp_path / "lung_masks" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"\('label'\) is missing, expected .*lung_masks/a\.png"):
        chest_xray_datalist(tmp_path, "training")


@pytest.mark.parametrize("root", [".", "ChinaSet_AllFiles", "Lung Segmentation"])
@pytest.mark.parametrize(("masks", "suffix"), [("mask", "_mask"), ("mask/mask", "_mask"), ("masks", "")])
def test_shenzhen(tmp_path: Path, root: str, masks: str, suffix: str) -> None:
    names = shenzhen(tmp_path, root, masks, suffix)
    found = {split: chest_xray_datalist(str(tmp_path), split) for split in SPLITS}
    assert [Path(item["image"]).stem for item in found["test"]] == [names[0], names[10]]
    assert [Path(item["image"]).stem for item in found["validation"]] == [names[5]]
    assert sorted(Path(item["image"]).stem for items in found.values() for item in items) == names
    for item in chain.from_iterable(found.values()):
        stem = Path(item["image"]).stem
        label = {"label": str(tmp_path / root / masks / f"{stem}{suffix}.png")} if names.index(stem) % 3 else {}
        assert item == {
            "image": str(tmp_path / root / "CXR_png" / f"{stem}.png"),
            **label,
            "tuberculosis": int(stem[-1]),
            "group": stem,
            "group_kind": "image",
        }


def test_masks_beside_the_unpacked_folder_are_found(tmp_path: Path) -> None:
    shenzhen(tmp_path, "ChinaSet_AllFiles")
    (tmp_path / "ChinaSet_AllFiles" / "mask").rename(tmp_path / "mask")
    assert Path(chest_xray_datalist(tmp_path, "validation")[0]["label"]).parent == tmp_path / "mask"


def test_masks_leaves_every_case_in_its_split(tmp_path: Path) -> None:
    shenzhen(tmp_path)
    for split in SPLITS:
        every = chest_xray_datalist(tmp_path, split)
        assert chest_xray_datalist(tmp_path, split, masks=True) == [item for item in every if "label" in item]
    assert len(chest_xray_datalist(tmp_path, "training", masks=True)) < len(chest_xray_datalist(tmp_path, "training"))


@pytest.mark.parametrize("root", [".", "MontgomerySet"])
def test_montgomery_masks_load_as_two_channels(tmp_path: Path, root: str) -> None:
    montgomery(tmp_path / root)
    (item,) = chest_xray_datalist(tmp_path, "test", masks=True)
    assert item["tuberculosis"] == 0
    assert [Path(path).parent.name for path in item["label"]] == ["leftMask", "rightMask"]
    label = LoadImaged(["image", "label"])(item)["label"]
    assert label.shape == (2, 3, 2)
    assert [float(side.unique()) for side in label] == [10, 20]


def test_a_side_without_the_other_is_an_error(tmp_path: Path) -> None:
    montgomery(tmp_path)
    (tmp_path / "ManualMask/rightMask/MCUCXR_0001_0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"\('label'\) is missing, expected .*rightMask/MCUCXR_0001_0\.png"):
        chest_xray_datalist(tmp_path, "test")


def test_shenzhen_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    names = shenzhen(tmp_path)
    with pytest.raises(ValueError, match="split: 'val' does not exist; there are training, validation, test"):
        chest_xray_datalist(tmp_path, "val")
    with pytest.raises(ValueError, match="target: 'hernia' does not exist; there are tuberculosis"):
        chest_xray_datalist(tmp_path, "test", target="hernia")
    touch(tmp_path / "CXR_png" / f"{names[0]} (1).png")
    with pytest.raises(ValueError, match=r"expected names such as CHNCXR_0001_0\.png .*\(1\)\.png"):
        chest_xray_datalist(tmp_path, "test")


def test_folders_without_a_layout_or_with_two(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dataset_dir: expected a folder"):
        chest_xray_datalist(tmp_path / "nowhere", "test")
    with pytest.raises(FileNotFoundError, match=r"expected dataset\.json, CXR_png/, .* found none"):
        chest_xray_datalist(tmp_path, "test")
    (tmp_path / "CXR_png").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected X-rays \(\*\.png\) in .*CXR_png, found none"):
        chest_xray_datalist(tmp_path, "test")
    (tmp_path / "MontgomerySet" / "CXR_png").mkdir(parents=True)
    with pytest.raises(ValueError, match="expected one data set, got .* and .*MontgomerySet"):
        chest_xray_datalist(tmp_path, "test")
