"""From file to file: the attack between MONAI's spatial transforms, their inversion and saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from evaluators import BOUNDS, EPS, Task
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    Resized,
    SaveImaged,
    Spacingd,
)

from monai_smia.attacks import BIM
from monai_smia.transforms import AdversarialAttackd, RandAdversarialAttackd

KEYS = ("image", "label")
SHAPE = (14, 12, 10)
AFFINE = np.array([[-1.5, 0, 0, 30], [0, 2.0, 0.1, -20], [0, -0.1, 2.5, 11], [0, 0, 0, 1]])

SPATIAL: dict[str, list[Any]] = {
    "Spacingd": [Spacingd(KEYS, pixdim=(2.0, 2.0, 2.0), mode=("bilinear", "nearest"))],
    "Resized": [Resized(KEYS, spatial_size=(12, 12, 12), mode=("trilinear", "nearest"))],
    "several": [
        Orientationd(KEYS, axcodes="RAS", labels=None),
        Spacingd(KEYS, pixdim=(2.0, 2.0, 2.0), mode=("bilinear", "nearest")),
        CropForegroundd(KEYS, source_key="label", margin=2, allow_smaller=True),
    ],
}
ATTACKS = {"always": (AdversarialAttackd, {}), "random": (RandAdversarialAttackd, {"prob": 1.0})}


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Path]:
    """A volume and its label on disk, oblique, with anisotropic voxels."""
    source = np.random.default_rng(0)
    image = source.random(SHAPE, dtype=np.float32)
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[4:10, 3:9, 2:8] = source.integers(1, 3, (6, 6, 6))
    files = {"image": tmp_path / "case.nii.gz", "label": tmp_path / "case_label.nii.gz"}
    nib.save(nib.Nifti1Image(image, AFFINE), files["image"])
    nib.save(nib.Nifti1Image(label, AFFINE), files["label"])
    return files


def attack() -> BIM:
    return BIM(Task(3).loss(), eps=EPS, steps=2, bounds=BOUNDS)


def pretend(image: torch.Tensor) -> torch.Tensor:
    """A prediction on the image's grid."""
    return 1 - image


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize("spatial", SPATIAL)
def test_inversion_and_saving_after_an_attack(case: dict[str, Path], spatial: str, kind: str, tmp_path: Path) -> None:
    network = Task(3).network()
    load: list[Any] = [LoadImaged(KEYS), EnsureChannelFirstd(KEYS), *SPATIAL[spatial]]
    transform, arguments = ATTACKS[kind]
    attacked = Compose([*load, transform("image", attack(), network, **arguments)])

    def inverted(preprocessing: Compose, image: torch.Tensor) -> MetaTensor:
        back = Invertd(
            "pred", transform=preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True, device="cpu"
        )
        (item,) = decollate_batch({"image": image, "pred": pretend(image)})
        return back(item)["pred"]

    (batch,) = DataLoader(Dataset([case], attacked))
    found = inverted(attacked, batch["image"])

    # by hand: the pipeline without the attack, its image changed in place
    clean_pipeline = Compose(load)
    (clean,) = DataLoader(Dataset([case], clean_pipeline))
    by_hand = attack()(network, clean["image"], clean["label"]).adversarial.as_tensor()
    assert torch.equal(batch["image"].as_tensor(), by_hand)
    assert not torch.equal(by_hand, clean["image"].as_tensor())
    clean["image"].copy_(by_hand)
    expected = inverted(clean_pipeline, clean["image"])

    assert found.shape == (1, *SHAPE)
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert np.allclose(found.affine, AFFINE, atol=1e-5)

    save = SaveImaged("pred", output_dir=tmp_path / "out", output_postfix="pred", separate_folder=False, resample=False)
    save({"pred": found})
    written = nib.load(tmp_path / "out" / "case_pred.nii.gz")
    assert np.allclose(written.affine, AFFINE, atol=1e-5)
    assert np.array_equal(written.get_fdata(dtype=np.float32), found.numpy()[0])


def test_the_adversarial_image_itself_is_saved_on_its_own_grid(case: dict[str, Path], tmp_path: Path) -> None:
    network = Task(3).network()
    pipeline = Compose(
        [
            LoadImaged(KEYS),
            EnsureChannelFirstd(KEYS),
            *SPATIAL["Spacingd"],
            AdversarialAttackd("image", attack(), network),
            SaveImaged("image", output_dir=tmp_path, output_postfix="adv", separate_folder=False, resample=False),
        ]
    )
    item = pipeline(case)
    written = nib.load(tmp_path / "case_adv.nii.gz")
    assert np.allclose(written.affine, item["image"].affine, atol=1e-5)
    assert np.allclose(np.linalg.norm(written.affine[:3, :3], axis=0), 2.0, atol=1e-5)
    assert np.array_equal(written.get_fdata(dtype=np.float32), item["image"].numpy()[0])
    resampled = Compose(SPATIAL["Spacingd"])(Compose([LoadImaged(KEYS), EnsureChannelFirstd(KEYS)])(case))
    change = (item["image"].as_tensor() - resampled["image"].as_tensor()).abs()
    assert 0 < change.max() <= EPS + 1e-6
