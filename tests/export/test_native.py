# SPDX-License-Identifier: Apache-2.0
"""Attacks on the grid and levels of the file, through the preprocessing of the bundle."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    EnsureTyped,
    HistogramNormalized,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandFlipd,
    ResizeWithPadOrCropd,
    ScaleIntensityd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
    SpatialPadd,
)
from threshold_network import Voxels

from monai_smia.attacks import BIM, PGD
from monai_smia.bundle import open_bundle
from monai_smia.export import Lattice, NativeCase, NiftiImage, NotDifferentiableError, native_case
from monai_smia.export.inside_budget import inside_budget
from monai_smia.export.replay import replay

KEYS = ["image", "label"]
LOAD = (LoadImaged(KEYS), EnsureChannelFirstd(KEYS))
CT = (
    *LOAD,
    Orientationd(KEYS, "RAS", labels=None),
    Spacingd(KEYS, (1.0, 1.5, 2.0), mode=("bilinear", "nearest")),
    ScaleIntensityRanged("image", -1000, 400, 0.0, 1.0, clip=True),
    CropForegroundd(KEYS, source_key="label", margin=2),
    SpatialPadd(KEYS, (16, 16, 16)),
)


class Dense(torch.nn.Module):
    """Two classes from a fixed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 2, 3, padding=1)
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(self.conv.weight.shape, generator=draw))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A CT with a slope of 2 HU a level and an oblique orientation, and its label."""
    rng = np.random.default_rng(0)
    levels = rng.integers(-400, 150, (15, 13, 9)).astype(np.int16)
    affine = np.array([[-1.2, 0, 0, 5], [0, 0, 2.5, 1], [0, -1.1, 0, 2], [0, 0, 0, 1.0]])
    image = nib.Nifti1Image(levels, affine)
    image.header.set_slope_inter(2.0, -24.0)
    nib.save(image, tmp_path / "ct.nii.gz")
    label = np.zeros(levels.shape, np.uint8)
    label[4:10, 3:9, 2:6] = 1
    nib.save(nib.Nifti1Image(label, affine), tmp_path / "label.nii.gz")
    return {"image": str(tmp_path / "ct.nii.gz"), "label": str(tmp_path / "label.nii.gz")}


def evaluator(files: dict[str, str], transforms: Any, **arguments: Any) -> SupervisedEvaluator:
    dataset = Dataset([files], Compose(list(transforms)))
    return SupervisedEvaluator(
        torch.device("cpu"), DataLoader(dataset, batch_size=1), network=Dense().eval(), **arguments
    )


def test_the_gradient_on_the_file_is_the_derivative_of_the_whole_pipeline(files: dict[str, str]) -> None:
    """Against differences of the loss, with MONAI's own pipeline run on changed files."""
    case = native_case(evaluator(files, CT), 0)
    image = case.image.as_tensor()
    total = torch.nn.CrossEntropyLoss(reduction="sum")

    def value(x: torch.Tensor) -> torch.Tensor:
        return total(case.network(x).double(), case.target[:, 0].long())

    leaf = image.clone().requires_grad_()
    gradient = torch.autograd.grad(value(leaf), leaf)[0]
    for index in gradient.abs().flatten().topk(3).indices.tolist():
        at = np.unravel_index(index, image.shape)
        step = torch.zeros_like(image)
        step[at] = 2.0  # one level: the file holds no less
        with torch.no_grad():
            slope = float(value(image + step) - value(image - step)) / 4
        assert slope == pytest.approx(float(gradient[at]), rel=0.02)


@pytest.mark.parametrize("kind", [BIM, PGD])
def test_the_result_is_on_the_levels_of_the_file_inside_the_budget_and_as_bad_when_read_back(
    files: dict[str, str], tmp_path: Path, kind: Any
) -> None:
    engine = evaluator(files, CT)
    case = native_case(engine, 0)
    attacked = case.attack(kind(Voxels(), eps=7.0, steps=4), generator=torch.Generator().manual_seed(1))
    assert attacked.attack.eps == 6.0  # three levels of 2 HU
    change = attacked.values - case.image[0].as_tensor()
    assert float(change.abs().max()) == 6.0
    assert torch.equal(change, (change / 2).round() * 2)
    out = tmp_path / "out" / "adversarial.nii.gz"
    case.stored.write(attacked.values, out)
    item = engine.data_loader.dataset.transform({**files, "image": str(out)})
    with torch.no_grad():
        again = Voxels()(engine.network(item["image"][None]), item["label"][None])
    assert float(again) == pytest.approx(float(attacked.result.loss), rel=1e-5)
    assert float(attacked.result.loss) > float(attacked.result.clean_loss)


def test_a_window_is_slid_over_the_preprocessed_volume(files: dict[str, str]) -> None:
    whole = native_case(evaluator(files, CT), 0).attack(BIM(Voxels(), eps=6.0, steps=2))
    inferer = SlidingWindowInferer((16, 16, 16), overlap=0.5)
    slid = native_case(evaluator(files, CT, inferer=inferer), 0).attack(BIM(Voxels(), eps=6.0, steps=2))
    assert float(slid.result.clean_loss) == pytest.approx(float(whole.result.clean_loss), rel=0.1)
    assert float(slid.result.loss) > float(slid.result.clean_loss)


