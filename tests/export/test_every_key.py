# SPDX-License-Identifier: Apache-2.0
"""Image content that reaches the network under other keys: what is attacked is what the file gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, list_data_collate
from monai.engines import SupervisedEvaluator
from monai.losses import DiceCELoss
from monai.transforms import (
    Compose,
    ConcatItemsd,
    CopyItemsd,
    CropForegroundd,
    DeleteItemsd,
    EnsureChannelFirstd,
    Lambdad,
    LoadImaged,
    MaskIntensityd,
    NormalizeIntensityd,
    ScaleIntensityd,
    ScaleIntensityRanged,
    Transform,
)

from monai_smia.attacks import BIM, PGD
from monai_smia.export import NotDifferentiableError, SaveAdversariald, native_case, write_cohort
from monai_smia.export.replay import replay

SHAPE = (7, 6, 5)
LOSS = DiceCELoss(softmax=True, to_onehot_y=True)
LOAD = LoadImaged("image", ensure_channel_first=True)
LOW, HIGH = (
    ScaleIntensityRanged(key, *ends, 0, 1, clip=True) for key, ends in (("image", (-200, 0)), ("w2", (0, 200)))
)
BOTH = (LOAD, CopyItemsd("image", names=["w2"]), LOW, HIGH)
JOINED = (*BOTH, ConcatItemsd(["image", "w2"], "image"))


class Reads(torch.nn.Module):
    """Two classes from some channels of the input."""

    def __init__(self, *channels: int) -> None:
        super().__init__()
        self.channels = list(channels)
        self.conv = torch.nn.Conv3d(len(channels), 2, 3, padding=1)
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(self.conv.weight.shape, generator=draw))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x[:, self.channels])


@pytest.fixture
def item(tmp_path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    voxels = rng.integers(-200, 200, SHAPE).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "ct.nii.gz")
    label = torch.randint(2, (1, *SHAPE), generator=torch.Generator().manual_seed(0))
    return {"image": str(tmp_path / "ct.nii.gz"), "label": label}


def evaluator(item: Any, transforms: Any, network: Any = None, prepare: Any = None, **more: Any) -> SupervisedEvaluator:
    loader = DataLoader(Dataset([item], Compose(list(transforms))), batch_size=1, collate_fn=list_data_collate)
    settings = {} if prepare is None else {"prepare_batch": prepare}
    return SupervisedEvaluator(torch.device("cpu"), loader, network or Reads(0), **settings, **more)


def read_again(engine: SupervisedEvaluator, item: Any, file: Path) -> dict[str, Any]:
    """The independent way: MONAI's own pipeline on the written file."""
    batch: dict[str, Any] = list_data_collate([engine.data_loader.dataset.transform({**item, "image": str(file)})])
    return batch


def attacked(engine: SupervisedEvaluator, item: Any, out: Path, **more: Any) -> tuple[Any, Any, dict[str, Any]]:
    case = native_case(engine, 0, **more)
    done = case.attack(PGD(LOSS, eps=20.0, steps=3), generator=torch.Generator().manual_seed(0))
    case.stored.write(done.values, out)
    return case, done, read_again(engine, item, out)


@pytest.mark.parametrize("channel", [0, 1])
def test_both_windows_are_attacked_and_agree_with_the_file(item: Any, tmp_path: Path, channel: int) -> None:
    network = Reads(channel)
    case, done, again = attacked(evaluator(item, JOINED, network), item, tmp_path / "out.nii.gz")
    memory = case.network.inputs(done.values[None]).detach()
    assert memory.shape == (1, 2, *SHAPE)
    assert torch.equal(memory, again["image"].as_tensor())
    with torch.no_grad():
        disk = float(LOSS(network(again["image"].as_tensor()), item["label"][None]))
    assert float(done.result.loss) == pytest.approx(disk, rel=1e-5)
    assert disk > float(done.result.clean_loss) + 0.01


def test_the_gradient_of_two_windows_is_the_sum_of_those_of_each(item: Any) -> None:
    """Each window has a slope of 1/200 inside and none outside; at 0 both clips meet."""
    case = native_case(evaluator(item, JOINED, Reads(0, 1)), 0)
    leaf = case.image.as_tensor().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        (case.network.inputs(leaf) * torch.tensor([1.0, 3.0]).view(1, 2, 1, 1, 1)).sum(), leaf
    )
    plain = leaf.detach()
    inside = (plain != 0) & (plain > -200) & (plain < 200)
    expected = torch.where(plain < 0, 1 / 200, 3 / 200)
    assert torch.allclose(gradient[inside], expected[inside])


