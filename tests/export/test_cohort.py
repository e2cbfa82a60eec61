# SPDX-License-Identifier: Apache-2.0
"""A cohort of adversarial files: complete after two kills, honest about what failed, and a data list by itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, list_data_collate, load_decathlon_datalist
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)
from threshold_network import Threshold, Voxels

from monai_smia.attacks import BIM, PGD
from monai_smia.bundle import export_cohort
from monai_smia.bundle.command_export import export_from_config
from monai_smia.export import NiftiImage, Survival, verify_on_disk, write_cohort

KEYS = ["image", "label"]
CASES = 4


@pytest.fixture
def items(tmp_path: Path) -> list[dict[str, str]]:
    rng = np.random.default_rng(1)
    rows = []
    for i in range(CASES):
        levels = rng.integers(0, 1000, (7, 6, 5)).astype(np.int16)
        for name, array in (("image", levels), ("label", (levels > 500).astype(np.uint8))):
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / f"{name}{i}.nii.gz")
        rows.append({name: str(tmp_path / f"{name}{i}.nii.gz") for name in KEYS})
    return rows


def evaluator(items: list[dict[str, str]]) -> SupervisedEvaluator:
    transforms = [
        LoadImaged(KEYS),
        EnsureChannelFirstd(KEYS),
        Orientationd(KEYS, "LPS", labels=None),
        Spacingd(KEYS, (1.0, 1.0, 2.0), mode=("bilinear", "nearest")),
        ScaleIntensityRanged("image", 0, 1000, 0.0, 1.0, clip=True),
    ]
    return SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(items, Compose(transforms)), batch_size=2),
        network=Threshold(),
        postprocessing=AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=2),
        key_val_metric={"dice": MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))},
    )


def attack(eps: float = 60.0) -> BIM:
    return BIM(Voxels(), eps=eps, steps=3)


def files(folder: Path) -> dict[str, str]:
    """Every file but the progress, by its digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "progress" not in path.parts
    }


def test_every_case_is_written_and_the_damage_is_the_same_on_disk(items: list[dict[str, str]], tmp_path: Path) -> None:
    cohort = write_cohort(evaluator(items), attack(), tmp_path / "out", unit="intensity", progress=False)
    rates = {row.metric: row.rate for row in cohort.survival}
    assert rates == {"loss": pytest.approx(1.0), "dice": pytest.approx(1.0)}
    loss, dice = cohort.survival
    assert loss.memory > loss.clean
    assert dice.clean == 1.0
    assert dice.disk == pytest.approx(np.mean([by_hand(item) for item in items]), abs=1e-6)
    assert dice.disk < 0.95
    assert cohort.failures == ()


def by_hand(item: dict[str, str]) -> float:
    """Dice where every voxel within 60 of the threshold changes sides, as far as it can."""
    values = nib.load(item["image"]).get_fdata()  # type: ignore[attr-defined]
    true = values > 500
    moved = np.clip(np.where(true, values - 60, values + 60), -32768, 32767)
    found = np.clip(moved, 0, 1000) / 1000 > 0.5
    return float(2 * (found & true).sum() / (found.sum() + true.sum()))


def test_the_manifest_is_a_data_list_that_tells_where_everything_came_from(
    items: list[dict[str, str]], tmp_path: Path
) -> None:
    cohort = write_cohort(evaluator(items), attack(), tmp_path / "out", unit="HU", seed=3, progress=False)
    rows = load_decathlon_datalist(str(cohort.manifest), data_list_key="adversarial", base_dir=str(cohort.folder))
    assert [row["label"] for row in rows] == [item["label"] for item in items]
    for row, item in zip(rows, items, strict=True):
        made = row["made"]
        assert made["source"] == item["image"]
        assert made["source_sha256"] == hashlib.sha256(Path(item["image"]).read_bytes()).hexdigest()
        assert made["sha256"] == hashlib.sha256(Path(row["image"]).read_bytes()).hexdigest()
        assert (made["eps"], made["unit"], made["seed"]) == (60.0, "HU", 3)
        assert made["attack"].startswith("BIM(")
        change = NiftiImage(row["image"]).values() - NiftiImage(item["image"]).values()
        assert float(change.abs().max()) == made["largest_change"] == 60.0
    again = evaluator([{key: row[key] for key in KEYS} for row in rows])
    again.run()
    disk = next(row.disk for row in cohort.survival if row.metric == "dice")
    assert again.state.metrics["dice"] == pytest.approx(disk)


