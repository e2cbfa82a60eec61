# SPDX-License-Identifier: Apache-2.0
"""The lung bundle as it ships: its configs run, its weights reach what its README states, its two configs agree."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

BUNDLE = Path(__file__).parents[2] / "bundles" / "lung_ct_segmentation"
CONFIGS = BUNDLE / "configs"


@pytest.fixture(autouse=True)
def own_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `scripts` be this bundle's, whatever another test imported under that name."""
    monkeypatch.syspath_prepend(str(BUNDLE))
    for name in [name for name in sys.modules if name == "scripts" or name.startswith("scripts.")]:
        monkeypatch.delitem(sys.modules, name)


def workflow(*names: str, kind: str = "train", **override: object) -> ConfigWorkflow:
    return ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in names],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=str(CONFIGS / "logging.conf"),
        workflow_type=kind,
        bundle_root=str(BUNDLE),
        **override,
    )


def sample_label() -> np.ndarray:
    return np.asarray(nib.load(BUNDLE / "sample" / "lung1_lungs.nii.gz").dataobj)


def test_evaluate_reaches_the_stated_dice_on_each_side(tmp_path: Path) -> None:
    run = workflow("train.json", "evaluate.json", output_dir=str(tmp_path))
    run.initialize()
    run.run()
    metrics = run.parser.get_parsed_content("validate#evaluator").state.metrics
    assert metrics["val_dice_left"] >= 0.93
    assert metrics["val_dice_right"] >= 0.93
    mean = (metrics["val_dice_left"] + metrics["val_dice_right"]) / 2
    assert metrics["val_mean_dice"] == pytest.approx(mean, abs=1e-6)
    assert (tmp_path / "metrics.csv").is_file()


def test_covid_layout_with_infections_gives_the_same_dice(tmp_path: Path) -> None:
    """The sample, renamed to COVID-19-CT-Seg's layout and with a part of the left lung marked as infection."""
    label = nib.load(BUNDLE / "sample" / "lung1_lungs.nii.gz")
    voxels = np.asarray(label.dataobj).copy()
    centre = np.argwhere(voxels == 1).mean(0).round().astype(int)
    box = tuple(slice(c - 4, c + 4) for c in centre)
    assert set(np.unique(voxels[box])) <= {0, 1}
    voxels[box][voxels[box] == 1] = 3
    data = tmp_path / "data"
    (data / "lung_mask").mkdir(parents=True)
    nib.save(nib.Nifti1Image(voxels, label.affine), data / "lung_mask" / "coronacases_001.nii.gz")
    shutil.copy(BUNDLE / "sample" / "lung1_image.nii.gz", data / "coronacases_001.nii.gz")
    metrics = []
    for override in ({}, {"dataset_dir": str(data)}):
        run = workflow("train.json", "evaluate.json", output_dir=str(tmp_path / "out"), **override)
        run.initialize()
        run.run()
        metrics.append(run.parser.get_parsed_content("validate#evaluator").state.metrics)
    assert metrics[0] == metrics[1]


def test_inference_writes_the_lungs_on_the_native_grid(tmp_path: Path) -> None:
    """A CT stored in another orientation and spacing gets its prediction there, and it is the lungs."""
    image = nib.load(BUNDLE / "sample" / "lung1_image.nii.gz")
    turned = image.slicer[::-1, :, :]
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine), tmp_path / "in" / "a_image.nii.gz")
    run = workflow("inference.json", kind="infer", dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"))
    run.initialize()
    run.run()
    predicted = nib.load(tmp_path / "out" / "a_image_lungs_pred.nii.gz")
    np.testing.assert_allclose(predicted.affine, turned.affine, atol=1e-5)
    voxels, expected = np.asarray(predicted.dataobj), sample_label()[::-1]
    assert voxels.dtype == np.uint8
    for index in (1, 2):
        both = ((voxels == index) & (expected == index)).sum()
        assert 2 * both / ((voxels == index).sum() + (expected == index).sum()) >= 0.93


def test_training_runs_and_resumes_where_it_stopped(tmp_path: Path) -> None:
    """Two epochs, and one epoch resumed for a second, end at the same step count and at finite, changed weights."""
    small: dict[str, object] = {
        "train_cases": ["lung1"],
        "volumes_per_epoch": 1,
        "save_every": 1,
        "ckpt_dir": str(tmp_path),
    }
    first = workflow("train.json", **small, epochs=1)
    first.initialize()
    first.run()
    before = torch.load(tmp_path / "model.pt", weights_only=True)
    second = workflow("train.json", "resume.json", **small, epochs=2)
    second.initialize()
    second.run()
    after = torch.load(tmp_path / "model.pt", weights_only=True)
    trainer = second.parser.get_parsed_content("train#trainer")
    assert (trainer.state.epoch, trainer.state.iteration) == (2, 2)
    assert before.keys() == after.keys()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_configs_agree() -> None:
    """Inference repeats what evaluation does to an image, with the same network and windows."""
    train, inference = (json.loads((CONFIGS / name).read_text()) for name in ("train.json", "inference.json"))
    assert train["network_def"] == inference["network_def"]
    assert train["validate"]["inferer"] == inference["inferer"]

    def image_steps(steps: list[dict[str, object]]) -> list[dict[str, object]]:
        kept = [dict(step) for step in steps if "image" in np.atleast_1d(step["keys"])]
        for step in kept:
            step["keys"] = "image"
            step["mode"] = np.atleast_1d(step.get("mode", "none"))[0]
        return kept

    steps = train["train"]["deterministic_transforms"]
    assert image_steps(steps) == image_steps(inference["preprocessing"]["transforms"])


def test_bundle_properties_are_complete() -> None:
    for names, kind, more in (
        (("train.json",), "train", {"train_cases": ["lung1"], "val_cases": ["lung1"]}),
        (("train.json", "evaluate.json"), "train", {"train_cases": ["lung1"], "val_cases": ["lung1"]}),
        (("inference.json",), "infer", {}),
    ):
        run = workflow(*names, kind=kind, **more)
        run.initialize()
        assert not run.check_properties()


def test_runs_from_the_bundle_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bundle_root` defaults to the current folder: evaluate a copy of the bundle from inside it."""
    copy = tmp_path / "copy"
    shutil.copytree(BUNDLE, copy, ignore=shutil.ignore_patterns("__pycache__", "eval"))
    monkeypatch.chdir(copy)
    parser = ConfigParser()
    parser.read_config(["configs/train.json", "configs/evaluate.json"])
    items = parser.get_parsed_content("validate#datalist")
    assert [Path(item["image"]).resolve() for item in items] == [(copy / "sample" / "lung1_image.nii.gz").resolve()]


def test_what_ships_is_small() -> None:
    assert (BUNDLE / "models" / "model.pt").stat().st_size < 6e6
    assert sum(path.stat().st_size for path in (BUNDLE / "sample").iterdir()) < 3e6
    state = torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
