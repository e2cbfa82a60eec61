# SPDX-License-Identifier: Apache-2.0
"""`NiftiImage` against nibabel and MONAI's `LoadImage`, and `appearing` when things go wrong."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImage

from monai_smia.export import NiftiImage
from monai_smia.export.stored import appearing

AFFINE = np.array([[-0.7, 0.1, 0, 12], [0, 0.8, 0.05, -7], [0, 0, 2.5, 3], [0, 0, 0, 1]])
ROWS: list[tuple[str, tuple[int, ...], float, float, str]] = [
    ("<i2", (5, 4, 3), 1.0, -1024.0, ".nii.gz"),
    ("<i2", (5, 4, 3), -0.5, 7.0, ".nii"),
    (">i2", (5, 4, 3), 2.0, 0.0, ".nii"),
    ("<u2", (5, 4, 3, 2), 0.25, 1.0, ".nii.gz"),
    ("<u1", (5, 4), 1.0, 0.0, ".nii"),
    ("<i4", (5, 4, 3), 1.0, 0.0, ".nii.gz"),
    ("<f4", (5, 4, 3), 1.0, 0.0, ".nii"),
    (">f8", (5, 4, 3), 3.0, -2.0, ".nii.gz"),
]


def write_nifti(
    path: Path, kind: str, shape: tuple[int, ...], slope: float = 1.0, intercept: float = 0.0
) -> np.ndarray:
    """A file with the levels that come back; an extension, a description and bytes after the voxels."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(kind)
    if dtype.kind == "f":
        levels = rng.normal(0, 300, shape).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        levels = rng.integers(limits.min // 2, limits.max // 2, shape, dtype=np.int64).astype(dtype)
    header = nib.Nifti1Header(endianness=kind[0])
    header.set_data_dtype(dtype)
    image = nib.Nifti1Image(levels, AFFINE, header)
    image.header["descrip"] = b"made up"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"an extension"))
    image.header.set_slope_inter(1.0, 0.0)
    content = bytearray(image.to_bytes()) + b"tail"
    order = kind[0]
    content[112:116] = np.array(slope, f"{order}f4").tobytes()  # scl_slope
    content[116:120] = np.array(intercept, f"{order}f4").tobytes()  # scl_inter
    path.write_bytes(gzip.compress(bytes(content)) if path.suffix == ".gz" else bytes(content))
    return levels


def raw(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


@pytest.mark.parametrize(("kind", "shape", "slope", "intercept", "suffix"), ROWS)
def test_a_copy_without_a_change_is_the_same_bytes(
    tmp_path: Path, kind: str, shape: tuple[int, ...], slope: float, intercept: float, suffix: str
) -> None:
    path, copy = tmp_path / f"a{suffix}", tmp_path / "new" / f"b{suffix}"
    levels = write_nifti(path, kind, shape, slope, intercept)
    image = NiftiImage(path)
    expected = LoadImage(ensure_channel_first=True)(path)
    assert torch.equal(image.values(), expected.as_tensor())
    reference = levels.astype(np.float64) * slope + intercept
    channels = reference if len(shape) < 4 else np.moveaxis(reference, -1, 0)
    np.testing.assert_allclose(image.values().numpy().reshape(channels.shape), channels, rtol=1e-6, atol=1e-4)
    image.write(image.values(), copy)
    assert raw(copy) == raw(path)
    assert image.suffix == suffix


@pytest.mark.parametrize(("kind", "shape", "slope", "intercept", "suffix"), ROWS)
def test_a_copy_holds_the_nearest_values_and_keeps_the_rest(
    tmp_path: Path, kind: str, shape: tuple[int, ...], slope: float, intercept: float, suffix: str
) -> None:
    path, copy = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_nifti(path, kind, shape, slope, intercept)
    image = NiftiImage(path)
    changed = image.values() + 3.3 * torch.randn(image.values().shape, generator=torch.Generator().manual_seed(0))
    image.write(changed, copy)
    read = LoadImage(ensure_channel_first=True)(copy)
    tolerance = 1e-4 if np.dtype(kind).kind == "f" else 0.5 * abs(slope) * (1 + 1e-4) + 1e-4
    if kind == "<i4":
        tolerance = 128.0  # float32 holds 24 bits
    assert float((read.as_tensor() - changed).abs().max()) <= tolerance
    assert torch.allclose(read.as_tensor(), image.held(changed), rtol=1e-6)
    assert torch.equal(NiftiImage(copy).values(), read.as_tensor())
    one, other = nib.load(path), nib.load(copy)
    begin = int(one.dataobj.offset)
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    assert raw(copy)[:begin] == raw(path)[:begin]
    assert raw(copy)[begin + size :] == raw(path)[begin + size :] == b"tail"
    assert other.header.extensions[0].get_content() == one.header.extensions[0].get_content()
    assert other.get_data_dtype() == np.dtype(kind)


def test_the_lattice_of_a_negative_slope_is_that_of_the_file(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", "<i2", (3, 3, 3), -0.5, 7.0)
    lattice = NiftiImage(tmp_path / "a.nii").lattice
    assert lattice.bounds == (32767 * -0.5 + 7.0, 32768 * 0.5 + 7.0)
    assert float(lattice.nearest(torch.tensor(6.6))) == 6.5


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_nifti(path, "<i2", (16, 16, 16))
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cannot be read"):
            NiftiImage(path)


def test_a_damaged_stream_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, "<i2", (16, 16, 16))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 40] = b"\xff" * 40
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"cannot be read to its end"):  # nibabel and MONAI do not look at the checksum
        NiftiImage(path).write(torch.zeros(1, 16, 16, 16), tmp_path / "b.nii.gz")
    assert [one.name for one in tmp_path.iterdir()] == ["a.nii.gz"]


