# SPDX-License-Identifier: Apache-2.0
"""`open_stored`, and the errors of a DICOM series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from monai_smia.export import DicomSeries, ItkImage, NiftiImage, PictureImage, StoredImage, open_stored

pydicom = pytest.importorskip("pydicom")
itk = pytest.importorskip("itk")
Image = pytest.importorskip("PIL.Image")

from dicom_files import instance, levels_of, save_series  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.uid import JPEGLSLossless  # noqa: E402


def test_the_format_is_that_of_the_name_or_of_the_content(tmp_path: Path) -> None:
    voxels = np.zeros((3, 4, 5), np.int16)
    for name in ("a.nii", "a.nii.gz"):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / name)
    for name in ("a.nrrd", "a.mha", "a.mhd"):
        itk.imwrite(itk.image_from_array(voxels), str(tmp_path / name))
    for name in ("a.png", "a.jpg", "B.JPEG"):
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / name)
    save_series(tmp_path / "ct", levels_of(2), names=["IM1", "IM2"])
    expected: dict[str, tuple[type[StoredImage], str]] = {
        "a.nii": (NiftiImage, ".nii"),
        "a.nii.gz": (NiftiImage, ".nii.gz"),
        "a.nrrd": (ItkImage, ".nrrd"),
        "a.mha": (ItkImage, ".mha"),
        "a.mhd": (ItkImage, ".mhd"),
        "a.png": (PictureImage, ".png"),
        "a.jpg": (PictureImage, ".jpg"),
        "B.JPEG": (PictureImage, ".jpeg"),
        "ct": (DicomSeries, ""),
        "ct/IM1": (DicomSeries, ".dcm"),
    }
    for name, (kind, suffix) in expected.items():
        stored = open_stored(tmp_path / name)
        assert (type(stored), stored.suffix, stored.path) == (kind, suffix, tmp_path / name)
        copy = tmp_path / f"copy_{kind.__name__}{name.replace('/', '')}{suffix}"
        stored.write(stored.values(), copy)
        assert torch.equal(open_stored(copy).values(), stored.held(stored.values()))


def test_what_is_no_format(tmp_path: Path) -> None:
    for name in ("a.txt", "a.tif", "a.npy", "none"):
        (tmp_path / name).write_bytes(b"something" * 50)
        with pytest.raises(ValueError, match=r"expected \.nii, .*or DICOM; got"):
            open_stored(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nothing at"):
        open_stored(tmp_path / "a.nii")


ONE_ELSEWHERE = [{}, {}, {"SeriesInstanceUID": "1.2.3.5"}]
ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"per_slice": ONE_ELSEWHERE}, "one series in .*SeriesInstanceUID 1.2.3.4, 1.2.3.5"),
    ({"per_slice": [{}, {}, {"SliceThickness": "2.5"}]}, "one series in .*SliceThickness 2.5, 5.0"),
    ({"per_slice": [{}, {}, {"BitsStored": 14, "HighBit": 13}]}, "one series in .*BitsStored"),
    ({"per_slice": [{}, {}, {"ImagePositionPatient": [10, 20, 15]}]}, "a slice is missing: expected 5 mm"),
    ({"per_slice": [{}, {}, {"ImagePositionPatient": [10, 20, 5]}]}, "two images at 5 mm"),
    ({"per_slice": [{}, {}, {"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}]}, "one ImageOrientationPatient"),
    ({"ImagePositionPatient": None, "InstanceNumber": 1}, "an InstanceNumber of its own"),
    ({"ImagePositionPatient": None, "InstanceNumber": None}, "an InstanceNumber of its own"),
    ({"RescaleSlope": None}, "expected RescaleSlope and RescaleIntercept in a CT image"),
    ({"RescaleIntercept": None}, "expected RescaleSlope and RescaleIntercept in a CT image"),
    ({"RescaleSlope": 0}, "a slope other than 0"),
    ({"per_slice": [{}, {}, {"RescaleSlope": -1}]}, "RescaleSlopes of one sign"),
    ({"PhotometricInterpretation": "RGB"}, "expected MONOCHROME1 or MONOCHROME2; got RGB"),
    ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "BitsAllocated 8 or 16"),
    ({"HighBit": 15}, "HighBit BitsStored - 1"),
    ({"Rows": 40}, "the pixels of .* cannot be read"),
]


@pytest.mark.parametrize(("elements", "message"), ERRORS)
def test_a_series_that_is_not_one_volume_is_refused(tmp_path: Path, elements: dict[str, Any], message: str) -> None:
    save_series(tmp_path / "ct", levels_of(3), **elements)
    with pytest.raises(ValueError, match=message):
        open_stored(tmp_path / "ct", reader="ITKReader")


def test_a_gap_among_more_slices_is_named(tmp_path: Path) -> None:
    (tmp_path / "ct").mkdir()
    paths = save_series(tmp_path / "ct", levels_of(6), names=[f"{i}.dcm" for i in range(6)])
    paths[2].unlink()
    with pytest.raises(ValueError, match=r"expected 5 mm .* got 10 mm between 1\.dcm and 3\.dcm"):
        open_stored(tmp_path / "ct")


def test_slices_of_several_shapes_are_refused(tmp_path: Path) -> None:
    save_series(tmp_path / "ct", levels_of(1), names=["a"])
    save_series(tmp_path / "ct", levels_of(1)[:, :3], names=["b"])
    with pytest.raises(ValueError, match=r"slices of one shape in .*; b has \(3, 5\), the others \(4, 5\)"):
        open_stored(tmp_path / "ct")


@pytest.mark.parametrize("name", ["MR_truncated.dcm", "rtplan.dcm", "SC_rgb_small_odd.dcm", "rtdose.dcm"])
def test_files_of_pydicom_that_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="path: "):
        open_stored(str(get_testdata_file(name)))


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    (path,) = save_series(tmp_path / "ct", levels_of(1), names=["a.dcm"])
    whole = path.read_bytes()
    for size in (0, 100, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        for where in (path, tmp_path / "ct"):
            with pytest.raises(ValueError, match="path: "):
                open_stored(where)


def test_a_compression_without_its_plug_in_says_so(tmp_path: Path) -> None:
    decoder = pydicom.pixels.get_decoder(JPEGLSLossless)
    if decoder.is_available:
        pytest.skip("needs an installation without pydicom's plug-ins for JPEG-LS; they are there")
    with pytest.raises(ValueError, match="the pixels of .* cannot be read: Unable to decompress"):
        open_stored(str(get_testdata_file("MR_small_jpeg_ls_lossless.dcm")))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder of DICOM instances; got none"):
        open_stored(tmp_path)
    with pytest.raises(ValueError, match="reader: expected one of ITKReader, PydicomReader; got 'NibabelReader'"):
        DicomSeries(Path(str(get_testdata_file("CT_small.dcm"))), reader="NibabelReader")


def test_several_files_with_frames_are_refused(tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm"):
        instance(levels_of(2), NumberOfFrames=2).save_as(tmp_path / name, enforce_file_format=True)
    with pytest.raises(ValueError, match="single-frame instances, or one multi-frame file"):
        open_stored(tmp_path)


def test_wrong_values_are_refused_and_nothing_is_overwritten(tmp_path: Path) -> None:
    save_series(tmp_path / "ct", levels_of(2))
    series = open_stored(tmp_path / "ct")
    values = series.values()
    for bad, message in (
        (values[None], r"expected \(1, 5, 4, 2\), as ct has; got \(1, 1, 5, 4, 2\)"),
        (values.where(values > values.min(), torch.nan), "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            series.write(bad, tmp_path / "copy")
    with pytest.raises(FileExistsError, match="expected a new one"):
        series.write(values, tmp_path / "ct")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="Not a directory|File exists"):
        series.write(values, tmp_path / "file" / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct", "file"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_series(tmp_path / "ct", levels_of(3))
    series = open_stored(tmp_path / "ct")
    save_as = pydicom.Dataset.save_as
    written: list[Path] = []

    def full(self: Any, path: Path, *arguments: Any, **options: Any) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        save_as(self, path, *arguments, **options)

    monkeypatch.setattr(pydicom.Dataset, "save_as", full)
    with pytest.raises(OSError, match="No space left"):
        series.write(series.values(), tmp_path / "new" / "copy")
    assert len(written) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["ct"]


def test_the_error_of_a_read_only_folder_passes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_series(tmp_path / "ct", levels_of(1))
    series = open_stored(tmp_path / "ct")

    def read_only(**options: Any) -> str:
        raise PermissionError(13, "Permission denied", str(options["dir"]))

    monkeypatch.setattr("tempfile.mkdtemp", read_only)
    with pytest.raises(PermissionError, match="Permission denied"):
        series.write(series.values(), tmp_path / "new" / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["ct"]
