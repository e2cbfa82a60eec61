"""`AttackHandler` and what MONAI puts into a batch: metadata, traced operations, further inputs of the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from evaluators import BOUNDS, EPS, Task, generator, handled, images_of, seen
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import PrepareBatchExtraInput, default_prepare_batch
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Spacingd
from monai.utils import convert_to_dst_type
from torch import nn

from monai_smia.attacks import BIM, PGD
from monai_smia.handlers import case_names

NATIVE = (10, 8, 6)


@pytest.fixture
def volumes(tmp_path: Path) -> list[dict[str, str]]:
    """Three tiny CTs with labels; voxels of 2 x 2 x 3 mm."""
    source = np.random.default_rng(0)
    cases = []
    for i in range(3):
        case = {}
        for key, voxels in (("image", source.random(NATIVE)), ("label", source.integers(0, 3, NATIVE))):
            case[key] = str(tmp_path / f"patient_{i}_{key}.nii.gz")
            nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag([2.0, 2.0, 3.0, 1.0])), case[key])
        cases.append(case)
    return cases


def preprocessing() -> Compose:
    keys = ["image", "label"]
    return Compose(
        [LoadImaged(keys), EnsureChannelFirstd(keys), Spacingd(keys, (3, 2, 3), mode=("bilinear", "nearest"))]
    )


def described(operations: Any) -> list[str]:
    """Names and original shapes of traced operations, of one image or of a batch of them."""
    if operations and isinstance(operations[0], list):
        return [text for one in operations for text in described(one)]
    return [f"{operation['class']} {list(operation['orig_size'])}" for operation in operations]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_invertd_gives_the_native_grid(volumes: list[dict[str, str]], batch_size: int) -> None:
    task, preprocess = Task(3), preprocessing()
    network, data = task.network(), Dataset(volumes, preprocess)
    attack = PGD(task.loss(), eps=EPS, steps=2, bounds=(-1.0, 2.0), random_start=True)
    engine = task.evaluator(
        val_data_loader=DataLoader(data, batch_size=batch_size),
        network=network,
        postprocessing=Invertd("pred", preprocess, orig_keys="image", nearest_interp=False),
        key_val_metric=None,
        additional_metrics=None,
        **handled(attack),
    )
    batches = seen(engine, Events.ITERATION_STARTED, lambda e: e.state.batch)
    outputs = seen(engine, Events.ITERATION_COMPLETED, lambda e: e.state.output)
    engine.run()
    network = network.eval()
    for i, batch in enumerate(batches):
        image, clean = batch["image"], batch["image_clean"]
        assert type(image) is MetaTensor
        assert set(image.meta) == set(clean.meta)
        assert torch.equal(image.affine, clean.affine)
        assert image.meta["filename_or_obj"] == clean.meta["filename_or_obj"]
        assert described(image.applied_operations) == described(clean.applied_operations) != []
        by_hand = attack(network, clean, batch["label"], generator=generator(batch=i)).adversarial
        assert torch.equal(image.as_tensor(), by_hand.as_tensor())
    adversarial = torch.cat([batch["image"].as_tensor() for batch in batches])
    predictions = [item["pred"] for output in outputs for item in output]
    for i, (prediction, item) in enumerate(zip(predictions, data, strict=True)):
        assert prediction.shape == (3, *NATIVE)
        with torch.no_grad():
            resampled = network(adversarial[i : i + 1])[0]
        assert resampled.shape != prediction.shape
        traced = convert_to_dst_type(resampled, item["image"])[0]
        native = preprocess.inverse({"image": traced, "label": item["label"]})["image"]
        torch.testing.assert_close(prediction.as_tensor(), native.as_tensor(), rtol=1e-5, atol=1e-5)
        assert torch.allclose(prediction.affine, torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64)))


def test_case_names(volumes: list[dict[str, str]]) -> None:
    names = [f"patient_{i}_image.nii.gz" for i in range(3)]
    data = Dataset(volumes, preprocessing())
    (batch,) = DataLoader(data, batch_size=3)
    assert case_names(batch) == case_names(list(data)) == names
    assert case_names((batch["image"], batch["label"])) == names
    assert case_names([(item["image"], item["label"]) for item in data]) == names
    plain = torch.zeros(2, 1, 4, 4)
    assert case_names({"image": plain}, start=4) == case_names((plain, plain), start=4) == ["4", "5"]
    assert case_names([[plain[0], plain[0]]], start=4) == ["4"]  # one decollated pair, not two cases
    assert case_names(batch, "label") == [name.replace("image", "label") for name in names]


class Conditioned(nn.Module):
    """A network that takes a second input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return self.network(image) * gain[:, :, None]


class Bound(nn.Module):
    """The same with the second input held."""

    def __init__(self, network: Conditioned, gain: torch.Tensor) -> None:
        super().__init__()
        self.network = network
        self.gain = gain

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image, self.gain)


@pytest.mark.parametrize("extra", ["gain", {"gain": "gain"}], ids=["positional", "keyword"])
@pytest.mark.parametrize("probability", [1.0, 0.5])
def test_further_inputs_of_the_network(extra: Any, probability: float) -> None:
    task = Task(cases=4)
    (batch,), network = task.batches(4), Conditioned(task.network())
    batch["gain"] = torch.tensor(
        [[[1.0]], [[-2.0]], [[0.5]], [[-1.0]]]
    )  # a sign that is forgotten turns the attack round
    attack = BIM(task.loss(), eps=EPS, steps=2, bounds=BOUNDS)
    engine = task.evaluator(
        val_data_loader=[batch],
        network=network,
        prepare_batch=PrepareBatchExtraInput(extra),
        **handled(attack, probability=probability, seed=1),
    )
    images, attacked = images_of(engine), seen(engine, Events.ITERATION_STARTED, lambda e: e.state.attacked)
    engine.run()
    expected = batch["image"].clone()
    chosen = attacked[0]
    assert 0 < len(chosen) < 4 or probability == 1
    by_hand = attack(Bound(network, batch["gain"][chosen]), batch["image"][chosen], batch["label"][chosen])
    expected[chosen] = by_hand.adversarial
    assert torch.equal(images[0], expected)


def rescaled(batch: dict, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> tuple:
    image, label = default_prepare_batch(batch, device, non_blocking, **kwargs)
    return image * 2 - 1, label


def test_an_image_that_prepare_batch_changes_is_refused() -> None:
    task = Task()
    engine = task.evaluator(prepare_batch=rescaled, **handled(task.attacks()["bim"]))
    with pytest.raises(ValueError, match=r"image_key: the engine's prepare_batch does not hand batch\[.*image"):
        engine.run()


def test_keys_of_ones_own() -> None:
    task = Task()
    renamed = [{"ct": batch["image"], "lungs": batch["label"]} for batch in task.batches()]

    def prepare(batch: dict, *arguments: Any, **kwargs: Any) -> tuple:
        return default_prepare_batch({"image": batch["ct"], "label": batch["lungs"]}, *arguments, **kwargs)

    expected = task.evaluator(val_data_loader=task.batches(), **handled(task.attacks()["pgd"]))
    expected.run()
    engine = task.evaluator(
        val_data_loader=renamed,
        prepare_batch=prepare,
        **handled(task.attacks()["pgd"], image_key="ct", label_key="lungs"),
    )
    batches = seen(engine, Events.ITERATION_STARTED, lambda e: e.state.batch)
    engine.run()
    assert engine.state.metrics == expected.state.metrics
    assert all(set(batch) == {"ct", "ct_clean", "lungs"} for batch in batches)