def stacked(batch: Any, device: Any, non_blocking: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([batch["image"], batch["w2"]], 1).as_tensor(), batch["label"]


def second_alone(batch: Any, device: Any, non_blocking: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return batch["w2"].as_tensor(), batch["label"]


@pytest.mark.parametrize(("prepare", "network"), [(stacked, Reads(1)), (second_alone, Reads(0))])
def test_a_key_that_prepare_batch_takes_is_followed(item: Any, tmp_path: Path, prepare: Any, network: Any) -> None:
    case, done, again = attacked(evaluator(item, BOTH, network, prepare), item, tmp_path / "out.nii.gz")
    given = prepare(again, None, False)[0]
    assert torch.equal(case.network.inputs(done.values[None]).detach(), given)
    assert float(done.result.loss) > float(done.result.clean_loss) + 0.01
    assert float(done.result.loss) == pytest.approx(float(LOSS(network(given), item["label"][None])), rel=1e-5)


class Named(torch.nn.Module):
    """Reads its second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Reads(0)

    def forward(self, x: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        return self.inner(beside)


def beside(batch: Any, device: Any, non_blocking: bool) -> tuple[Any, Any, tuple[()], dict[str, torch.Tensor]]:
    return batch["image"].as_tensor(), batch["label"], (), {"beside": batch["w2"].as_tensor()}


def test_further_arguments_of_the_network_are_followed(item: Any, tmp_path: Path) -> None:
    network = Named()
    engine = evaluator(item, BOTH, network, beside)
    done, again = attacked(engine, item, tmp_path / "out.nii.gz")[1:]
    disk = float(LOSS(network.inner(again["w2"].as_tensor()), item["label"][None]))
    assert float(done.result.loss) == pytest.approx(disk, rel=1e-5)
    assert disk > float(done.result.clean_loss) + 0.01


@pytest.mark.parametrize(
    "transforms",
    [
        (CopyItemsd("image", names=["w2"]), LoadImaged(["image", "w2"], ensure_channel_first=True), LOW, HIGH),
        (LoadImaged("image"), CopyItemsd("image", names=["w2"]), EnsureChannelFirstd(["image", "w2"]), LOW, HIGH),
        (LOAD, CopyItemsd("image", times=2, names=["w2", "w3"]), LOW, HIGH, DeleteItemsd("w3")),
        (LOAD, CopyItemsd("image", names=["w1"]), CopyItemsd("w1", names=["w2"]), LOW, HIGH),
        (LOAD, Lambdad("image", lambda x: x * 1.0, overwrite="w2"), LOW, HIGH),
        (LOAD, CopyItemsd("image", names=["w2"]), NormalizeIntensityd(["image", "w2"]), ScaleIntensityd("w2")),
    ],
)
def test_copies_at_any_place_are_followed(item: Any, tmp_path: Path, transforms: Any) -> None:
    engine = evaluator(item, (*transforms, ConcatItemsd(["image", "w2"], "image")), Reads(1))
    case, done, again = attacked(engine, item, tmp_path / "out.nii.gz")
    memory = case.network.inputs(done.values[None]).detach()
    assert torch.allclose(memory, again["image"].as_tensor(), atol=1e-6)
    assert float(done.result.loss) > float(done.result.clean_loss)


def test_a_window_without_a_voxel_inside_is_followed_until_the_budget_reaches_it(item: Any) -> None:
    far = ScaleIntensityRanged("w2", 210, 400, 0, 1, clip=True)
    transforms = (LOAD, CopyItemsd("image", names=["w2"]), LOW, far, ConcatItemsd(["image", "w2"], "image"))
    case = native_case(evaluator(item, transforms, Reads(1)), 0)
    assert float(case.network.inputs(case.image)[:, 1].abs().max()) == 0
    done = case.attack(BIM(LOSS, eps=40.0, steps=2))
    assert float(case.network.inputs(done.values[None])[:, 1].max()) > 0


MASKED = (
    LOAD,
    CopyItemsd("image", names=["mask"]),
    Lambdad("mask", lambda x: (x > 0).float()),
    MaskIntensityd("image", mask_key="mask"),
    ScaleIntensityRanged("image", -200, 200, 0, 1),
)


def test_a_mask_made_of_the_image_is_refused_by_name_or_followed_with_the_gradient_given(
    item: Any, tmp_path: Path
) -> None:
    with pytest.raises(NotDifferentiableError, match=r"gets through Lambdad \(to 'mask'\)"):
        native_case(evaluator(item, MASKED), 0)
    engine = evaluator(item, MASKED)
    case, done, again = attacked(engine, item, tmp_path / "out.nii.gz", bpda={"Lambdad": lambda x: 0 * x})
    assert torch.equal(case.network.inputs(done.values[None]).detach(), again["image"].as_tensor())
    clean = engine.data_loader.dataset[0]["image"].as_tensor()
    assert bool(
        ((clean == 0.5) != (again["image"][0].as_tensor() == 0.5)).any()
    )  # the mask has moved, and was followed


class DividedByMean(Transform):
    """By a plain number, which has no gradient."""

    def __call__(self, data: Any) -> Any:
        out = {**data, "level": float(data["image"].abs().mean())}
        return out


class ByLevel(Transform):
    def __call__(self, data: Any) -> Any:
        return {**data, "image": data["image"] / data["level"]}


def test_a_number_made_of_the_image_is_refused_by_name(item: Any) -> None:
    with pytest.raises(NotDifferentiableError, match=r"DividedByMean \(to 'level'\)"):
        native_case(evaluator(item, (LOAD, DividedByMean(), ByLevel())), 0)


def test_a_label_made_of_the_image_is_refused_by_name(item: Any) -> None:
    """As in reconstruction: on disk the target would be another one."""
    transforms = (
        LOAD,
        ScaleIntensityRanged("image", -200, 200, 0, 1),
        DeleteItemsd("label"),
        CopyItemsd("image", names=["label"]),
    )
    engine = evaluator(item, transforms, torch.nn.Conv3d(1, 1, 1))
    case = native_case(engine, 0)
    with pytest.raises(
        ValueError, match=r"label: .* changes with the attack on ct\.nii\.gz: 'label' \(by CopyItemsd\)"
    ):
        case.attack(
            BIM(torch.nn.MSELoss(), eps=20.0, steps=1, criterion=lambda p, t: torch.zeros(len(p), dtype=torch.bool))
        )


def test_a_box_around_the_image_is_followed_where_it_stays_and_refused_where_the_label_moves(tmp_path: Path) -> None:
    voxels = np.zeros(SHAPE, np.int16)
    voxels[1:-1, 1:-1, 1:-1] = 150
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "ct.nii.gz")
    nib.save(nib.Nifti1Image((voxels > 0).astype(np.uint8), np.eye(4)), tmp_path / "label.nii.gz")
    item = {"image": str(tmp_path / "ct.nii.gz"), "label": str(tmp_path / "label.nii.gz")}
    load = LoadImaged(["image", "label"], ensure_channel_first=True)

    def case(level: int) -> Any:
        crop = CropForegroundd(["image", "label"], source_key="image", select_fn=lambda x: x > level)
        return native_case(evaluator(item, (load, crop), Reads(0)), 0)

    done = case(50).attack(PGD(LOSS, eps=20.0, steps=2), generator=torch.Generator().manual_seed(0))
    assert float(done.result.loss) > float(done.result.clean_loss)
    with pytest.raises(
        ValueError, match=r"label: 'label' \(by CropForegroundd\) depends on .* gives '?image'? of shape"
    ):
        case(10).attack(PGD(LOSS, eps=20.0, steps=2), generator=torch.Generator().manual_seed(0))


class Sometimes(Transform):
    """A second channel that hides that it is made of the image until the image is loaded from elsewhere."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __call__(self, data: Any) -> Any:
        name = data["image"].meta["filename_or_obj"]
        same = Path(name) == Path(self.file)
        return {**data, "image": torch.cat([data["image"], torch.zeros_like(data["image"]) if same else data["image"]])}


def test_what_was_not_followed_is_an_error_of_its_case_and_leaves_no_file(item: Any, tmp_path: Path) -> None:
    engine = evaluator(item, (LOAD, Sometimes(item["image"])), Reads(0))
    cohort = write_cohort(engine, BIM(LOSS, eps=20.0, steps=1), tmp_path / "out", progress=False)
    assert len(cohort.failures) == 1
    assert "image: read again from the copy of ct.nii.gz it differs from what was attacked" in cohort.failures[0].error
    assert not list((tmp_path / "out" / "images").iterdir())


@pytest.mark.parametrize("prepare", [None, second_alone])
def test_a_cohort_of_two_windows_survives_whole(item: Any, tmp_path: Path, prepare: Any) -> None:
    transforms, network = (JOINED, Reads(1)) if prepare is None else (BOTH, Reads(0))
    engine = evaluator(item, transforms, network, prepare)
    cohort = write_cohort(engine, BIM(LOSS, eps=20.0, steps=2), tmp_path / "out", progress=False)
    assert not cohort.failures
    (loss,) = cohort.survival
    assert loss.memory > loss.clean + 0.01
    assert loss.disk == pytest.approx(loss.memory, rel=1e-5)


def test_a_change_of_one_window_cannot_be_carried_back(item: Any, tmp_path: Path) -> None:
    """By name: for the usual way beside a cohort, and for the images of a pipeline."""
    engine = evaluator(item, BOTH, Reads(0), second_alone)
    cohort = write_cohort(engine, BIM(LOSS, eps=20.0, steps=1), tmp_path / "out", naive=True, progress=False)
    assert "naive: 'w2' reach the network, made of one file" in cohort.failures[0].error
    pipeline = Compose(list(BOTH))
    data = pipeline(item)
    data["image"] = data["image"] + 0.1
    with pytest.raises(ValueError, match=r"image: the preprocessing also makes 'w2' \(by CopyItemsd\) of it"):
        SaveAdversariald("image", pipeline, tmp_path / "saved")(data)
    assert not (tmp_path / "saved" / "manifest.json").exists()


def test_a_pipeline_that_makes_nothing_else_is_saved_as_before(item: Any, tmp_path: Path) -> None:
    pipeline = Compose([LOAD, LOW])
    data = pipeline(item)
    data["image"] = (data["image"] + 0.1).clamp(0, 1)
    SaveAdversariald("image", pipeline, tmp_path / "saved")(data)
    assert (tmp_path / "saved" / "images" / "ct.nii.gz").is_file()


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float64])
def test_an_image_loaded_as_another_type_is_attacked(item: Any, tmp_path: Path, dtype: Any) -> None:
    load = LoadImaged("image", ensure_channel_first=True, dtype=dtype)
    engine = evaluator(item, (load, ScaleIntensityRanged("image", -200, 200, 0, 1)))
    case, done, again = attacked(engine, item, tmp_path / "out.nii.gz")
    assert torch.allclose(
        case.network.inputs(done.values[None]).detach(), again["image"].as_tensor().float(), atol=1e-6
    )
    assert float(done.result.loss) > float(done.result.clean_loss)