def test_a_cohort_killed_twice_is_the_cohort_of_one_go(
    items: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = PGD(Voxels(), eps=60.0, steps=2)
    whole = write_cohort(evaluator(items), random, tmp_path / "whole", progress=False)
    written: list[Path] = []
    write = NiftiImage.write

    def killed(self: NiftiImage, values: torch.Tensor, path: Path) -> None:
        write(self, values, path)
        written.append(path)
        if len(written) in (2, 4):
            raise KeyboardInterrupt("planted")  # after the file is there, and before anything is noted

    monkeypatch.setattr(NiftiImage, "write", killed)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt, match="planted"):
            write_cohort(evaluator(items), random, tmp_path / "cut", resume=resume, progress=False)
    cut = write_cohort(evaluator(items), random, tmp_path / "cut", resume=True, progress=False)
    assert cut.report == whole.report
    assert cut.survival == whole.survival
    here, there = files(tmp_path / "cut"), files(tmp_path / "whole")
    assert here == there
    assert len([name for name in here if name.startswith("images/")]) == CASES
    assert len(written) == CASES + 2  # what was done was not done again


def test_a_bad_file_fails_alone(
    items: list[dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(items[1]["image"])
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(SystemExit, match="^1$") as ended:
        export_from_config(
            evaluator(items),
            attack="BIM",
            eps="60intensity",
            loss_function=Voxels(),
            out=tmp_path / "out",
            progress=False,
        )
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert "failed:" in shown.err
    assert "image1.nii.gz" in shown.err
    rows = json.loads((tmp_path / "out" / "manifest.json").read_text())["adversarial"]
    assert [Path(row["made"]["source"]).name for row in rows] == ["image0.nii.gz", "image2.nii.gz", "image3.nii.gz"]
    assert len(list((tmp_path / "out" / "images").iterdir())) == 3


def test_a_budget_of_each_images_range_is_its_own(items: list[dict[str, str]], tmp_path: Path) -> None:
    cohort = export_cohort(
        evaluator(items), "BIM", "5%", loss_function=Voxels(), steps=2, out=tmp_path / "out", progress=False
    )
    rows = json.loads(cohort.manifest.read_text())["adversarial"]
    for row, item in zip(rows, items, strict=True):
        values = NiftiImage(item["image"]).values()
        assert row["made"]["eps"] == float(int(0.05 * float(values.max() - values.min())))
        assert row["made"]["largest_change"] == row["made"]["eps"]


def test_nothing_is_overwritten(items: list[dict[str, str]], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for resume, message in ((False, "expected a new folder, or resume=True"), (True, "expected one with a cohort")):
        with pytest.raises(FileExistsError, match=rf"folder: .*out holds something; {message}"):
            write_cohort(evaluator(items), attack(), tmp_path / "out", resume=resume, progress=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_case_that_fails_after_it_was_written_leaves_no_file(items: list[dict[str, str]], tmp_path: Path) -> None:
    engine = evaluator(items)

    def unreadable(batch: list[dict[str, Any]]) -> Any:
        if Path(batch[0]["image"].meta["filename_or_obj"]).name.startswith("0002_"):
            raise OSError("a copy that cannot be read")
        return list_data_collate(batch)

    engine.data_loader.collate_fn = unreadable
    cohort = write_cohort(engine, attack(), tmp_path / "out", progress=False)
    assert [failure.stage for failure in cohort.failures] == ["on disk"]
    names = [path.name for path in sorted((tmp_path / "out" / "images").iterdir())]
    assert names == ["0000_image0.nii.gz", "0001_image1.nii.gz", "0003_image3.nii.gz"]
    assert len(json.loads(cohort.manifest.read_text())["adversarial"]) == 3


@pytest.mark.parametrize("eps", ["1HU,2HU", "4/255", "0.1net"])
def test_a_budget_that_no_file_holds_is_refused(items: list[dict[str, str]], tmp_path: Path, eps: str) -> None:
    with pytest.raises(ValueError, match="eps: expected one budget in HU, grey, intensity, %"):
        export_cohort(evaluator(items), "BIM", eps, loss_function=Voxels(), out=tmp_path / "out")


@pytest.mark.parametrize("name", ["Nothing", "WorstOf"])
def test_an_unknown_attack_is_refused(items: list[dict[str, str]], tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="attack: expected the name of an attack; got"):
        export_cohort(evaluator(items), name, "1HU", out=tmp_path / "out")


def test_the_rate_is_the_share_of_the_damage() -> None:
    assert Survival("dice", clean=0.9, memory=0.5, disk=0.6).rate == pytest.approx(0.75)
    assert np.isnan(Survival("dice", clean=0.9, memory=0.9, disk=0.9).rate)


def test_a_cohort_goes_on_with_its_own_images_alone(items: list[dict[str, str]], tmp_path: Path) -> None:
    write_cohort(evaluator(items[:2]), attack(), tmp_path / "out", progress=False)
    before = files(tmp_path / "out")
    with pytest.raises(ValueError, match="resume: the earlier run had images"):
        write_cohort(evaluator(items[2:]), attack(), tmp_path / "out", resume=True, progress=False)
    assert files(tmp_path / "out") == before


def test_what_else_an_item_holds_comes_back_from_the_manifest(
    items: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of any library stay numbers, texts stay texts, and paths become absolute, also in lists."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "left").mkdir()
    others = {
        "grade": np.int64(3),
        "row": np.array([1.5, 2.0]),
        "tensor": torch.tensor([1, 2]),
        "site": "",
        "side": "left",
        "text": "no finding " * 40,
        "parts": ["label0.nii.gz", "label1.nii.gz"],
    }
    cohort = write_cohort(evaluator([{**items[0], **others}]), attack(), tmp_path / "out", progress=False)
    assert cohort.failures == ()
    (row,) = json.loads(cohort.manifest.read_text())["adversarial"]
    kept = {name: row[name] for name in others}
    assert kept == {
        "grade": 3,
        "row": [1.5, 2.0],
        "tensor": [1, 2],
        "site": "",
        "side": "left",
        "text": others["text"],
        "parts": [str(tmp_path / "label0.nii.gz"), str(tmp_path / "label1.nii.gz")],
    }


def test_a_distributed_group_is_refused(
    items: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="write_cohort: expected one process; got a group of 2"):
        write_cohort(evaluator(items), attack(), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_images_without_metadata_are_attacked_too(items: list[dict[str, str]], tmp_path: Path) -> None:
    expected = write_cohort(evaluator(items[:2]), attack(), tmp_path / "with", naive=True, progress=False)
    engine = evaluator(items[:2])
    engine.data_loader.dataset.transform = Compose(
        [*engine.data_loader.dataset.transform.transforms, EnsureTyped(KEYS, track_meta=False)]
    )
    cohort = write_cohort(engine, attack(), tmp_path / "without", naive=True, progress=False)
    assert cohort.failures == ()
    assert cohort.survival == expected.survival
    assert cohort.naive == expected.naive
    digests = [
        [row["made"]["sha256"] for row in json.loads(one.manifest.read_text())["adversarial"]]
        for one in (cohort, expected)
    ]
    assert digests[0] == digests[1]
    assert verify_on_disk(engine, cohort.folder, Voxels(), progress=False).survival == expected.survival


def test_processes_of_torchrun_are_refused(
    items: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RuntimeError, match="export: expected one process, .*; got 2/2 of torchrun"):
        export_cohort(evaluator(items), "BIM", "60intensity", loss_function=Voxels(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
