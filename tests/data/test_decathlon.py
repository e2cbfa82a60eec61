# SPDX-License-Identifier: Apache-2.0
"""`decathlon_datalist` on tiny folders of both layouts, and what holds of every ``dataset.json``."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from monai_smia.data import decathlon_datalist


def write(folder: Path, content: Any, *, files: bool = True) -> Path:
    """A ``dataset.json``, with every file that it lists."""
    (folder / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))
    for part in content.values() if files else ():
        for value in (value for case in part if isinstance(case, dict) for value in case.values()):
            (folder / value).parent.mkdir(exist_ok=True)
            (folder / value).touch()
    return folder


def case(name: str, prefix: str = "") -> dict[str, str]:
    return {"image": f"{prefix}imagesTr/{name}.nii.gz", "label": f"{prefix}labelsTr/{name}.nii.gz"}


def own(folder: Path) -> Path:
    return write(folder, {"training": [case("c"), case("a")], "validation": [case("b")], "test": [case("d")]})


def official(folder: Path, subjects: int = 12, name: str = "hippocampus") -> Path:
    training = [case(f"{name}_{i:03d}", "./") for i in range(2 * subjects, 0, -1)]
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
        (folder / part / "._hippocampus_000.nii.gz").touch()
    return write(folder, {"labels": {"0": "background"}, "training": training, "test": ["./imagesTs/x.nii.gz"]})


def test_own_layout_keeps_its_splits_and_its_order(tmp_path: Path) -> None:
    own(tmp_path)
    assert decathlon_datalist(str(tmp_path), "training") == [
        {
            "image": f"{tmp_path}/imagesTr/{name}.nii.gz",
            "label": f"{tmp_path}/labelsTr/{name}.nii.gz",
            "group": name,
            "group_kind": "image",
        }
        for name in ("c", "a")
    ]
    assert [Path(item["image"]).name[0] for item in decathlon_datalist(tmp_path, "test")] == ["d"]


def test_official_layout_keeps_the_two_sides_of_a_subject_together(tmp_path: Path) -> None:
    official(tmp_path)
    found = {split: decathlon_datalist(tmp_path, split) for split in ("training", "validation", "test")}
    numbers = {split: [int(Path(item["image"]).name[12:15]) for item in items] for split, items in found.items()}
    # subject k has the cases 2k - 1 and 2k; of the subjects 1 to 12 the first and the eleventh are test, the sixth
    # validation
    assert {split: numbers[split] for split in ("test", "validation")} == {
        "test": [1, 2, 21, 22],
        "validation": [11, 12],
    }
    assert numbers["training"] == [*range(3, 11), *range(13, 21), 23, 24]
    subjects = [{item["subject"] for item in items} for items in found.values()]
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == 12
    for item in chain.from_iterable(found.values()):
        number = int(Path(item["image"]).name[12:15])
        assert item["subject"] == (number + 1) // 2
        assert (item["group"], item["group_kind"]) == (f"{item['subject']:03d}", "subject")
        assert item["label"] == item["image"].replace("imagesTr", "labelsTr")
        assert str(tmp_path / "imagesTr") in item["image"]


@pytest.mark.parametrize("layout", [own, official])
def test_unknown_split_lists_what_exists(tmp_path: Path, layout: Any) -> None:
    layout(tmp_path)
    with pytest.raises(ValueError, match="split: 'train' does not exist; there are training, validation, test"):
        decathlon_datalist(tmp_path, "train")


def test_missing_files_are_named_first_one_first(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dataset_dir: expected a folder, .*nowhere"):
        decathlon_datalist(tmp_path / "nowhere", "test")
    with pytest.raises(FileNotFoundError, match="expected .*dataset.json, which does not exist"):
        decathlon_datalist(tmp_path, "test")
    own(tmp_path)
    for name in ("imagesTr/a.nii.gz", "labelsTr/c.nii.gz"):
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"\('label'\) is missing, expected .*labelsTr/c\.nii\.gz"):
        decathlon_datalist(tmp_path, "training")
    assert len(decathlon_datalist(tmp_path, "test")) == 1


def test_official_layout_checks_the_files_of_the_split_asked_for(tmp_path: Path) -> None:
    official(tmp_path)
    (tmp_path / "labelsTr" / "hippocampus_021.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="hippocampus_021"):
        decathlon_datalist(tmp_path, "test")
    assert len(decathlon_datalist(tmp_path, "training")) == 18


def test_cases_of_another_task_are_groups_of_their_own(tmp_path: Path) -> None:
    official(tmp_path, name="spleen")
    (first, second, third) = decathlon_datalist(tmp_path, "test")
    assert [item["group"] for item in (first, second, third)] == ["spleen_001", "spleen_011", "spleen_021"]
    assert first["group_kind"] == "image"
    assert "subject" not in first


def test_a_group_that_the_file_names_comes_first(tmp_path: Path) -> None:
    cases = [{**case("hippocampus_001"), "subject": 7}, {**case("hippocampus_002"), "group": "x"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": cases, "validation": [], "test": []}))
    for path in [value for item in cases for key, value in item.items() if key in ("image", "label")]:
        (tmp_path / str(path)).parent.mkdir(exist_ok=True)
        (tmp_path / str(path)).touch()
    found = [(item["group"], item["group_kind"]) for item in decathlon_datalist(tmp_path, "training")]
    assert found == [("7", "subject"), ("x", "group")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "dataset.json is not JSON"),
        ("[]", "expected an object in .*dataset.json, got a list"),
        ({"test": []}, "split: 'training' does not exist; there are test"),
        ({"training": [], "test": []}, "'training' is empty in .*dataset.json"),
        ({"training": ["imagesTr/a.nii.gz"]}, "expected image, label in every case of 'training'"),
        ({"training": [case("a"), {"image": "b"}]}, r"case 1 \(counted from 0\) is \{'image': 'b'\}"),
        ({"training": [{"image": "a", "label": 1}]}, "case 0 .* 'label': 1"),
    ],
)
def test_a_file_that_is_not_as_expected_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    write(tmp_path, content, files=False)
    with pytest.raises(ValueError, match=message):
        decathlon_datalist(tmp_path, "training")
