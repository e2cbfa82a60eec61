# SPDX-License-Identifier: Apache-2.0
"""`DicomSeries` against pydicom, itk and MONAI's `LoadImage`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import LoadImage

pydicom = pytest.importorskip("pydicom")
itk = pytest.importorskip("itk")

from dicom_files import instance, levels_of, save_enhanced, save_series, untouched  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from monai_smia.export import DicomSeries  # noqa: E402

CHANGED = (
    "SOPInstanceUID",
    "MediaStorageSOPInstanceUID",
    "FileMetaInformationGroupLength",
    "SeriesInstanceUID",
    "ImageType",
    "DerivationDescription",
    "SeriesDescription",
    "PixelData",
)
READERS = ["ITKReader", "PydicomReader"]


def load(path: Path, reader: str | None = None) -> torch.Tensor:
    return LoadImage(reader=reader, ensure_channel_first=True)(path).as_tensor()


def noise(values: torch.Tensor, size: float) -> torch.Tensor:
    return size * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))


def test_a_series_is_read_as_monai_reads_it(tmp_path: Path) -> None:
    levels = levels_of(3)
    save_series(tmp_path / "ct", levels)
    expected = torch.from_numpy(levels.transpose(2, 1, 0)[np.newaxis] - 1024.0).float()
    by_itk, by_pydicom = (DicomSeries(tmp_path / "ct", reader=reader).values() for reader in READERS)
    assert torch.equal(by_itk, expected)
    assert torch.equal(by_pydicom, expected.flip(-1))  # by InstanceNumber, which falls with the position
    assert torch.equal(by_itk, load(tmp_path / "ct", "ITKReader"))
    assert torch.equal(by_pydicom, load(tmp_path / "ct", "PydicomReader"))
    assert torch.equal(DicomSeries(tmp_path / "ct").values(), load(tmp_path / "ct"))


@pytest.mark.parametrize("preferred", ["itk", "pydicom"])
def test_the_reader_is_that_of_load_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preferred: str) -> None:
    monkeypatch.setenv("MONAI_DICOM_READER", preferred)
    save_series(tmp_path / "ct", levels_of(2))
    assert torch.equal(DicomSeries(tmp_path / "ct").values(), load(tmp_path / "ct"))


@pytest.mark.parametrize("reader", READERS)
def test_a_copy_without_a_change_has_the_same_pixels_and_says_what_it_is(tmp_path: Path, reader: str) -> None:
    paths = save_series(tmp_path / "ct", levels_of(3))
    (tmp_path / "ct" / "readme.txt").write_text("no image")
    series = DicomSeries(tmp_path / "ct", reader=reader)
    series.write(series.values(), tmp_path / "new" / "copy")
    copies = [tmp_path / "new" / "copy" / path.name for path in paths]
    assert sorted(copies) == sorted((tmp_path / "new" / "copy").iterdir())
    uids = set()
    for path, copy in zip(paths, copies, strict=True):
        one, other = pydicom.dcmread(path), pydicom.dcmread(copy)
        assert one.PixelData == other.PixelData
        assert untouched(path, *CHANGED) == untouched(copy, *CHANGED)
        assert list(other.ImageType) == ["DERIVED", "PRIMARY", "AXIAL"]
        assert "monai_smia" in other.DerivationDescription
        assert "adversarial attack" in other.DerivationDescription
        assert other.SeriesDescription == "adversarial Thorax 5.0"
        assert other.SOPInstanceUID == other.file_meta.MediaStorageSOPInstanceUID != one.SOPInstanceUID
        uids.add((other.SeriesInstanceUID, other.SOPInstanceUID))
    assert len({uid for uid, _ in uids}) == 1
    assert len(uids) == 3
    assert "1.2.3.4" not in {uid for uid, _ in uids}
    assert torch.equal(load(tmp_path / "new" / "copy", reader), series.values())
    assert series.suffix == ""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15},
        {"PixelRepresentation": 1},
        {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "Modality": "MR", "RescaleSlope": None},
        {"RescaleSlope": -2, "RescaleIntercept": 10},
        {"PhotometricInterpretation": "MONOCHROME1", "Modality": "CR", "RescaleSlope": 0.5},
        {"PhotometricInterpretation": "MONOCHROME1", "Modality": "CR", "RescaleSlope": -3},
        {"Modality": "MR", "RescaleSlope": None, "RescaleIntercept": None},
    ],
)
def test_a_copy_holds_the_nearest_values(tmp_path: Path, elements: dict[str, Any], reader: str) -> None:
    bits, signed = elements.get("BitsStored", 12), bool(elements.get("PixelRepresentation"))
    paths = save_series(tmp_path / "ct", levels_of(2, bits=bits, signed=signed), **elements)
    series = DicomSeries(tmp_path / "ct", reader=reader)
    assert torch.allclose(series.values(), load(tmp_path / "ct", reader), rtol=0, atol=1e-3)
    series.write(series.values(), tmp_path / "same")
    for path in paths:
        assert pydicom.dcmread(path).PixelData == pydicom.dcmread(tmp_path / "same" / path.name).PixelData
    changed = series.values() + noise(series.values(), 7.3)
    series.write(changed, tmp_path / "other")
    again = load(tmp_path / "other", reader)
    assert torch.allclose(again, series.held(changed), rtol=0, atol=1e-3)
    low, high = series.lattice.bounds or (0, 0)
    slope = abs(elements.get("RescaleSlope") or 1)
    assert float((again - changed.clamp(low, high)).abs().max()) <= slope / 2 + 1e-3
    words = np.concatenate([pydicom.dcmread(path).pixel_array for path in (tmp_path / "other").iterdir()])
    assert words.max() < 1 << bits - signed


def test_slopes_of_each_slice_are_respected(tmp_path: Path) -> None:
    slopes = [0.5, 1.25, 2.0]
    rescale = [{"RescaleSlope": slope, "RescaleIntercept": -10.0 * slope} for slope in slopes]
    levels = levels_of(3)
    save_series(tmp_path / "pet", levels, Modality="PT", per_slice=rescale)
    series = DicomSeries(tmp_path / "pet")
    expected = (levels - 10) * np.array(slopes)[:, None, None]
    assert np.array_equal(series.values().numpy()[0], expected.transpose(2, 1, 0).astype(np.float32))
    assert torch.equal(series.values(), load(tmp_path / "pet"))
    assert tuple(torch.as_tensor(series.lattice.slope).shape) == (3,)
    changed = series.values() + noise(series.values(), 20.0)
    series.write(changed, tmp_path / "copy")
    assert torch.equal(load(tmp_path / "copy"), series.held(changed))
    series.write(series.values(), tmp_path / "same")
    assert torch.equal(load(tmp_path / "same"), series.values())


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("bits", [8, 16])
def test_a_transfer_syntax_without_compression_is_kept(tmp_path: Path, syntax: Any, bits: int) -> None:
    stored = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
    (path,) = save_series(tmp_path, levels_of(1, bits=bits), names=["a.dcm"], syntax=syntax, **stored)
    series = DicomSeries(path)
    assert torch.equal(series.values(), load(path))
    assert series.values().shape == (1, 5, 4, 1)
    series.write(series.values(), tmp_path / "same.dcm")
    assert untouched(path, *CHANGED) == untouched(tmp_path / "same.dcm", *CHANGED)
    assert pydicom.dcmread(path).PixelData == pydicom.dcmread(tmp_path / "same.dcm").PixelData
    changed = series.values() + noise(series.values(), 9.0)
    series.write(changed, tmp_path / "copy.dcm")
    assert torch.equal(load(tmp_path / "copy.dcm"), series.held(changed))
    assert pydicom.dcmread(tmp_path / "copy.dcm").file_meta.TransferSyntaxUID == syntax


@pytest.mark.parametrize("shared", [True, False])
def test_an_enhanced_file_has_its_rescaling_in_functional_groups(tmp_path: Path, shared: bool) -> None:
    levels = levels_of(3)
    save_enhanced(tmp_path / "a.dcm", levels, shared=shared)
    series = DicomSeries(tmp_path / "a.dcm", reader="ITKReader")
    expected = torch.from_numpy(levels.transpose(2, 1, 0)[np.newaxis] * 2.0 - 1000).float()
    assert torch.equal(series.values(), expected)
    assert torch.equal(series.values(), load(tmp_path / "a.dcm", "ITKReader"))
    changed = expected + noise(expected, 9.0)
    series.write(changed, tmp_path / "b.dcm")
    assert torch.equal(load(tmp_path / "b.dcm", "ITKReader"), series.held(changed))
    assert untouched(tmp_path / "a.dcm", *CHANGED) == untouched(tmp_path / "b.dcm", *CHANGED)
    with pytest.raises(ValueError, match="PydicomReader mixes the axes of frames"):
        DicomSeries(tmp_path / "a.dcm", reader="PydicomReader")


def test_an_enhanced_file_whose_frames_differ_is_refused(tmp_path: Path) -> None:
    save_enhanced(tmp_path / "a.dcm", levels_of(2), shared=False, rescale=[(1, 0), (2, 0)])
    with pytest.raises(ValueError, match="frames of one RescaleSlope"):
        DicomSeries(tmp_path / "a.dcm", reader="ITKReader")


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "MR_small_implicit.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_padded.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "693_J2KI.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "image_dfl.dcm",
        "examples_overlay.dcm",
        "dicomdirtests/77654033/CR1/6154",
    ],
)
def test_the_files_of_pydicom(tmp_path: Path, name: str) -> None:
    path = Path(str(get_testdata_file(name)))
    series = DicomSeries(path, reader="ITKReader")
    stored = pydicom.dcmread(path)
    assert torch.allclose(series.values(), load(path, "ITKReader"), rtol=0, atol=1e-3)
    series.write(series.values(), tmp_path / "same.dcm")
    same = pydicom.dcmread(tmp_path / "same.dcm")
    assert np.array_equal(same.pixel_array, stored.pixel_array)
    compressed = stored.file_meta.TransferSyntaxUID.is_encapsulated
    syntax = ExplicitVRLittleEndian if compressed else stored.file_meta.TransferSyntaxUID
    assert same.file_meta.TransferSyntaxUID == syntax
    assert compressed or same.PixelData == stored.PixelData
    skipped = (*CHANGED, "TransferSyntaxUID")
    assert untouched(path, *skipped) == untouched(tmp_path / "same.dcm", *skipped)
    assert torch.equal(load(tmp_path / "same.dcm", "ITKReader"), load(path, "ITKReader"))


def test_bits_beyond_those_stored_are_kept_as_they_are_or_refused(tmp_path: Path) -> None:
    levels = levels_of(1, signed=True)
    dataset = instance(levels[0], PixelRepresentation=1)
    dataset.PixelData = (levels & 0xFFF).astype("<u2").tobytes()  # without the sign
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    series = DicomSeries(tmp_path / "a.dcm")
    assert torch.equal(series.values(), load(tmp_path / "a.dcm"))
    assert float(series.values().min()) < -1024
    series.write(series.values() - 1, tmp_path / "b.dcm")
    words = np.frombuffer(pydicom.dcmread(tmp_path / "b.dcm").PixelData, "<u2")
    assert words.max() < 4096
    assert torch.equal(load(tmp_path / "b.dcm"), (series.values() - 1).clamp(-2048 - 1024))
    dataset.PixelData = (levels & 0xFFF | 0x4000).astype("<u2").tobytes()  # an overlay in bit 14
    dataset.save_as(tmp_path / "c.dcm", enforce_file_format=True)
    with pytest.raises(ValueError, match="beyond BitsStored 12"):
        DicomSeries(tmp_path / "c.dcm")


def test_texts_keep_to_the_lengths_of_the_standard(tmp_path: Path) -> None:
    elements = {"SeriesDescription": "s" * 64, "DerivationDescription": "d" * 1024, "ImageType": None}
    (path,) = save_series(tmp_path, levels_of(1), names=["a.dcm"], **elements)
    series = DicomSeries(path)
    series.write(series.values(), tmp_path / "b.dcm")
    copy = pydicom.dcmread(tmp_path / "b.dcm")
    assert (len(copy.SeriesDescription), len(copy.DerivationDescription)) == (64, 1024)
    assert copy.DerivationDescription.startswith("ddd")
    assert copy.DerivationDescription.endswith("changed by an adversarial attack")
    assert list(copy.ImageType) == ["DERIVED", "PRIMARY"]


@pytest.mark.parametrize("reader", READERS)
def test_a_real_series(tmp_path: Path, shared_data: Path, reader: str) -> None:
    folder = shared_data / "abdomen_ct" / "example_ct_dicom"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which is not there")
    series = DicomSeries(folder, reader=reader)
    values = series.values()
    assert torch.equal(values, load(folder, reader))
    changed = values.clone()
    changed[:, 10:40, 10:40] += noise(values[:, 10:40, 10:40], 20.0)
    series.write(changed, tmp_path / "copy")
    assert torch.equal(load(tmp_path / "copy", reader), series.held(changed))
    one = sorted(folder.iterdir())[0]
    skipped = (*CHANGED, "TransferSyntaxUID")  # JPEG 2000 is written uncompressed
    assert untouched(one, *skipped) == untouched(tmp_path / "copy" / one.name, *skipped)
