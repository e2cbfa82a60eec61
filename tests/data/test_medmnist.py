# SPDX-License-Identifier: Apache-2.0
"""`MedMNISTReader` against PNGs of the same pixels, and `chest_xray_datalist` on tiny archives of MedMNIST."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, PILReader
from monai.transforms import EnsureChannelFirstd, LoadImaged
from PIL import Image

from monai_smia.data import MedMNISTReader, chest_xray_datalist

COUNTS = {"train": 4, "val": 3, "test": 2}


def archive(path: Path, *, columns: int = 1, shape: tuple[int, ...] = (5, 7), **change: Any) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, count in COUNTS.items():
        arrays[f"{part}_images"] = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = generator.integers(0, 2, (count, columns), dtype=np.uint8)
    arrays.update(change)
    np.savez_compressed(path, **arrays)
    return arrays


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
@pytest.mark.parametrize("readers", [[MedMNISTReader, PILReader], [PILReader, MedMNISTReader], [MedMNISTReader()]])
def test_an_image_loads_like_a_png_of_its_pixels(tmp_path: Path, shape: tuple[int, ...], readers: list[Any]) -> None:
    arrays = archive(tmp_path / "a.npz", shape=shape)
    load, first = LoadImaged("image", reader=readers), EnsureChannelFirstd("image")
    for part, count in COUNTS.items():
        for index in range(count):
            Image.fromarray(arrays[f"{part}_images"][index]).save(tmp_path / "a.png")
            entry = load({"image": f"{tmp_path}/a.npz/{part}/{index}"})
            png = load({"image": f"{tmp_path}/a.png"})
            for one, other in ((entry, png), (first(entry), first(png))):
                assert torch.equal(one["image"].as_tensor(), other["image"].as_tensor())
            assert entry["image"].meta["spatial_shape"].tolist() == [7, 5]


def test_only_names_of_images_in_archives_are_taken(tmp_path: Path) -> None:
    archive(tmp_path / "a.npz")
    reader = MedMNISTReader()
    assert reader.verify_suffix(f"{tmp_path}/a.npz/val/0")
    assert reader.verify_suffix([tmp_path / "a.npz" / "val" / "0", "b.npz/test/12"])
    for name in ("a.npz", "a.png", "a.npz/val", "a.npz/validation/0", "a.npz/val/-1", "a.zip/val/0", "a.npz/val/x"):
        assert not reader.verify_suffix(name)
        with pytest.raises(ValueError, match="data: expected one name <archive>.npz/<train, val or test>/<index>"):
            reader.read(name)
    assert not reader.verify_suffix(["a.npz/val/0", "a.png"])
    with pytest.raises(ValueError, match="data: expected one name"):
        reader.read([f"{tmp_path}/a.npz/val/0"] * 2)
    with pytest.raises(IndexError, match=r"a\.npz has 3 images in 'val', counted from 0, got 3"):
        reader.read(f"{tmp_path}/a.npz/val/3")
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: .*b\.npz"):
        reader.read(f"{tmp_path}/b.npz/val/3")


def test_a_reader_can_be_pickled_after_use_and_serves_workers(tmp_path: Path) -> None:
    arrays = archive(tmp_path / "pneumoniamnist.npz")
    load = LoadImaged("image", reader=MedMNISTReader())
    items = chest_xray_datalist(tmp_path, "training", target="pneumonia")
    load(items[0])
    assert len(pickle.dumps(load)) < 10_000
    again = pickle.loads(pickle.dumps(load))
    assert torch.equal(again(items[1])["image"], load(items[1])["image"])
    (batch,) = DataLoader(Dataset(items, load), batch_size=4, num_workers=2)
    np.testing.assert_array_equal(batch["image"].numpy(), arrays["train_images"].transpose(0, 2, 1))
    assert batch["pneumonia"].tolist() == arrays["train_labels"][:, 0].tolist()


def test_an_archive_written_anew_is_read_anew_and_a_read_image_may_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    first = archive(path)["val_images"][0]
    image = MedMNISTReader().read(f"{path}/val/0")
    image[:] = 0
    np.testing.assert_array_equal(MedMNISTReader().read(f"{path}/val/0"), first)
    archive(path, val_images=np.full((3, 5, 7), 9, np.uint8))
    os.utime(path, ns=(1, 1))
    assert (MedMNISTReader().read(f"{path}/val/0") == 9).all()


@pytest.mark.parametrize("as_path", [True, False])
def test_an_archive_is_listed_by_its_own_splits(tmp_path: Path, as_path: bool) -> None:
    path = tmp_path / "pneumoniamnist_64.npz"
    arrays = archive(path)
    for split, part in (("training", "train"), ("validation", "val"), ("test", "test")):
        assert chest_xray_datalist(path if as_path else tmp_path, split, target="Pneumonia") == [
            {"image": f"{path}/{part}/{i}", "pneumonia": int(label), "group": f"{part}/{i}", "group_kind": "image"}
            for i, (label,) in enumerate(arrays[f"{part}_labels"])
        ]


def test_chestmnist_has_one_column_for_each_finding(tmp_path: Path) -> None:
    labels = np.eye(14, dtype=np.uint8)[[2, 13]]
    archive(tmp_path / "chestmnist.npz", columns=14, test_labels=labels)
    for target, expected in (("effusion", [1, 0]), ("hernia", [0, 1]), ("mass", [0, 0])):
        assert [i[target] for i in chest_xray_datalist(tmp_path, "test", target=target)] == expected
    with pytest.raises(ValueError, match="'tuberculosis' does not exist; there are atelectasis, .*, hernia"):
        chest_xray_datalist(tmp_path, "test")


def test_target_names_the_only_column_of_another_archive(tmp_path: Path) -> None:
    arrays = archive(tmp_path / "mine.npz", val_labels=np.array([[0], [4], [2]]))
    assert [item["grade"] for item in chest_xray_datalist(tmp_path, "validation", target="grade")] == [0, 4, 2]
    assert [i["tuberculosis"] for i in chest_xray_datalist(tmp_path, "test")] == arrays["test_labels"][:, 0].tolist()


def test_archives_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a \.npz archive, .*a\.npz is none"):
        chest_xray_datalist(tmp_path / "a.npz", "test")
    archive(tmp_path / "a.npz", columns=2, val_labels=np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"a\.npz: expected test_labels of shape \(2, 1\), .* got \(2, 2\)"):
        chest_xray_datalist(tmp_path, "test")
    with pytest.raises(ValueError, match=r"expected val_labels of shape \(3, 1\), .* got \(2, 1\)"):
        chest_xray_datalist(tmp_path, "validation")
    with pytest.raises(ValueError, match="split: 'val' does not exist; there are training, validation, test"):
        chest_xray_datalist(tmp_path, "val")
    np.savez(tmp_path / "b.npz", x=np.zeros(1))
    with pytest.raises(ValueError, match="expected an array 'test_labels', it has x"):
        chest_xray_datalist(tmp_path / "b.npz", "test")
    with pytest.raises(ValueError, match=r"expected one archive, got .*a\.npz, .*b\.npz; name one of them"):
        chest_xray_datalist(tmp_path, "test")
