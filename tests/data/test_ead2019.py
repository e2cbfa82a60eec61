# SPDX-License-Identifier: Apache-2.0
"""`ead2019_datalist` and `ead2019_classes` on tiny folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_smia.data import ead2019_classes, ead2019_datalist

NAMES = ["00001.jpg", "00002.PNG", "00003.tif", "00004.jpeg", "00005.jpg", "00006.jpg"]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def frames(folder: Path, images: str = ".", texts: str = ".") -> Path:
    for name in NAMES:
        touch(folder / images / name, folder / texts / f"{name[:5]}.txt")
    touch(folder / images / "00001_mask.tif", folder / "class_list.txt", folder / texts / "README.txt")
    return folder


@pytest.mark.parametrize(("images", "texts"), [(".", "."), ("images", "annotations")])
def test_each_frame_has_its_own_text(tmp_path: Path, images: str, texts: str) -> None:
    frames(tmp_path, images, texts)
    assert ead2019_datalist(str(tmp_path)) == [
        {
            "image": str(tmp_path / images / name),
            "boxes": str(tmp_path / texts / f"{name[:5]}.txt"),
            "group": name[:5],
            "group_kind": "image",
        }
        for name in NAMES
    ]


def test_splits_follow_the_rule(tmp_path: Path) -> None:
    frames(tmp_path)
    found = [
        [Path(item["image"]).stem[-1] for item in ead2019_datalist(tmp_path, split)]
        for split in ("test", "validation", "training")
    ]
    assert found == [["1"], ["6"], ["2", "3", "4", "5"]]
    with pytest.raises(ValueError, match="split: 'all' does not exist; there are training, validation, test"):
        ead2019_datalist(tmp_path, "all")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dataset_dir: expected a folder"):
        ead2019_datalist(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"expected frames \(\.jpg, .*found none"):
        ead2019_datalist(tmp_path)
    frames(tmp_path)
    for name in ("00004.txt", "00003.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"\('boxes'\) is missing, expected .*00003\.txt"):
        ead2019_datalist(tmp_path)
    assert len(ead2019_datalist(tmp_path, "test")) == 1


def test_a_text_without_a_frame_is_named(tmp_path: Path) -> None:
    frames(tmp_path)
    touch(tmp_path / "00009.txt")
    with pytest.raises(FileNotFoundError, match=r"the frame of .*00009\.txt is missing, expected .*00009\.jpg"):
        ead2019_datalist(tmp_path)


def test_two_frames_of_one_name_are_refused(tmp_path: Path) -> None:
    frames(tmp_path)
    touch(tmp_path / "00001.png")
    with pytest.raises(ValueError, match=r"00001\.jpg and .*00001\.png are two frames of one name"):
        ead2019_datalist(tmp_path)


@pytest.mark.parametrize("place", [".", "annotations"])
def test_classes_are_those_of_the_list(tmp_path: Path, place: str) -> None:
    assert len(ead2019_classes(tmp_path)) == 7
    touch(tmp_path / place / "class_list.txt")
    (tmp_path / place / "class_list.txt").write_text("blur\r\n bubbles \n\n")
    assert ead2019_classes(tmp_path) == ["blur", "bubbles"]


@pytest.mark.parametrize("text", ["", "blur\nblur\n"])
def test_a_list_that_names_no_class_or_one_twice_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "class_list.txt").write_text(text)
    with pytest.raises(ValueError, match=r"class_list\.txt: expected the name of each class once"):
        ead2019_classes(tmp_path)
