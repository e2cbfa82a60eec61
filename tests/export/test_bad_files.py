# SPDX-License-Identifier: Apache-2.0
"""Bad files in a cohort: each fails by itself, by name and with a reason, and the others are written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ScaleIntensityRanged

from monai_smia.bundle.command_export import export_from_config
from monai_smia.engines.faults import MachineFault
from monai_smia.export import DicomSeries, NiftiImage

pytest.importorskip("pydicom")
pytest.importorskip("itk")

from dicom_files import levels_of, save_series

SHAPE = (5, 4, 3)


class Pooled(torch.nn.Module):
    """Two classes from one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv3d(1, 2, 1)
        with torch.no_grad():
            self.convolution.weight.copy_(torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1, 1))
            self.convolution.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(x).mean((2, 3, 4))


def evaluator(images: list[Path]) -> SupervisedEvaluator:
    transforms = [LoadImaged("image"), EnsureChannelFirstd("image"), ScaleIntensityRanged("image", -1024, 3000, 0, 1)]
    items = [{"image": str(path), "label": 1} for path in images]
    loader = DataLoader(Dataset(items, Compose(transforms)), batch_size=2)
    return SupervisedEvaluator(torch.device("cpu"), loader, network=Pooled().eval())


def export(images: list[Path], out: Path, resume: bool = False) -> None:
    export_from_config(
        evaluator(images),
        attack="BIM",
        eps="50HU",
        steps=2,
        loss_function=torch.nn.CrossEntropyLoss(),
        out=out,
        resume=resume,
        progress=False,
    )


def failing_export(images: list[Path], out: Path) -> None:
    """Ends with status 1."""
    with pytest.raises(SystemExit, match="^1$"):
        export(images, out)


def good(folder: Path, name: str) -> Path:
    save_series(folder / name, levels_of(3))
    return folder / name


def truncated(folder: Path) -> Path:
    place = good(folder, "truncated")
    one = sorted(place.iterdir())[1]
    one.write_bytes(one.read_bytes()[:-20])
    return place


def mixed(folder: Path) -> Path:
    save_series(folder / "mixed", levels_of(3), per_slice=[{}, {}, {"SeriesInstanceUID": "1.2.3.5"}])
    return folder / "mixed"


def without_rescaling(folder: Path) -> Path:
    save_series(folder / "unscaled", levels_of(3), RescaleSlope=None, RescaleIntercept=None)
    return folder / "unscaled"


def four_axes(folder: Path) -> Path:
    nib.save(nib.Nifti1Image(np.zeros((*SHAPE, 2), np.int16), np.eye(4)), folder / "four.nii.gz")
    return folder / "four.nii.gz"


def not_a_number(folder: Path) -> Path:
    voxels = np.zeros(SHAPE, np.float32)
    voxels[1, 1, 1] = np.nan
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / "nan.nii")
    return folder / "nan.nii"


BAD = {
    truncated: r"truncated.*(cannot be read|truncated|bytes)",
    mixed: r"mixed.*(expected one series|SeriesInstanceUID)",
    without_rescaling: r"unscaled.*expected RescaleSlope and RescaleIntercept in a CT image",
    four_axes: r"four\.nii\.gz.*channels",
    not_a_number: r"nan\.nii.*(NaN|finite)",
}


def test_every_bad_file_fails_alone_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [good(tmp_path, "first")]
    for make in BAD:
        images += [make(tmp_path), good(tmp_path, f"after_{make.__name__}")]
    failing_export(images, tmp_path / "out")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert len(said) == len(BAD)
    for line, (make, message) in zip(said, BAD.items(), strict=True):
        assert re.search(message, line), (make.__name__, line)
    rows = json.loads((tmp_path / "out" / "manifest.json").read_text())["adversarial"]
    sources = {Path(row["made"]["source"]).name for row in rows}
    assert sources == {"first", *(f"after_{make.__name__}" for make in BAD)}
    assert len(list((tmp_path / "out" / "images").iterdir())) == len(rows)
    for row in rows:
        change = DicomSeries(tmp_path / "out" / row["image"]).values() - DicomSeries(row["made"]["source"]).values()
        assert float(change.abs().max()) == row["made"]["largest_change"] == 50
    report = (tmp_path / "out" / "report" / "survival.md").read_text()
    assert report.count("- failed: ") == len(BAD)


@pytest.mark.parametrize("kind", [DicomSeries, NiftiImage])
def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(
    tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind is DicomSeries:
        images = [good(tmp_path, f"ct{i}") for i in range(3)]
    else:
        images = [tmp_path / f"ct{i}.nii.gz" for i in range(3)]
        for path in images:
            nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), np.eye(4)), path)
    target = "pydicom.dataset.Dataset.save_as" if kind is DicomSeries else "pathlib.Path.write_bytes"
    module, _, name = target.rpartition(".")
    owner = resolve_name(module)
    real, calls = getattr(owner, name), []

    def full(self: Any, *arguments: Any, **more: Any) -> Any:
        calls.append(self)
        if len(calls) == (5 if kind is DicomSeries else 2):  # in the middle of the second case
            raise OSError(28, "No space left on device")
        return real(self, *arguments, **more)

    def sources() -> list[str]:
        rows = json.loads((tmp_path / "out" / "manifest.json").read_text())["adversarial"]
        assert len(list((tmp_path / "out" / "images").iterdir())) == len(rows)  # nothing half written or temporary
        return [Path(row["made"]["source"]).name for row in rows]

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(MachineFault, match="No space left on device"):
            export(images, tmp_path / "out")
    assert sources() == [images[0].name]
    export(images, tmp_path / "out", resume=True)
    assert sources() == [image.name for image in images]


def test_a_folder_that_cannot_be_written_ends_the_run_before_any_attack(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        export([good(tmp_path, "ct")], tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_folder_ends_the_run_before_any_attack(tmp_path: Path) -> None:
    place = tmp_path / "locked"
    place.mkdir()
    place.chmod(0o500)
    try:
        (place / "probe").touch()
    except OSError:
        with pytest.raises(PermissionError, match="locked"):
            export([good(tmp_path, "ct")], place / "out")
    else:
        pytest.skip("needs a user who is bound by permissions, which an administrator is not")
    finally:
        place.chmod(0o700)
