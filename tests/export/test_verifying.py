# SPDX-License-Identifier: Apache-2.0
"""`verify_on_disk`: a cohort that came back whole, smoothed, short of a file, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import bundle_layouts
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.transforms import AsDiscreted, Compose, EnsureChannelFirstd, LoadImaged, ScaleIntensityRanged
from threshold_network import Threshold, Voxels

from monai_smia.attacks import BIM
from monai_smia.bundle.commands import main
from monai_smia.export import Cohort, NiftiImage, verify_on_disk, write_cohort

KEYS = ["image", "label"]


def evaluator(items: list[dict[str, str]]) -> SupervisedEvaluator:
    transforms = [LoadImaged(KEYS), EnsureChannelFirstd(KEYS), ScaleIntensityRanged("image", 0, 1000, 0, 1, clip=True)]
    return SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(items, Compose(transforms)), batch_size=1),
        network=Threshold(),
        postprocessing=AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=2),
        key_val_metric={"dice": MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))},
    )


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[SupervisedEvaluator, Cohort]:
    rng = np.random.default_rng(0)
    items = []
    for i in range(3):
        levels = rng.integers(0, 1000, (6, 5, 4)).astype(np.int16)
        for name, array in (("image", levels), ("label", (levels > 500).astype(np.uint8))):
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}{i}.nii.gz")
        items.append({name: str(tmp_path / f"{name}{i}.nii.gz") for name in KEYS})
    engine = evaluator(items)
    return engine, write_cohort(engine, BIM(Voxels(), eps=80.0, steps=3), tmp_path / "out", progress=False)


def check(engine: Any, cohort: Cohort, **arguments: Any) -> Any:
    return verify_on_disk(engine, cohort.folder, Voxels(), progress=False, **arguments)


def test_an_untouched_cohort_has_all_of_its_damage(cohort: tuple[SupervisedEvaluator, Cohort]) -> None:
    engine, written = cohort
    loader = engine.data_loader
    found = check(engine, written)
    assert engine.data_loader is loader
    assert found.changed == ()
    assert found.failures == ()
    assert {row.metric: row.rate for row in found.survival} == {"loss": pytest.approx(1), "dice": pytest.approx(1)}
    for ours, theirs in zip(found.survival, written.survival, strict=True):
        assert (ours.clean, ours.memory, ours.disk) == pytest.approx((theirs.clean, theirs.memory, theirs.disk))


def test_files_of_another_folder_are_those_that_are_checked(
    cohort: tuple[SupervisedEvaluator, Cohort], tmp_path: Path
) -> None:
    """One came back with half of its change, one with none: the rate is that of their own losses."""
    engine, written = cohort
    shutil.copytree(written.folder / "images", tmp_path / "back")
    names = sorted(path.name for path in (tmp_path / "back").iterdir())
    rows = json.loads(written.manifest.read_text())["adversarial"]
    for name, share in zip(names, (1.0, 0.5, 0.0), strict=True):
        row = next(row for row in rows if Path(row["image"]).name == name)
        source = NiftiImage(row["made"]["source"])
        full = NiftiImage(tmp_path / "back" / name).values() - source.values()
        (tmp_path / "back" / name).unlink()
        source.write(source.values() + share * full, tmp_path / "back" / name)
    found = check(engine, written, files=tmp_path / "back")
    assert [path.name for path in found.changed] == names[1:]
    losses = []
    for row in rows:
        image = NiftiImage(tmp_path / "back" / Path(row["image"]).name).values()[None] / 1000
        label = NiftiImage(row["label"]).values()[None]
        losses.append(float(Voxels()(Threshold()(image.clamp(0, 1)), label)))
    loss = found.survival[0]
    assert loss.disk == pytest.approx(np.mean(losses), rel=1e-5)
    assert loss.memory == pytest.approx(np.mean([row["made"]["loss"] for row in rows]))
    assert 0 < loss.rate < 1


def test_what_did_not_come_back_is_named_and_left_out(
    cohort: tuple[SupervisedEvaluator, Cohort], tmp_path: Path
) -> None:
    engine, written = cohort
    shutil.copytree(written.folder / "images", tmp_path / "back")
    lost, cut, _ = sorted((tmp_path / "back").iterdir())
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:50])
    found = check(engine, written, files=tmp_path / "back")
    assert [Path(failure.case).name for failure in found.failures] == [lost.name, cut.name]
    assert found.changed == (lost, cut)
    assert [row.metric for row in found.survival] == ["loss"]  # the metrics of the report are those of all cases
    assert found.survival[0].rate == pytest.approx(1)


def test_what_is_no_cohort_is_refused(cohort: tuple[SupervisedEvaluator, Cohort], tmp_path: Path) -> None:
    engine, _ = cohort
    with pytest.raises(FileNotFoundError, match="manifest: no file"):
        verify_on_disk(engine, tmp_path / "nothing", Voxels())
    for text, message in (
        ('{"adversarial": []}', "with cases"),
        ('{"adversarial": [{"image": "a"}]}', "adversarial.0.made: expected it to be there"),
        ('{"adversarial": [{"image": "a", "made": {"source": "b"}}]}', "the losses"),
    ):
        (tmp_path / "list.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            verify_on_disk(engine, tmp_path / "list.json", Voxels())


def test_the_command_verifies_a_cohort_of_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = bundle_layouts.standard(tmp_path / "bundle")
    bundle_layouts.save_data(tmp_path / "data")
    bundle_layouts.save_weights(root)
    monkeypatch.chdir(tmp_path)
    shared = ["--dataset_dir", "data"]
    assert main(["export", "bundle", "--attack", "BIM", "--eps", "20intensity", "--out", "out", *shared]) == 0
    (tmp_path / "back").mkdir()
    for path in (tmp_path / "out" / "images").iterdir():
        shutil.copy(path, tmp_path / "back")
    capsys.readouterr()
    assert main(["verify", "bundle", "out", "--files", "back", *shared]) == 0
    loss = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| loss"))
    assert loss.endswith("| 1.000 |")
    first = sorted((tmp_path / "back").iterdir())[0]
    first.unlink()
    assert main(["verify", "bundle", "out", "--files", "back", *shared]) == 1
    shown = capsys.readouterr()
    assert f"changed: {first}" in shown.out
    assert f"failed: {first}" in shown.err