def test_a_budget_under_one_level_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"eps: expected at least one level of the file, 2; got 1"):
        native_case(evaluator(files, CT), 0).attack(BIM(Voxels(), eps=1.0))


@pytest.mark.parametrize(
    "transforms",
    [
        (ScaleIntensityd("image"), ResizeWithPadOrCropd(KEYS, (12, 16, 8))),
        (ScaleIntensityRangePercentilesd("image", 2, 98, 0, 1, clip=True), EnsureTyped(KEYS)),
        (NormalizeIntensityd("image"),),
        (NormalizeIntensityd("image", nonzero=True, channel_wise=True),),
        (Compose([ScaleIntensityd("image"), Compose([NormalizeIntensityd("image", nonzero=True)])]),),
    ],
)
def test_what_depends_on_the_image_is_computed_anew(files: dict[str, str], transforms: Any) -> None:
    engine = evaluator(files, (*LOAD, *transforms))
    case = native_case(engine, 0)
    moved = case.image.as_tensor() + 2 * torch.randint(
        -3, 4, case.image.shape, generator=torch.Generator().manual_seed(2)
    )
    out = Path(files["image"]).with_name("moved.nii.gz")
    case.stored.write(moved[0], out)
    item = engine.data_loader.dataset.transform({**files, "image": str(out)})
    torch.testing.assert_close(case.network.inputs(moved)[0], item["image"].as_tensor(), atol=1e-5, rtol=1e-5)


def test_the_gradient_of_a_normalisation_by_channel_is_one_over_its_deviation(files: dict[str, str]) -> None:
    """MONAI takes mean and deviation as numbers."""
    case = native_case(evaluator(files, (*LOAD, NormalizeIntensityd("image", channel_wise=True))), 0)
    leaf = case.image.as_tensor().clone().requires_grad_()
    gradient = torch.autograd.grad(case.network.inputs(leaf).sum(), leaf)[0]
    assert torch.allclose(gradient, 1 / case.image.as_tensor().std(unbiased=False).expand_as(gradient), rtol=1e-5)


def test_a_step_without_a_gradient_is_named_and_can_be_given_one(files: dict[str, str]) -> None:
    transforms = (*LOAD, HistogramNormalized("image", min=0, max=1))
    with pytest.raises(NotDifferentiableError, match=r"HistogramNormalized.*bpda=\{'HistogramNormalized': ...\}"):
        native_case(evaluator(files, transforms), 0)
    case = native_case(evaluator(files, transforms), 0, bpda={"HistogramNormalized": lambda x: x / 1000})
    attacked = case.attack(BIM(Voxels(), eps=40.0, steps=4))
    assert float(attacked.result.loss) > float(attacked.result.clean_loss)
    with pytest.raises(ValueError, match=r"bpda: expected names among .*HistogramNormalized.*; got \['Other'\]"):
        native_case(evaluator(files, transforms), 0, bpda={"Other": None, "HistogramNormalized": None})


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ((*LOAD, RandFlipd("image", prob=1.0)), "without randomness; got RandFlipd"),
        ((EnsureTyped("image"),), "expected a LoadImaged for 'image'"),
        ((LoadImaged(KEYS), ScaleIntensityd("image")), "expected an EnsureChannelFirstd for 'image'"),
    ],
)
def test_a_pipeline_that_cannot_be_replayed_is_refused(files: dict[str, str], transforms: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(Compose(list(transforms)), files, "image")


def test_the_network_is_left_as_it_was(files: dict[str, str]) -> None:
    engine = evaluator(files, CT)
    engine.network.train()
    before = {name: value.clone() for name, value in engine.network.state_dict().items()}
    native_case(engine, 0).attack(BIM(Voxels(), eps=6.0, steps=1))
    assert engine.network.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in engine.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in engine.network.state_dict().items())


def test_the_lung_bundle_is_replayed_bit_for_bit() -> None:
    root = Path(__file__).parents[2] / "bundles" / "lung_ct_segmentation"
    with open_bundle(root) as bundle:
        engine = bundle.evaluator()
        case = native_case(engine, 0)
        assert torch.equal(case.network.inputs(case.image)[0], engine.data_loader.dataset[0]["image"].as_tensor())
        assert case.stored.lattice.bounds == (-32768.0, 32767.0)
        names = [step.name for step in case.network.steps]
    config = json.loads((root / "configs" / "train.json").read_text())
    steps = [row["_target_"] for row in config["train"]["deterministic_transforms"] if "image" in row["keys"]]
    assert names == steps[2:]  # after LoadImaged and EnsureChannelFirstd
    assert isinstance(case.stored, NiftiImage)


