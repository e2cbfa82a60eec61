# SPDX-License-Identifier: Apache-2.0
"""`lung_ct_datalist` on tiny folders whose right answer is known."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImaged

from monai_smia.data import lung_ct_datalist


def write(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((2, 3, 4), value, np.int16), np.eye(4)), path)
    return path


def own_layout(folder: Path, *cases: str) -> None:
    for index, case in enumerate(cases):
        write(folder / f"{case}_image.nii.gz", -index - 1)
        write(folder / f"{case}_lungs.nii.gz", index + 1)


def test_own_layout_pairs_each_image_with_its_own_mask(tmp_path: Path) -> None:
    own_layout(tmp_path, "b", "a", "c")
    items = lung_ct_datalist(tmp_path)
    loaded = [LoadImaged(["image", "label"])(item) for item in items]
    assert [(float(item["image"].max()), float(item["label"].max())) for item in loaded] == [(-2, 2), (-1, 1), (-3, 3)]


@pytest.mark.parametrize("images", [".", "COVID-19-CT-Seg_20cases"])
@pytest.mark.parametrize("masks_beside_images", [True, False])
def test_covid_layout(tmp_path: Path, images: str, masks_beside_images: bool) -> None:
    names = ["coronacases_001", "radiopaedia_4_85506_1"]
    masks = tmp_path / images / "lung_mask" if masks_beside_images else tmp_path / "lung_mask"
    for name in names:
        write(tmp_path / images / f"{name}.nii.gz", 0)
        write(masks / f"{name}.nii.gz", 1)
    items = lung_ct_datalist(str(tmp_path))
    assert [(Path(i["image"]), Path(i["label"])) for i in items] == [
        (tmp_path / images / f"{name}.nii.gz", masks / f"{name}.nii.gz") for name in names
    ]


def test_cases_are_listed_in_the_order_asked_for(tmp_path: Path) -> None:
    own_layout(tmp_path, "a", "b", "c")
    assert [Path(i["image"]).name[0] for i in lung_ct_datalist(tmp_path, ["c", "a"])] == ["c", "a"]


def test_exclude_holds_when_no_case_is_named(tmp_path: Path) -> None:
    own_layout(tmp_path, "a", "b", "c")
    assert [Path(i["image"]).name[0] for i in lung_ct_datalist(tmp_path, exclude=["b", "nobody"])] == ["a", "c"]
    assert [Path(i["image"]).name[0] for i in lung_ct_datalist(tmp_path, ["b"], exclude=["b"])] == ["b"]
    with pytest.raises(ValueError, match=r"exclude: leaves no case .*: a, b, c"):
        lung_ct_datalist(tmp_path, exclude=["a", "b", "c"])


def test_unknown_case_lists_what_exists(tmp_path: Path) -> None:
    own_layout(tmp_path, "a", "b")
    with pytest.raises(ValueError, match=r"cases: 'd' does not exist; the folder has a, b"):
        lung_ct_datalist(tmp_path, ["a", "d"])


@pytest.mark.parametrize("cases", ["a", []])
def test_cases_must_be_a_list_of_names(tmp_path: Path, cases: list[str]) -> None:
    own_layout(tmp_path, "a")
    with pytest.raises(ValueError, match="cases: expected a list of case names"):
        lung_ct_datalist(tmp_path, cases)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dataset_dir: expected a folder, .*nowhere"):
        lung_ct_datalist(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"expected .*<case>_image\.nii\.gz.* or coronacases_"):
        lung_ct_datalist(tmp_path)
    own_layout(tmp_path, "a", "b")
    (tmp_path / "b_lungs.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"case 'b' is missing, expected .*b_lungs\.nii\.gz"):
        lung_ct_datalist(tmp_path)
    assert len(lung_ct_datalist(tmp_path, ["a"])) == 1
    covid = tmp_path / "covid"
    write(covid / "coronacases_001.nii.gz", 0)
    with pytest.raises(FileNotFoundError, match=r"expected .*lung_mask.coronacases_001\.nii\.gz"):
        lung_ct_datalist(covid)
