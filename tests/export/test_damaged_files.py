# SPDX-License-Identifier: Apache-2.0
"""Files that are cut, or some of whose bytes are others: read right, or refused in one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pydicom")
pytest.importorskip("itk")

from dicom_files import levels_of, save_series

from benchmarks import damage
from monai_smia.export import DicomSeries, ItkImage, NiftiImage, open_stored

TRIES = 12
IMAGES = [kind for kind, (_, read) in damage.KINDS.items() if read is damage.read_image]
CHECKED = ("NIfTI, gzip", "NRRD, gzip", "MetaImage, compressed", "PNG")
"""Formats with a checksum: what is read of a damaged file is what was written."""


@pytest.mark.parametrize("kind", damage.KINDS)
def test_a_damaged_input_is_read_or_refused_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    bad = [one for one in damage.campaign(TRIES, tmp_path, [kind]) if not one.good]
    assert not bad, bad
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", damage.KINDS)
def test_what_is_damaged_was_whole_before(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every refusal would be one of the maker's."""
    monkeypatch.setattr(damage, "spoil", lambda content, rng: (content, "nothing"))
    assert damage.try_one(kind, 0, tmp_path).status == damage.READ


@pytest.mark.parametrize("kind", CHECKED)
def test_a_checksum_is_heeded(kind: str, tmp_path: Path) -> None:
    """A bit of the voxels: what is read is what was written, or nothing is."""
    make = damage.KINDS[kind][0]
    path = make(tmp_path)
    whole, wanted = path.read_bytes(), open_stored(path).values()
    refused = 0
    for place in range(len(whole) - 160, len(whole) - 20, 4):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            values = open_stored(path).values()
        except ValueError as error:
            refused += path.name in str(error)
            continue
        assert torch.equal(values, wanted)
    assert refused > 25


def test_the_campaign_is_the_same_every_time(tmp_path: Path) -> None:
    runs = [[(one.kind, one.how, one.status) for one in damage.campaign(14, tmp_path / name)] for name in "ab"]
    assert runs[0] == runs[1]
    assert {kind for kind, *_ in runs[0]} == set(damage.KINDS)


def test_the_table_counts_every_input() -> None:
    found = [damage.Outcome("PNG", 0, "", status) for status in (damage.READ, damage.REFUSED, damage.READ)]
    assert damage.table([*found, damage.Outcome("JPEG", 0, "", damage.TRACEBACK)]).splitlines()[2:] == [
        "| JPEG | 1 | 0 | 0 | 1 | 0 | 0 |",
        "| PNG | 3 | 2 | 1 | 0 | 0 | 0 |",
    ]


def test_a_slice_of_another_size_is_named(tmp_path: Path) -> None:
    save_series(tmp_path / "ct", levels_of(3))
    (path,) = save_series(tmp_path / "other", levels_of(1)[:, :3], names=["small.dcm"])
    path.rename(tmp_path / "ct" / "small.dcm")
    with pytest.raises(ValueError, match=r"expected slices of one shape.*small\.dcm has \(3, 5\).*\(4, 5\)"):
        DicomSeries(tmp_path / "ct")


@pytest.mark.parametrize(
    ("signed", "value", "good"),
    [(False, 4095, True), (False, 4096, False), (True, -2048, True), (True, 2047, True), (True, -2049, False)],
)
def test_the_pixels_are_inside_bits_stored(tmp_path: Path, signed: bool, value: int, good: bool) -> None:
    """12 bits of 16: the ends are held, one beyond either end is none of the file's."""
    levels = np.zeros((1, 4, 5), np.int64)
    levels[0, 1, 2] = value
    (path,) = save_series(tmp_path, levels, PixelRepresentation=int(signed))
    if good:
        series = DicomSeries(path)
        assert value - 1024 in series.values()
        assert series.lattice.bounds == ((-3072.0, 1023.0) if signed else (-1024.0, 3071.0))
    else:
        with pytest.raises(ValueError, match=r"beyond BitsStored 12.*slice0\.dcm"):
            DicomSeries(path)


@pytest.mark.parametrize(
    ("signed", "levels", "good"),
    [
        (False, (0, 4095), True),
        (False, (0, 4096), False),
        (True, (-2048, 2047), True),
        (True, (-2049, 2047), False),
        (True, (-2048, 2048), False),
    ],
)
def test_a_decoder_that_gives_more_bits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signed: bool, levels: tuple[int, int], good: bool
) -> None:
    """Either end by itself, as of a plug-in that gives all 16 bits whatever BitsStored says."""
    import pydicom

    (path,) = save_series(tmp_path, np.zeros((1, 4, 5), np.int64), PixelRepresentation=int(signed))
    decoded = np.full((4, 5), levels[0], np.int32)
    decoded[1, 2] = levels[1]
    monkeypatch.setattr(pydicom.Dataset, "pixel_array", property(lambda self: decoded))
    if good:
        assert float(DicomSeries(path).values().max()) == levels[1] - 1024
    else:
        wanted = "-2048 to 2047" if signed else "0 to 4095"
        message = rf"BitsStored 12 of .*slice0\.dcm holds {wanted}; got {levels[0]} to {levels[1]}"
        with pytest.raises(ValueError, match=message):
            DicomSeries(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected a list 'adversarial' of cases"),
        ('{"adversarial": [1]}', "expected a list 'adversarial' of cases"),
        ("{", "is no JSON"),
        (
            json.dumps({"adversarial": [{"image": 3, "made": {"loss": 1, "clean_loss": 0}}]}),
            "expected a file under .* and its sha256",
        ),
        (
            json.dumps({"adversarial": [{"image": "a", "made": {"sha256": "", "loss": "x", "clean_loss": 1}}]}),
            "expected numbers for losses",
        ),
    ],
)
def test_a_manifest_of_something_else_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        damage.read_manifest(tmp_path / "manifest.json", tmp_path)
    assert "manifest.json" in str(raised.value)


def test_a_compressed_file_in_two_parts_is_checked_too(tmp_path: Path) -> None:
    import itk

    image: Any = itk.image_from_array(damage.voxels())
    itk.imwrite(image, str(tmp_path / "a.mhd"), compression=True)
    (voxels,) = [path for path in tmp_path.iterdir() if path.suffix != ".mhd"]
    assert torch.equal(ItkImage(tmp_path / "a.mhd").values(), torch.from_numpy(damage.voxels().T[None].copy()).float())
    content = bytearray(voxels.read_bytes())
    content[-20] ^= 1
    voxels.write_bytes(content)
    with pytest.raises(ValueError, match=voxels.name):
        ItkImage(tmp_path / "a.mhd")


@pytest.mark.parametrize("offset", [0.0, 351.0])
def test_voxels_that_would_lie_over_the_header_are_refused(tmp_path: Path, offset: float) -> None:
    path = damage.as_nifti(".nii")(tmp_path)
    content = bytearray(path.read_bytes())
    content[108:112] = np.float32(offset).tobytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"image\.nii"):
        NiftiImage(path)
