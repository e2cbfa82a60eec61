# SPDX-License-Identifier: Apache-2.0
"""`chest_xray_datalist` on tiny folders laid out like ChestX-ray14 of the NIH."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_smia.data import chest_xray_datalist

SPLITS = ("training", "validation", "test")
HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age"
LABELS = ["No Finding", "Mass", "Mass|Pleural_Thickening", "Hernia"]


def names_of(patients: int) -> list[str]:
    return [f"{patient:08d}_{i:03d}.png" for patient in range(1, patients + 1) for i in range(2)]


def nih(folder: Path, patients: int = 24, images: tuple[str, ...] = ("images",)) -> list[str]:
    """Two X-rays of each patient, with the four labels in turn, in turn in each folder of images."""
    names = names_of(patients)
    for i, name in enumerate(names):
        path = folder / images[i % len(images)] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    rows = [f"{name},{LABELS[i % 4]},0,{int(name[:8])},58" for i, name in enumerate(names)]
    (folder / "Data_Entry_2017_v2020.csv").write_text("\n".join([HEADER, *rows[::-1]]) + "\n")
    return names


def official(folder: Path, names: list[str], test_from: int = 21) -> None:
    """Patients from `test_from` on are test."""
    (folder / "train_val_list.txt").write_text("\n".join(n for n in names if int(n[:8]) < test_from))
    (folder / "test_list.txt").write_text("\n".join(n for n in names if int(n[:8]) >= test_from))


@pytest.mark.parametrize(
    "images", [("images",), ("images_001", "images_002"), ("images_001/images", "images_2/images")]
)
def test_each_image_has_its_own_finding(tmp_path: Path, images: tuple[str, ...]) -> None:
    names = nih(tmp_path, images=images)
    items = [item for split in SPLITS for item in chest_xray_datalist(str(tmp_path), split, target="Mass")]
    assert sorted(Path(item["image"]).name for item in items) == names
    for item in items:
        index = names.index(Path(item["image"]).name)
        assert item == {
            "image": str(tmp_path / images[index % len(images)] / names[index]),
            "mass": [0, 1, 1, 0][index % 4],
            "patient": str(int(names[index][:8])),
            "group": str(int(names[index][:8])),
            "group_kind": "patient",
        }


@pytest.mark.parametrize(
    ("target", "key", "positive"),
    [("No Finding", "no_finding", [1, 0, 0, 0]), ("pleural thickening", "pleural_thickening", [0, 0, 1, 0])],
)
def test_target_is_a_finding_in_any_writing(tmp_path: Path, target: str, key: str, positive: list[int]) -> None:
    names = nih(tmp_path)
    for item in chest_xray_datalist(tmp_path, "training", target=target):
        assert item[key] == positive[names.index(Path(item["image"]).name) % 4]


def test_without_lists_the_rule_goes_by_patient(tmp_path: Path) -> None:
    nih(tmp_path)
    found = {split: {i["patient"] for i in chest_xray_datalist(tmp_path, split, target="mass")} for split in SPLITS}
    patients = sorted(map(str, range(1, 25)))
    assert found["test"] == set(patients[0::10])
    assert found["validation"] == set(patients[5::10])
    assert found["training"] == set(patients) - found["test"] - found["validation"]


def test_official_lists_give_the_test_and_the_rule_the_validation(tmp_path: Path) -> None:
    names = nih(tmp_path)
    official(tmp_path, names)
    found = {split: chest_xray_datalist(tmp_path, split, target="mass") for split in SPLITS}
    patients = {split: {int(item["patient"]) for item in items} for split, items in found.items()}
    assert patients["test"] == {21, 22, 23, 24}
    assert patients["validation"] == set(map(int, sorted(map(str, range(1, 21)))[5::10]))
    assert patients["training"] == set(range(1, 21)) - patients["validation"]
    assert sorted(Path(i["image"]).name for items in found.values() for i in items) == names


def test_the_corrected_table_is_read_of_two(tmp_path: Path) -> None:
    nih(tmp_path)
    (tmp_path / "Data_Entry_2017.csv").write_text(HEADER + "\n")
    assert chest_xray_datalist(tmp_path, "test", target="mass")


def test_missing_files_are_named(tmp_path: Path) -> None:
    names = nih(tmp_path)
    for name in names[2:4]:  # patient 2, training
        (tmp_path / "images" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"\('image'\) is missing, expected .*images/{names[2]}"):
        chest_xray_datalist(tmp_path, "training", target="mass")
    assert chest_xray_datalist(tmp_path, "test", target="mass")
    official(tmp_path, names)
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"needs both lists, expected .*test_list\.txt"):
        chest_xray_datalist(tmp_path, "test", target="mass")


def test_unknown_names_list_what_exists(tmp_path: Path) -> None:
    nih(tmp_path)
    with pytest.raises(ValueError, match="'tuberculosis' does not exist; there are hernia, mass, no_finding, pleural_"):
        chest_xray_datalist(tmp_path, "test")
    with pytest.raises(ValueError, match="split: 'val' does not exist; there are training, validation, test"):
        chest_xray_datalist(tmp_path, "val", target="mass")
    with pytest.raises(ValueError, match="masks: no case of 'test' in .* has a lung mask"):
        chest_xray_datalist(tmp_path, "test", target="mass", masks=True)


def test_lists_that_disagree_with_the_table_are_refused(tmp_path: Path) -> None:
    names = nih(tmp_path)
    official(tmp_path, names[:-1])
    with pytest.raises(ValueError, match=f"expected every image of the table in one of .* {names[-1]} is not so"):
        chest_xray_datalist(tmp_path, "training", target="mass")
    official(tmp_path, names)
    with (tmp_path / "test_list.txt").open("a") as file:
        file.write(f"\n{names[0]}\n")
    with pytest.raises(ValueError, match=f"{names[0]} is not so"):
        chest_xray_datalist(tmp_path, "training", target="mass")
    (tmp_path / "train_val_list.txt").write_text("\n".join(names[1:20]))
    (tmp_path / "test_list.txt").write_text("\n".join([names[0], *names[20:]]))
    with pytest.raises(ValueError, match="expected no patient in both official lists, 1 is"):
        chest_xray_datalist(tmp_path, "training", target="mass")


def test_too_few_patients_for_a_validation(tmp_path: Path) -> None:
    names = nih(tmp_path, patients=6)
    official(tmp_path, names, test_from=5)
    with pytest.raises(ValueError, match=r"'validation' has no case: 4 patients are in train_val_list\.txt"):
        chest_xray_datalist(tmp_path, "validation", target="mass")
    assert len(chest_xray_datalist(tmp_path, "training", target="mass")) == 8
