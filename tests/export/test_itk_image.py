# SPDX-License-Identifier: Apache-2.0
"""`ItkImage` against itk and MONAI's `ITKReader`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import LoadImage

from monai_smia.export import ItkImage
from monai_smia.export.stored import checksum

itk = pytest.importorskip("itk")

DIRECTION = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])


def save_itk(path: Path, array: np.ndarray, *, compression: bool = False, is_vector: bool = False) -> None:
    image = itk.image_from_array(array, is_vector=is_vector)
    axes = int(image.GetImageDimension())
    image.SetSpacing([0.7, 0.8, 2.5, 1.0][:axes])
    image.SetOrigin([3.0, -4.0, 5.0, 0.0][:axes])
    if axes == 3:
        image.SetDirection(itk.matrix_from_array(DIRECTION))
    image["note"] = "made up"
    itk.imwrite(image, str(path), compression=compression)


def header(path: Path) -> list[bytes]:
    """The lines of text at the beginning, without what depends on the voxels or the name."""
    lines = path.read_bytes()[:2000].split(b"\n\n")[0].splitlines()
    lines = lines[: next((i for i, line in enumerate(lines) if line.startswith(b"ElementDataFile")), len(lines))]
    return [line for line in lines if not line.startswith(b"CompressedDataSize")]


def arrays(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 250, shape).astype(kind)


@pytest.mark.parametrize(
    ("suffix", "kind", "compression"),
    [(".nrrd", "i2", True), (".nrrd", "f4", False), (".mha", "u2", True), (".mhd", "i2", False), (".mhd", "u1", True)],
)
def test_a_copy_keeps_voxels_header_and_compression(tmp_path: Path, suffix: str, kind: str, compression: bool) -> None:
    path, copy, other = (tmp_path / f"{name}{suffix}" for name in ("a", "b", "c"))
    array = arrays(kind, (3, 4, 5))
    save_itk(path, array, compression=compression)
    image = ItkImage(path)
    loaded = LoadImage(ensure_channel_first=True)(path).as_tensor()
    assert torch.equal(image.values(), loaded)
    assert np.array_equal(image.values().numpy()[0], array.T)
    image.write(image.values(), copy)
    read, original = itk.imread(str(copy)), itk.imread(str(path))
    assert np.array_equal(itk.array_from_image(read), array)
    assert itk.array_from_image(read).dtype == array.dtype
    for name in ("GetSpacing", "GetOrigin"):
        assert list(getattr(read, name)()) == list(getattr(original, name)())
    assert np.array_equal(itk.array_from_matrix(read.GetDirection()), DIRECTION)
    assert read["note"] == "made up"
    assert header(copy) == header(path)
    changed = image.values() + 3.3 * torch.randn(loaded.shape, generator=torch.Generator().manual_seed(0))
    image.write(changed, other)
    again = LoadImage(ensure_channel_first=True)(other).as_tensor()
    assert torch.equal(again, image.held(changed))
    assert sum(part.name.startswith("c.") for part in tmp_path.iterdir()) == (2 if suffix == ".mhd" else 1)


@pytest.mark.parametrize(
    ("shape", "kind", "is_vector", "expected"),
    [
        ((4, 5), "u1", False, (1, 5, 4)),
        ((2, 3, 4, 5), "i2", False, (2, 5, 4, 3)),
        ((4, 5, 3), "f4", True, (3, 5, 4)),
        ((3, 4, 5, 2), "f4", True, (2, 5, 4, 3)),
    ],
)
def test_channels_and_two_axes_are_those_of_the_reader(
    tmp_path: Path, shape: tuple[int, ...], kind: str, is_vector: bool, expected: tuple[int, ...]
) -> None:
    path, copy = tmp_path / "a.mha", tmp_path / "b.mha"
    array = arrays(kind, shape)
    save_itk(path, array, is_vector=is_vector)
    image = ItkImage(path)
    assert tuple(image.values().shape) == expected
    assert torch.equal(image.values(), LoadImage(ensure_channel_first=True)(path).as_tensor())
    image.write(image.values(), copy)
    assert copy.read_bytes() == path.read_bytes()
    image.write(image.values() + 1, tmp_path / "c.mha")
    assert np.array_equal(itk.array_from_image(itk.imread(str(tmp_path / "c.mha"))), array + 1)


def test_large_integers_that_did_not_change_are_kept(tmp_path: Path) -> None:
    array = np.array([[[2**30 + 1, 7]]], dtype="i4")
    save_itk(tmp_path / "a.mha", array)
    image = ItkImage(tmp_path / "a.mha")
    change = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)
    image.write(image.values() + change, tmp_path / "b.mha")
    assert itk.array_from_image(itk.imread(str(tmp_path / "b.mha"))).ravel().tolist() == [2**30 + 1, 8]


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save_itk(path, arrays("i2", (8, 8, 8)))
    voxels = path.with_suffix(".raw") if suffix == ".mhd" else path
    voxels.write_bytes(voxels.read_bytes()[:-400])
    with pytest.raises(ValueError, match="cannot be read by ITK"):
        ItkImage(path)


def test_what_is_refused(tmp_path: Path) -> None:
    save_itk(tmp_path / "a.mhd", arrays("i2", (3, 4, 5)))
    image = ItkImage(tmp_path / "a.mhd")
    (tmp_path / "b.raw").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"b\.raw"):
        image.write(image.values(), tmp_path / "b.mhd")
    with pytest.raises(ValueError, match=r"ends with \.mhd"):
        image.write(image.values(), tmp_path / "b.mha")
    with pytest.raises(ValueError, match="expected .1, 5, 4, 3."):
        image.write(image.values()[..., :2], tmp_path / "c.mhd")
    with pytest.raises(ValueError, match=r"expected \.nrrd, \.mha, \.mhd"):
        ItkImage(tmp_path / "b.raw")
    with pytest.raises(FileNotFoundError, match=r"path: no file .*none\.nrrd"):
        ItkImage(tmp_path / "none.nrrd")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mhd", "a.raw", "b.raw"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    save_itk(tmp_path / "a.mha", arrays("i2", (32, 32, 32)))
    image = ItkImage(tmp_path / "a.mha")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot be written"):
            image.write(image.values() + 1, tmp_path / "b.mha")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mha"]


def test_a_header_and_its_voxels_are_one_copy(tmp_path: Path) -> None:
    save_itk(tmp_path / "a.mhd", arrays("i2", (4, 3, 2)))
    image, copy = ItkImage(tmp_path / "a.mhd"), tmp_path / "out" / "b.mhd"
    image.write(image.values() + 1, copy)
    digest = checksum(copy)
    voxels = bytearray(copy.with_suffix(".raw").read_bytes())
    voxels[0] ^= 1
    copy.with_suffix(".raw").write_bytes(voxels)
    assert checksum(copy) != digest
    image.write(image.values() + 1, copy)
    assert checksum(copy) == digest
