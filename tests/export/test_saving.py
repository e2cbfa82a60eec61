# SPDX-License-Identifier: Apache-2.0
"""`SaveAdversariald` as a transform, as a handler's option and in an `AttackEvaluator`."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, load_decathlon_datalist
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, ScaleIntensityRanged, SpatialPadd

from monai_smia import AttackHandler
from monai_smia.attacks import FGSM, PGD
from monai_smia.engines import AttackEvaluator
from monai_smia.export import NiftiImage, SaveAdversariald
from monai_smia.transforms import AdversarialAttackd

PREPROCESSING = Compose(
    [
        LoadImaged(["image"]),
        EnsureChannelFirstd(["image"]),
        Orientationd(["image"], "LPS", labels=None),
        ScaleIntensityRanged("image", -1000, 1000, 0.0, 1.0, clip=True),
    ]
)
LOSS = torch.nn.CrossEntropyLoss()


class Bright(torch.nn.Module):
    """Two classes by the mean of the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.flatten(1).mean(1, keepdim=True)
        return torch.cat([torch.zeros_like(mean), 20 * (mean - 0.5)], 1)


@pytest.fixture
def items(tmp_path: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(3):
        folder = tmp_path / f"patient{i}"
        folder.mkdir()
        levels = rng.integers(-900, 900, (5, 4, 3)).astype(np.int16)
        nib.save(nib.Nifti1Image(levels, np.diag([-1.0, 1.0, 2.0, 1.0])), folder / "ct.nii.gz")
        rows.append({"image": str(folder / "ct.nii.gz"), "label": i % 2})
    return rows


def evaluator(items: list[dict[str, Any]], kind: Any = SupervisedEvaluator, **arguments: Any) -> Any:
    loader = DataLoader(Dataset(items, PREPROCESSING), batch_size=2)
    return kind(torch.device("cpu"), loader, network=Bright().eval(), **arguments)


def change(item: dict[str, Any], file: Path) -> torch.Tensor:
    return NiftiImage(file).values() - NiftiImage(item["image"]).values()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "manifest.json").read_text())["adversarial"]


def test_a_transform_writes_the_attacked_file(items: list[dict[str, Any]], tmp_path: Path) -> None:
    attack = FGSM(LOSS, eps=0.0026, bounds=(0.0, 1.0))  # 5.2 HU, rounded to 5
    save = SaveAdversariald("image", PREPROCESSING, tmp_path / "out", attack=attack, unit="network")
    pipeline = Compose([*PREPROCESSING.transforms, AdversarialAttackd("image", attack, Bright()), save])
    for item in items:
        out = pipeline(item)
        assert float(out["image"].max()) <= 1
    rows = load_decathlon_datalist(
        str(tmp_path / "out" / "manifest.json"), data_list_key="adversarial", base_dir=str(tmp_path / "out")
    )
    names = [Path(row["image"]).name for row in rows]
    assert names == ["ct.nii.gz", "ct_2.nii.gz", "ct_3.nii.gz"]  # files of the same name in other folders
    for row in rows:
        item = next(item for item in items if item["image"] == row["made"]["source"])
        assert row["label"] == item["label"]
        sign = 1 if item["label"] == 0 else -1  # brighter looks like class 1
        moved = change(item, Path(row["image"]))
        assert torch.equal(moved, torch.full_like(moved, 5 * sign))
        assert row["made"]["largest_change"] == 5
        assert row["made"]["attack"] == repr(attack)
        assert (row["made"]["eps"], row["made"]["unit"]) == (0.0026, "network")
    with pytest.raises(RuntimeError, match="SaveAdversariald") as refused:
        pipeline(items[0])
    assert isinstance(refused.value.__cause__, FileExistsError)
    assert "ct.nii.gz was saved before" in str(refused.value.__cause__)


def test_a_change_under_half_a_level_is_lost(items: list[dict[str, Any]], tmp_path: Path) -> None:
    attack = FGSM(LOSS, eps=0.0002, bounds=(0.0, 1.0))  # 0.4 HU
    data = AdversarialAttackd("image", attack, Bright())(PREPROCESSING(items[0]))
    (written,) = SaveAdversariald("image", PREPROCESSING, tmp_path / "out").save(data, attack, 0)
    assert written.read_bytes() != b""
    assert not change(items[0], written).any()
    assert rows_of(tmp_path / "out")[0]["made"]["largest_change"] == 0


def test_a_handler_saves_what_it_attacked(items: list[dict[str, Any]], tmp_path: Path) -> None:
    save = SaveAdversariald("image", PREPROCESSING, tmp_path / "out")
    engine = evaluator(items)
    attack = PGD(LOSS, eps=0.005, bounds=(0.0, 1.0), steps=3, random_start=False)
    AttackHandler(attack, seed=7, save=save).attach(engine)
    engine.run()
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 3
    network = Bright()
    for row in rows:
        made = row["made"]
        item = next(item for item in items if item["image"] == made["source"])
        assert made["seed"] == 7
        again = PREPROCESSING({"image": str(tmp_path / "out" / row["image"])})["image"]
        loss = float(LOSS(network(again[None].as_tensor()), torch.tensor([item["label"]])))
        assert loss == pytest.approx(made["loss"], rel=1e-4)  # 10 HU are whole levels: nothing is lost
        assert made["loss"] > made["clean_loss"]


