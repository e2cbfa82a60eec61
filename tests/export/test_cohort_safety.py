# SPDX-License-Identifier: Apache-2.0
"""An export removes, replaces and mixes nothing that it did not write itself."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

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
from monai_smia.bundle import export_cohort
from monai_smia.engines.faults import MachineFault
from monai_smia.engines.folder_lock import FolderInUse, FolderLock
from monai_smia.export import NiftiImage, write_cohort

KEYS = ["image", "label"]
CASES = 3


def evaluator(items: list[dict[str, str]], limit: int = 1000) -> SupervisedEvaluator:
    transforms = [
        LoadImaged(KEYS),
        EnsureChannelFirstd(KEYS),
        ScaleIntensityRanged("image", 0, limit, 0.0, 1.0, clip=True),
    ]
    return SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(items, Compose(transforms)), batch_size=2),
        network=Threshold(),
        postprocessing=AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=2),
        key_val_metric={"dice": MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))},
    )


def attack() -> BIM:
    return BIM(Voxels(), eps=60.0, steps=2)


def files(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in everything(folder).items() if not name.startswith("progress")}


@pytest.fixture
def items(tmp_path: Path) -> list[dict[str, str]]:
    rng = np.random.default_rng(1)
    rows = []
    for i in range(CASES):
        levels = rng.integers(0, 1000, (5, 4, 3)).astype(np.int16)
        for name, array in (("image", levels), ("label", (levels > 500).astype(np.uint8))):
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / f"{name}{i}.nii")
        rows.append({name: str(tmp_path / f"{name}{i}.nii") for name in KEYS})
    return rows


@pytest.fixture
def out(items: list[dict[str, str]], tmp_path: Path) -> Path:
    """A finished cohort."""
    return write(items, tmp_path / "out").folder


def write(items: list[dict[str, str]], folder: Path, **arguments: Any) -> Any:
    return write_cohort(evaluator(items), attack(), folder, progress=False, **arguments)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("where", ["../precious", "{tmp}/precious", "images/../../precious", "images/..", "images", ""])
def test_a_manifest_that_leads_elsewhere_is_refused_before_anything_is_touched(
    items: list[dict[str, str]], out: Path, tmp_path: Path, where: str
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("data")
    content = json.loads((out / "manifest.json").read_text())
    content["adversarial"].append({"image": where.format(tmp=tmp_path), "made": {"source": "/a", "sha256": "0"}})
    (out / "manifest.json").write_text(json.dumps(content))
    (out / "images" / ".git").mkdir()
    (out / "images" / ".git" / "HEAD").write_text("ref")
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=r"folder: .*manifest.json has an entry .*; nothing was touched") as refused:
        write(items, out, resume=True)
    assert "\n" not in str(refused.value)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("text", ['{"some": "other"}', '{"adversarial": []}', "[]", "not json", ""])
def test_a_foreign_manifest_is_refused_before_anything_is_touched(
    items: list[dict[str, str]], tmp_path: Path, text: str
) -> None:
    folder = tmp_path / "other"
    (folder / "images" / ".git").mkdir(parents=True)
    (folder / "images" / ".git" / "HEAD").write_text("ref")
    (folder / "images" / ".cache").write_text("mine")
    (folder / "manifest.json").write_text(text)
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=r"manifest.json is .*; nothing was touched"):
        write(items, folder, resume=True)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["images", "report", "progress"])
def test_a_link_in_place_of_a_folder_is_refused(
    items: list[dict[str, str]], out: Path, tmp_path: Path, name: str
) -> None:
    (out / name).rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / ".monai-smia-x.tmp").write_text("of another run there")
    (out / name).symlink_to(tmp_path / "elsewhere")
    before = everything(tmp_path)
    with pytest.raises(FileExistsError, match=rf"out: {out / name} is a link; expected a folder"):
        write(items, out, resume=True)
    assert everything(tmp_path) == before


def test_what_is_temporary_and_ours_goes_and_other_hidden_files_stay(items: list[dict[str, str]], out: Path) -> None:
    (out / "images" / ".monai-smia-a.tmp").mkdir()
    (out / "images" / ".monai-smia-a.tmp" / "half").write_text("x")
    (out / "images" / ".cache").write_text("mine")
    write(items, out, resume=True)
    assert sorted(path.name for path in (out / "images").iterdir() if path.name.startswith(".")) == [".cache"]


def test_a_copy_that_is_gone_is_made_again_and_a_changed_one_is_refused(
    items: list[dict[str, str]], out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = files(out)
    copy = next(iter(sorted((out / "images").iterdir())))
    copy.unlink()
    write(items, out, resume=True)
    assert "image0.nii is gone; it is made again" in caplog.text
    assert files(out) == before
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(FileExistsError, match=rf"resume: {copy} is not what was written; .*; nothing was touched"):
        write(items, out, resume=True)
    assert copy.read_bytes() == content
    copy.unlink()
    copy.symlink_to(items[0]["image"])
    with pytest.raises(FileExistsError, match=rf"resume: {copy} is not what was written"):
        write(items, out, resume=True)
    assert copy.is_symlink()


def test_something_where_a_copy_goes_is_not_replaced(
    items: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "out" / "images" / "0001_image1.nii"
    true = NiftiImage.write

    def write_beside(self: NiftiImage, values: torch.Tensor, path: Path) -> None:
        mine.write_text("mine")
        true(self, values, path)

    monkeypatch.setattr(NiftiImage, "write", write_beside)
    cohort = write(items, tmp_path / "out")
    assert [failure.error.split(":")[0] for failure in cohort.failures] == ["FileExistsError"]
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["report/robustness.json", "report/survival.md"])
def test_a_report_that_somebody_else_wrote_is_not_replaced(items: list[dict[str, str]], out: Path, name: str) -> None:
    if not (out / name).exists():
        name = sorted(path.relative_to(out).as_posix() for path in (out / "report").iterdir())[0]
    (out / name).write_text("mine")
    before = everything(out)
    with pytest.raises(FileExistsError, match=rf"out: {out / name} is not what this program wrote there"):
        write(items, out, resume=True)
    assert everything(out) == before


def change_label(items: list[dict[str, str]], engine: Any) -> None:
    flip(items[0]["label"])


def change_image(items: list[dict[str, str]], engine: Any) -> None:
    flip(items[0]["image"])


def flip(file: str) -> None:
    """One byte, equal size, the old time."""
    status, content = os.stat(file), bytearray(Path(file).read_bytes())
    content[-2] ^= 1
    Path(file).write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


class Other(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.4 - x, x - 0.4], 1)


CHANGES: dict[str, Any] = {
    "network": lambda items, engine: setattr(engine, "network", Other()),
    "preprocessing": lambda items, engine: setattr(engine, "data_loader", evaluator(items, 900).data_loader),
    ".*image0.nii with content": change_label,
    ".*image0.nii with content ": change_image,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_cohort_is_gone_on_with_by_its_like_alone(items: list[dict[str, str]], out: Path, name: str) -> None:
    before = everything(out)
    engine = evaluator(items)
    CHANGES[name](items, engine)
    with pytest.raises(ValueError, match=f"resume: the earlier run had {name.strip()} .*; expected "):
        write_cohort(engine, attack(), out, resume=True, progress=False)
    assert everything(out) == before


def test_a_budget_in_another_unit_is_another_cohort(items: list[dict[str, str]], tmp_path: Path) -> None:
    common: dict[str, Any] = {"loss_function": Voxels(), "out": tmp_path / "out", "progress": False}
    export_cohort(evaluator(items), "BIM", "5intensity", **common)
    with pytest.raises(ValueError, match="resume: the earlier run had unit = intensity; expected the same, got HU"):
        export_cohort(evaluator(items), "BIM", "5HU", resume=True, **common)


def test_a_second_export_into_the_folder_is_refused(items: list[dict[str, str]], tmp_path: Path) -> None:
    with FolderLock(tmp_path / "out"), pytest.raises(FolderInUse, match="is in use by process"):
        write(items, tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full_stops_the_export_and_with_space_it_is_whole(
    items: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write(items, tmp_path / "whole")
    true = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if self.name == "0001_image1.nii":
            true(self, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return true(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(MachineFault, match="No space left on device"):
        write(items, tmp_path / "out")
    monkeypatch.setattr(Path, "write_bytes", true)
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["0000_image0.nii"]
    again = write(items, tmp_path / "out", resume=True)
    assert again.failures == ()
    assert again.report == whole.report
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_case_that_failed_is_tried_again_when_asked(items: list[dict[str, str]], tmp_path: Path) -> None:
    whole = write(items, tmp_path / "whole")
    file = Path(items[1]["image"])
    content = file.read_bytes()
    file.write_bytes(content[:40])
    assert len(write(items, tmp_path / "out").failures) == 1
    file.write_bytes(content)
    assert len(write(items, tmp_path / "out", resume=True).failures) == 1
    again = write(items, tmp_path / "out", retry_failed=True)
    assert again.failures == ()
    assert again.report == whole.report


def test_the_whole_folder_may_be_a_link_and_may_move(items: list[dict[str, str]], out: Path, tmp_path: Path) -> None:
    shutil.move(out, tmp_path / "moved")
    out.symlink_to(tmp_path / "moved")
    assert write(items, out, resume=True).failures == ()


def test_an_attack_with_another_loss_is_another_cohort(items: list[dict[str, str]], out: Path) -> None:
    other = BIM(torch.nn.BCEWithLogitsLoss(), eps=60.0, steps=3)
    with pytest.raises(ValueError, match="resume: the earlier run had attack"):
        write_cohort(evaluator(items), other, out, resume=True, progress=False)
