# SPDX-License-Identifier: Apache-2.0
"""`fundus_dr_datalist` on tiny folders of both layouts."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest

from monai_smia.data import fundus_dr_datalist


def aptos(folder: Path, grades: list[int]) -> Path:
    (folder / "train_images").mkdir()
    names = [f"{i:02d}ab" for i in range(len(grades))]
    for name in names:
        (folder / "train_images" / f"{name}.png").touch()
    rows = [f"{name},{grade}" for name, grade in zip(names, grades, strict=True)]
    (folder / "train.csv").write_text("\n".join(["id_code,diagnosis", *rows[::-1]]) + "\n")
    (folder / "test.csv").write_text("id_code\nffff\n")
    return folder


def test_own_layout_keeps_every_key(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").touch()
    case = {"image": "images/1.jpg", "grade": 2, "patient": "1221", "dme": "0"}
    (tmp_path / "dataset.json").write_text(json.dumps({"grades": {}, "training": [case], "test": [{"image": "x"}]}))
    assert fundus_dr_datalist(tmp_path, "training") == [
        {**case, "image": f"{tmp_path}/images/1.jpg", "group": "1221", "group_kind": "patient"}
    ]
    with pytest.raises(ValueError, match="expected image, grade in every case of 'test'"):
        fundus_dr_datalist(tmp_path, "test")
    with pytest.raises(ValueError, match="split: 'grades' does not exist; there are training, test"):
        fundus_dr_datalist(tmp_path, "grades")
    (tmp_path / "images" / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"\('image'\) is missing, expected .*1\.jpg"):
        fundus_dr_datalist(tmp_path, "training")


def test_aptos_pairs_each_photograph_with_its_grade(tmp_path: Path) -> None:
    grades = [i % 5 for i in range(23)]
    aptos(tmp_path, grades)
    found = {split: fundus_dr_datalist(tmp_path, split) for split in ("training", "validation", "test")}
    numbers = {split: [int(Path(item["image"]).name[:2]) for item in items] for split, items in found.items()}
    assert (numbers["test"], numbers["validation"]) == ([0, 10, 20], [5, 15])
    assert sorted(chain.from_iterable(numbers.values())) == list(range(23))
    for item in chain.from_iterable(found.values()):
        assert item["grade"] == grades[int(Path(item["image"]).name[:2])]
        assert (item["group"], item["group_kind"]) == (Path(item["image"]).stem, "image")
        assert list(item) == ["image", "grade", "group", "group_kind"]
        assert Path(item["image"]).is_file()


def test_aptos_names_the_first_missing_photograph_of_the_split(tmp_path: Path) -> None:
    aptos(tmp_path, [0] * 30)
    for name in ("20ab", "10ab"):
        (tmp_path / "train_images" / f"{name}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected .*train_images/10ab\.png"):
        fundus_dr_datalist(tmp_path, "test")
    assert len(fundus_dr_datalist(tmp_path, "validation")) == 3


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id_code,diagnosis\na,0\nb,5\n", "train.csv, line 3: expected a diagnosis from 0 to 4, got '5'"),
        ("id_code,diagnosis\na,\n", "line 2: expected a diagnosis from 0 to 4, got ''"),
        ("id_code,diagnosis\na\n", "line 2: the row is shorter than the header"),
        ("id_code\na\n", "expected the columns id_code, diagnosis, 'diagnosis' is missing"),
        ("id_code,diagnosis\n", "expected at least one row"),
        ("", "expected the columns id_code, diagnosis, 'id_code' is missing"),
    ],
)
def test_a_table_that_is_not_as_expected_is_refused(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "train.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        fundus_dr_datalist(tmp_path, "test")


def test_missing_layout_and_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected .*dataset\.json or .*train\.csv; found neither"):
        fundus_dr_datalist(tmp_path, "test")
    aptos(tmp_path, [0] * 6)
    with pytest.raises(ValueError, match="split: 'val' does not exist; there are training, validation, test"):
        fundus_dr_datalist(tmp_path, "val")