def test_an_evaluator_saves_every_attack_in_a_folder_of_its_own(items: list[dict[str, Any]], tmp_path: Path) -> None:
    attacks = {"small": FGSM(LOSS, eps=0.001, bounds=(0.0, 1.0)), "large": FGSM(LOSS, eps=0.01, bounds=(0.0, 1.0))}
    save = SaveAdversariald("image", PREPROCESSING, tmp_path / "out")
    evaluator(items, AttackEvaluator, attacks=attacks, save=save, progress=False).run()
    for name, size in (("small", 2), ("large", 20)):
        rows = rows_of(tmp_path / "out" / name)
        assert [row["made"]["largest_change"] for row in rows] == [size] * 3


def test_what_cannot_be_saved_is_refused(items: list[dict[str, Any]], tmp_path: Path) -> None:
    save = SaveAdversariald("image", PREPROCESSING, tmp_path / "out")
    with pytest.raises(ValueError, match="image: expected a MetaTensor that says its file"):
        save({"image": torch.zeros(1, 5, 4, 3)})
    with pytest.raises(KeyError, match="image"):
        save({"label": 0})
    with pytest.raises(TypeError, match="save: expected a SaveAdversariald or None; got str"):
        AttackHandler(FGSM(LOSS, eps=0.1), save="folder")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="attack: expected an Attack or None; got str"):
        SaveAdversariald("image", PREPROCESSING, tmp_path / "out", attack="PGD")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_worker_processes_are_refused(items: list[dict[str, Any]], tmp_path: Path) -> None:
    save = SaveAdversariald("image", PREPROCESSING, tmp_path / "out")
    loader = DataLoader(Dataset(items, Compose([*PREPROCESSING.transforms, save])), num_workers=1)
    with pytest.raises(RuntimeError, match="expected the main process; got a loader's worker"):
        list(loader)


def test_another_preprocessing_and_a_padded_image_are_refused(items: list[dict[str, Any]], tmp_path: Path) -> None:
    save = SaveAdversariald("image", PREPROCESSING, tmp_path / "out")
    item = PREPROCESSING(items[0])
    padded = SpatialPadd("image", (6, 6, 6))(dict(item))
    with pytest.raises(ValueError, match=r"image: expected \(1, 5, 4, 3\), what preprocessing gives; got"):
        save(padded)
    other = ScaleIntensityRanged("image", 0.0, 1.0, -1.0, 1.0)(dict(item))
    with pytest.raises(ValueError, match="preprocessing: expected what made image_clean"):
        save({**other, "image_clean": other["image"]})
    assert not (tmp_path / "out").exists()


def test_threads_lose_nothing(items: list[dict[str, Any]], tmp_path: Path) -> None:
    save = SaveAdversariald("image", PREPROCESSING, tmp_path / "out")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(save, [PREPROCESSING(item) for item in items]))
    assert len(rows_of(tmp_path / "out")) == len(list((tmp_path / "out" / "images").iterdir())) == 3


def test_images_of_two_keys_have_one_manifest(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Also where an item lacks one, and where both have the same name."""
    keys = ["t1", "t2"]
    loading = Compose([LoadImaged(keys, allow_missing_keys=True), EnsureChannelFirstd(keys, allow_missing_keys=True)])
    save = SaveAdversariald(keys, loading, tmp_path / "out", allow_missing_keys=True)
    first, second, third = (item["image"] for item in items)
    for item in ({"t1": first}, {"t2": second}, {"t1": third}):
        save(loading(item))
    found = {row.get("t1", row.get("t2")): row["made"]["source"] for row in rows_of(tmp_path / "out")}
    assert found == {"images/ct.nii.gz": first, "images/ct_2.nii.gz": second, "images/ct_3.nii.gz": third}


def test_labels_of_every_kind_are_listed(items: list[dict[str, Any]], tmp_path: Path) -> None:
    attack = FGSM(LOSS, eps=0.005, bounds=(0.0, 1.0))
    data = AdversarialAttackd("image", attack, Bright())(PREPROCESSING(items[0]))
    labels = {"hot": torch.tensor([0.0, 1.0]), "grades": [1, 2], "age": np.float32(0.5), "map": torch.zeros(1, 5, 4, 3)}
    SaveAdversariald("image", PREPROCESSING, tmp_path / "out").save({**data, **labels}, attack, 0)
    (row,) = rows_of(tmp_path / "out")
    assert {name: row.get(name) for name in labels} == {"hot": [0.0, 1.0], "grades": [1, 2], "age": 0.5, "map": None}
