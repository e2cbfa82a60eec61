# SPDX-License-Identifier: Apache-2.0
"""A change of the network's input back on the file's grid, against closed forms and MONAI's own inverse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    Lambdad,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandFlipd,
    ResizeWithPadOrCropd,
    ScaleIntensityd,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
    Transform,
    Transposed,
)

from monai_smia.export import carried_back
from monai_smia.export.carried_back import extremes_scale, input_slope
from monai_smia.export.replay import Loaded, replay

LOAD = [LoadImaged("image"), EnsureChannelFirstd("image")]


@pytest.fixture
def item(tmp_path: Path) -> dict[str, str]:
    rng = np.random.default_rng(0)
    image = nib.Nifti1Image(rng.integers(-900, 900, (8, 7, 6)).astype(np.int16), np.diag([-1.0, 1.0, 2.0, 1.0]))
    nib.save(image, tmp_path / "a.nii.gz")
    return {"image": str(tmp_path / "a.nii.gz")}


def loaded(item: dict[str, str], *steps: Any) -> Loaded:
    return replay(Compose([*LOAD, *steps]), item, "image")


def drawn(like: torch.Tensor) -> torch.Tensor:
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(1)) - 0.5


def test_a_range_of_intensities_is_undone_by_its_width(item: dict[str, str]) -> None:
    through = loaded(item, ScaleIntensityRanged("image", -1000, 1000, 0.0, 1.0, clip=True))
    change = drawn(through.result)
    assert torch.allclose(carried_back(through, change), change * 2000, rtol=1e-5)
    assert torch.allclose(input_slope(through), torch.tensor([1 / 2000]))


def test_clipped_voxels_take_the_slope_of_the_others(item: dict[str, str]) -> None:
    through = loaded(item, ScaleIntensityRanged("image", -100, 100, 0.0, 1.0, clip=True))
    change = drawn(through.result)
    assert torch.allclose(carried_back(through, change), change * 200, rtol=1e-5)


def test_statistics_of_the_image_give_its_own_slope(item: dict[str, str]) -> None:
    values = nib.load(item["image"]).get_fdata()  # type: ignore[attr-defined]
    for step, width in (
        (ScaleIntensityd("image"), values.max() - values.min()),
        (NormalizeIntensityd("image"), values.std()),
    ):
        through = loaded(item, step)
        assert float(input_slope(through)) == pytest.approx(1 / width, rel=0.02)


def test_axes_are_turned_back(item: dict[str, str]) -> None:
    through = loaded(item, Orientationd("image", "ASR", labels=None))
    change = drawn(through.result)
    back = carried_back(through, change)
    assert back.shape == through.image.shape != through.result.shape
    # the turned sum of image and change is what the preprocessing makes of the sum in the file
    again = through.steps[0](through.image + back)
    assert torch.allclose(again.as_tensor(), through.result.as_tensor() + change, atol=1e-3)


def test_a_crop_has_no_change_outside(item: dict[str, str]) -> None:
    through = loaded(item, ResizeWithPadOrCropd("image", (4, 9, 6)))
    change = torch.ones_like(through.result.as_tensor())
    back = carried_back(through, change)
    expected = torch.zeros(1, 8, 7, 6)
    expected[:, 2:6] = 1
    assert torch.equal(back, expected)


def test_a_pipeline_is_undone_as_by_monai(item: dict[str, str]) -> None:
    """The spatial part is MONAI's `Invertd`; the intensity after it is a factor."""
    spatial = [
        Orientationd("image", "LPS", labels=None),
        Spacingd("image", (1.3, 0.8, 2.0)),
        SpatialPadd("image", (12,) * 3),
    ]
    through = loaded(item, *spatial, ScaleIntensityRanged("image", -1000, 1000, 0.0, 1.0))
    change = drawn(through.result)
    pipeline = Compose([*LOAD, *spatial])
    data = pipeline(item)
    data["change"] = data["image"].clone()
    data["change"].set_array(change * 2000)
    data["change_meta_dict"] = data["image"].meta
    inverted = Invertd("change", pipeline, orig_keys="image", nearest_interp=False)(data)["change"]
    assert torch.allclose(carried_back(through, change), inverted.as_tensor()[:, :8, :7, :6], atol=1e-3)


class Halves(Transform):
    """Every second voxel of the first axis, without an inverse."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "image": data["image"][:, ::2]}


def test_what_cannot_be_undone_is_named(item: dict[str, str]) -> None:
    through = loaded(item, Halves())
    with pytest.raises(ValueError, match="Halves moves voxels and has no inverse"):
        carried_back(through, torch.zeros_like(through.result.as_tensor()))
    flat = loaded(item, ScaleIntensityRanged("image", 5000, 6000, 0.0, 1.0, clip=True))
    with pytest.raises(ValueError, match="no change gets through ScaleIntensityRanged at this image"):
        carried_back(flat, torch.zeros_like(flat.result.as_tensor()))
    with pytest.raises(ValueError, match=r"change: expected \(1, 4, 7, 6\), the network's input; got \(1, 8, 7, 6\)"):
        carried_back(through, torch.zeros(1, 8, 7, 6))
    with pytest.raises(ValueError, match="without randomness; got RandFlipd"):
        loaded(item, RandFlipd("image", 0.5))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (ScaleIntensityd("image"), True),
        (ScaleIntensityRanged("image", -1000, 1000, 0.0, 1.0), False),
        (NormalizeIntensityd("image"), False),
    ],
)
def test_scaling_by_the_extremes_is_seen_in_any_memory_layout(tmp_path: Path, step: Any, expected: bool) -> None:
    """A picture is loaded transposed."""
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16), dtype=np.uint8)
    pillow.fromarray(pixels).save(tmp_path / "a.png")
    assert extremes_scale(loaded({"image": str(tmp_path / "a.png")}, step)) is expected


@pytest.mark.parametrize("shape", [(8, 8), (8, 5)])
def test_axes_that_change_places_unseen_are_put_back(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Neither the shape of a square nor the affine says that `Transposed` did anything."""
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).integers(0, 99, shape).astype(np.int16), None), tmp_path / "b.nii"
    )
    scale = ScaleIntensityRanged("image", 0, 100, 0.0, 1.0)
    through = loaded({"image": str(tmp_path / "b.nii")}, Transposed("image", (0, 2, 1)), scale)
    change = drawn(through.result)
    assert torch.allclose(carried_back(through, change), change.transpose(1, 2) * 100, rtol=1e-5)
    through = loaded({"image": str(tmp_path / "b.nii")}, Lambdad("image", lambda x: x.flip(1)))
    with pytest.raises(ValueError, match="Lambdad moves voxels and has no inverse"):
        carried_back(through, drawn(through.result))
    through = loaded({"image": str(tmp_path / "b.nii")}, Lambdad("image", lambda x: (x - 50).abs() * 2))
    assert torch.allclose(carried_back(through, change_of := drawn(through.result)).abs(), change_of.abs() / 2)