def test_a_voxel_that_a_clip_hides_is_brought_back_where_the_budget_reaches(tmp_path: Path) -> None:
    """Under the clip by 4, 10 and 11: of ten levels, six arrive inside, none, and none tries."""
    levels = np.full((4, 4, 4), 500, np.int16)
    levels[0, 0, :3] = -4, -10, -11
    nib.save(nib.Nifti1Image(levels, np.eye(4)), tmp_path / "ct.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "label.nii.gz")
    item = {"image": str(tmp_path / "ct.nii.gz"), "label": str(tmp_path / "label.nii.gz")}
    steps = [LoadImaged(KEYS), EnsureChannelFirstd(KEYS), ScaleIntensityRanged("image", 0, 1000, 0.0, 1.0, clip=True)]
    engine = evaluator(item, steps)
    engine.network = Brightness()
    case = native_case(engine, 0)
    moved = case.attack(BIM(Dark(), eps=10.0, steps=4, criterion=never)).values - case.stored.values()
    assert moved[0, 0, 0, :4].tolist() == [10, 10, 0, 10]
    assert float(case.network.inputs(case.image + 10).as_subclass(torch.Tensor)[0, 0, 0, 0, 0]) == pytest.approx(0.006)


def test_an_image_scaled_by_its_extremes_stays_in_its_range(files: dict[str, str]) -> None:
    """Every voxel brighter by eps is the same image for min-max scaling; inside the range it is a brighter one."""
    engine = evaluator(files, [LoadImaged(KEYS), EnsureChannelFirstd(KEYS), ScaleIntensityd("image")])
    engine.network = Brightness()
    case = native_case(engine, 0)
    attacked = case.attack(BIM(Dark(), eps=40.0, steps=4, criterion=never))
    values = case.stored.values()
    assert (float(attacked.values.min()), float(attacked.values.max())) >= (float(values.min()), float(values.max()))
    assert float(attacked.values.max()) == float(values.max())
    free = case.attack(BIM(Dark(), eps=40.0, steps=4, criterion=never, bounds=(-9e4, 9e4)))
    assert float(attacked.result.loss) > float(free.result.loss)


class Brightness(torch.nn.Module):
    """The mean of the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).mean(1, keepdim=True)


class Dark(torch.nn.Module):
    """A loss that grows with the brightness."""

    reduction = "mean"

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return prediction.mean()


def never(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(prediction), dtype=torch.bool)


@pytest.mark.parametrize(
    ("file", "suffix", "name"),
    [
        ("a.b.nii.gz", ".nii.gz", "a.b"),
        ("A.B.NII.GZ", ".nii.gz", "A.B"),
        ("1.2.840.7", "", "1.2.840.7"),  # a folder of DICOM instances
        ("1.2.840.7", ".dcm", "1.2.840.7"),
        ("case.1.JPG", ".png", "case.1"),
    ],
)
def test_a_case_has_the_name_of_its_file(file: str, suffix: str, name: str) -> None:
    stored: Any = SimpleNamespace(suffix=suffix)
    nothing: Any = None
    assert NativeCase(Path(file), stored, nothing, None, nothing, nothing).name == name


@pytest.mark.parametrize(("norm", "eps"), [(2, 30.0), (2, 100.0), (1, 12.0), (1, 300.0)])
def test_rounding_stays_in_a_budget_over_all_voxels(files: dict[str, str], norm: int, eps: float) -> None:
    """And the loss that is told is that of what is written."""
    case = native_case(evaluator(files, CT), 0)
    attacked = case.attack(PGD(Voxels(), eps=eps, norm=norm, steps=4), generator=torch.Generator().manual_seed(0))
    change = (attacked.values - case.stored.values()).double()
    assert 0 < float(torch.linalg.vector_norm(change.flatten(), norm)) <= eps * (1 + 1e-6)
    assert torch.equal(case.stored.lattice.nearest(attacked.values), attacked.values)
    loss = Voxels()(case.network(attacked.values[None]), case.target)
    assert float(attacked.result.loss) == pytest.approx(float(loss), rel=1e-5)
    assert float(attacked.result.loss) > float(attacked.result.clean_loss)


def test_as_few_voxels_as_it_takes_are_rounded_the_other_way() -> None:
    generator = torch.Generator().manual_seed(0)
    lattice = Lattice(0.5, 1.0, -1000, 1000)
    clean = lattice.values(torch.randint(-50, 50, (1, 9, 8), generator=generator)).float()
    change = torch.randn(clean.shape, generator=generator)
    for norm in (1.0, 2.0):
        eps = float(torch.linalg.vector_norm(change.flatten(), norm))
        held = inside_budget(lattice, clean + change, clean, eps, norm)
        assert torch.equal(lattice.nearest(held), held)
        assert float(torch.linalg.vector_norm((held - clean).flatten(), norm)) <= eps * (1 + 1e-6)
        differ = held != lattice.nearest(clean + change)
        assert 0 <= int(differ.sum()) < 20
        tight = inside_budget(lattice, clean + change, clean, 0.9 * eps, norm)
        assert int((tight != lattice.nearest(clean + change)).sum()) > int(differ.sum())
    assert torch.equal(
        inside_budget(lattice, clean + change, clean, 0.1, float("inf")), lattice.nearest(clean + change)
    )