def test_a_type_that_cannot_hold_the_file_is_refused_by_name(item: Any, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.full(SHAPE, 4, np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, 0.0)
    nib.save(image, tmp_path / "half.nii.gz")
    half = {**item, "image": str(tmp_path / "half.nii.gz")}
    for source, dtype, message in (
        (half, np.int16, r"LoadImaged\(dtype=int16\) does not hold .*half\.nii\.gz.*not whole"),
        ({**item, "image": positive(tmp_path)}, np.uint8, r"LoadImaged\(dtype=uint8\) does not hold .*-32768 to 32767"),
    ):
        load = LoadImaged("image", ensure_channel_first=True, dtype=dtype)
        with pytest.raises(ValueError, match=message):
            native_case(evaluator(source, (load, ScaleIntensityRanged("image", -200, 200, 0, 1))), 0)


def positive(folder: Path) -> str:
    nib.save(nib.Nifti1Image(np.full(SHAPE, 4, np.int16), np.eye(4)), folder / "positive.nii.gz")
    return str(folder / "positive.nii.gz")


@pytest.mark.parametrize(
    ("option", "affine"),
    [("as_closest_canonical", np.diag([-1.0, 1, 1, 1])), ("reverse_indexing", np.eye(4))],
)
def test_an_option_of_the_reader_that_turns_the_image_is_named(tmp_path: Path, option: str, affine: Any) -> None:
    rng = np.random.default_rng(0)
    if option == "reverse_indexing":
        pytest.importorskip("itk")
        import itk

        path = tmp_path / "turned.nrrd"
        itk.imwrite(itk.image_from_array(rng.integers(0, 99, SHAPE).astype(np.int16)), str(path))
        reader = "ITKReader"
    else:
        path = tmp_path / "turned.nii.gz"
        nib.save(nib.Nifti1Image(rng.integers(0, 99, SHAPE).astype(np.int16), affine), path)
        reader = "NibabelReader"
    load = LoadImaged("image", reader=reader, ensure_channel_first=True, **{option: True})
    engine = evaluator({"image": str(path), "label": 0}, (load,))
    with pytest.raises(ValueError, match=rf"turned.*{option}=True of its {reader} may be why"):
        native_case(engine, 0)


def test_only_what_the_network_needs_is_run_again(item: Any) -> None:
    """The label's transforms are not; nor are those of a copy that goes nowhere."""
    calls: list[str] = []

    def counted(name: str) -> Callable[[Any], Any]:
        return lambda x: (calls.append(name), x * 1.0)[1]

    transforms = (
        LOAD,
        CopyItemsd("image", names=["unused"]),
        Lambdad("unused", counted("unused")),
        Lambdad("label", counted("label")),
        ScaleIntensityRanged("image", -200, 200, 0, 1),
    )
    loaded = replay(Compose(list(transforms)), item, "image")
    assert [(step.name, step.outputs) for step in loaded.steps] == [
        ("CopyItemsd", ("image",)),
        ("ScaleIntensityRanged", ("image",)),
    ]
    assert loaded.dependent == {"image": "CopyItemsd", "unused": "CopyItemsd"}
    calls.clear()
    for step in loaded.steps:
        step.apply(loaded.begin(loaded.image))
    assert not calls