def test_a_pair_of_files_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(np.zeros((3, 3, 3), np.int16), np.eye(4)), tmp_path / "a.img")
    for name in ("a.img", "a.hdr"):
        with pytest.raises(ValueError, match="in one piece"):
            NiftiImage(tmp_path / name)


def test_kinds_that_no_network_takes_are_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.complex64), np.eye(4)), tmp_path / "complex.nii")
    colours = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), tmp_path / "rgb.nii")
    for name in ("complex.nii", "rgb.nii"):
        with pytest.raises(ValueError, match="expected integers or floating-point numbers"):
            NiftiImage(tmp_path / name)
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3, 1, 2), np.int16), np.eye(4)), tmp_path / "five.nii")
    with pytest.raises(ValueError, match="two to four axes"):
        NiftiImage(tmp_path / "five.nii")


def test_wrong_values_and_names_are_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", "<f4", (3, 3, 3))
    image = NiftiImage(tmp_path / "a.nii")
    values = image.values()
    for bad, message in ((values[..., :2], "expected \\(1, 3, 3, 3\\)"), (values / 0.0, "NaN or infinity")):
        with pytest.raises(ValueError, match=message):
            image.write(bad, tmp_path / "b.nii")
    with pytest.raises(ValueError, match="ends with .nii"):
        image.write(values, tmp_path / "b.hdr")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", "<i2", (3, 3, 3))
    image = NiftiImage(tmp_path / "a.nii")
    before = (tmp_path / "a.nii").read_bytes()
    with pytest.raises(FileExistsError, match="expected a new one"):
        image.write(image.values() + 1, tmp_path / "a.nii")
    (tmp_path / "link.nii").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="expected a new one"):
        image.write(image.values() + 1, tmp_path / "link.nii")
    assert (tmp_path / "a.nii").read_bytes() == before


def test_an_error_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    resource: Any = pytest.importorskip("resource")
    write_nifti(tmp_path / "a.nii", "<i2", (32, 32, 32))
    image = NiftiImage(tmp_path / "a.nii")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # stands for a disk with 4096 bytes left
    try:
        with pytest.raises(OSError, match="File too large"):
            image.write(image.values() + 1, tmp_path / "deep" / "er" / "b.nii")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]


def test_what_appears_beside_is_moved_with_it_or_not_at_all(tmp_path: Path) -> None:
    def work(name: str) -> None:
        with appearing(tmp_path / name) as place:
            place.write_text("header")
            place.with_suffix(".raw").write_text("voxels")

    work("a.mhd")
    (tmp_path / "b.raw").write_text("mine")
    with pytest.raises(FileExistsError, match=r"b\.raw"):
        work("b.mhd")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mhd", "a.raw", "b.raw"]
    assert (tmp_path / "b.raw").read_text() == "mine"


def test_a_place_taken_meanwhile_is_left_alone(tmp_path: Path) -> None:
    def work() -> None:
        with appearing(tmp_path / "a") as place:
            place.mkdir()
            (tmp_path / "a").write_text("mine")

    with pytest.raises(FileExistsError, match="expected a new one"):
        work()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "mine")]
