# SPDX-License-Identifier: Apache-2.0
"""NIfTI files: a copy differs in the voxels alone, and holds what its type can hold."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImage

from monai_smia.export import Lattice, NiftiImage, open_stored

AFFINE = np.array([[-1.2, 0, 0, 5], [0, 0, 2.5, 1], [0, -1.1, 0, 2], [0, 0, 0, 1.0]])


def save(
    path: Path, array: Any, slope: float | None = None, intercept: float | None = None, *, big: bool = False
) -> Path:
    """A file with an extension in its header."""
    header = nib.Nifti1Header(endianness=">") if big else nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    image = nib.Nifti1Image(array, AFFINE, header)
    image.header.set_slope_inter(slope, intercept)
    image.header["descrip"] = b"a scanner"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept as it is"))
    nib.save(image, path)
    return path


def content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("scaling", [(None, None), (2.5, -1000.0), (-0.5, 3.0)])
@pytest.mark.parametrize("big", [False, True])
def test_a_copy_without_a_change_is_the_file(tmp_path: Path, suffix: str, dtype: str, scaling: Any, big: bool) -> None:
    array = np.random.default_rng(0).integers(0, 200, (5, 4, 3)).astype(dtype)
    path = save(tmp_path / f"a{suffix}", array, *scaling, big=big)
    image = open_stored(path)
    np.testing.assert_array_equal(image.values()[0].numpy(), LoadImage(image_only=True)(path).numpy())
    image.write(image.values(), tmp_path / f"b{suffix}")
    assert content(tmp_path / f"b{suffix}") == content(path)


@pytest.mark.parametrize("scaling", [(None, None), (2.5, -1000.0), (-0.5, 3.0)])
def test_a_changed_copy_reads_as_the_nearest_values_and_keeps_its_header(tmp_path: Path, scaling: Any) -> None:
    rng = np.random.default_rng(1)
    path = save(tmp_path / "a.nii.gz", rng.integers(-300, 300, (5, 4, 3)).astype(np.int16), *scaling)
    image = NiftiImage(path)
    wanted = image.values() + torch.from_numpy(rng.normal(0, 7, (1, 5, 4, 3))).float()
    image.write(wanted, tmp_path / "b.nii.gz")
    read = nib.load(tmp_path / "b.nii.gz")
    slope = 1.0 if scaling[0] is None else abs(scaling[0])
    assert np.abs(read.get_fdata() - wanted[0].numpy()).max() <= slope / 2 * (1 + 1e-5)
    np.testing.assert_array_equal(NiftiImage(tmp_path / "b.nii.gz").values().numpy(), image.held(wanted).numpy())
    begin = int(nib.load(path).dataobj.offset)
    assert content(tmp_path / "b.nii.gz")[:begin] == content(path)[:begin]  # header and extension
    np.testing.assert_array_equal(read.affine, nib.load(path).affine)


def test_a_last_axis_of_channels_comes_first(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.arange(48, dtype=np.int16).reshape(4, 3, 2, 2))
    image = NiftiImage(path)
    assert image.values().shape == (2, 4, 3, 2)
    assert float(image.values()[1, 0, 0, 0]) == 1.0
    image.write(image.values() + 1, tmp_path / "b.nii")
    np.testing.assert_array_equal(nib.load(tmp_path / "b.nii").get_fdata(), nib.load(path).get_fdata() + 1)


def test_values_beyond_the_type_are_its_ends(tmp_path: Path) -> None:
    image = NiftiImage(save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8), 2.0, -100.0))
    assert image.lattice.bounds == (-100.0, 410.0)
    image.write(torch.tensor([-1e6, 1e6, 0.9, 1.1, 0, 0, 0, 0]).reshape(1, 2, 2, 2), tmp_path / "b.nii")
    assert nib.load(tmp_path / "b.nii").get_fdata().flatten()[:4].tolist() == [-100.0, 410.0, 0.0, 2.0]


def test_nothing_is_overwritten_or_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = NiftiImage(save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.int16)))
    (tmp_path / "mine.nii").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine\.nii exists; expected a new one"):
        image.write(image.values(), tmp_path / "mine.nii")
    assert (tmp_path / "mine.nii").read_text() == "mine"

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        image.write(image.values(), tmp_path / "sub" / "new.nii")
    assert list((tmp_path / "sub").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    image = NiftiImage(save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.int16)))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        image.write(image.values(), tmp_path / "file" / "new.nii")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, bad: float) -> None:
    image = NiftiImage(save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.float32)))
    values = image.values()
    values[0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"values: expected finite numbers for a\.nii"):
        image.write(values, tmp_path / "b.nii")
    with pytest.raises(ValueError, match=r"values: expected \(1, 2, 2, 2\), as a\.nii has; got \(1, 2, 2, 3\)"):
        image.write(torch.zeros(1, 2, 2, 3), tmp_path / "b.nii")


def test_what_is_no_nifti_file_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.nii", np.zeros((9, 9, 9), np.int16))
    (tmp_path / "cut.nii").write_bytes(whole.read_bytes()[:500])
    (tmp_path / "text.nii").write_text("no image")
    (tmp_path / "other.xyz").write_text("no image")
    nib.save(nib.Nifti1Pair(np.zeros((2, 2, 2), np.int16), AFFINE), tmp_path / "pair.hdr")
    for name, message in {
        "cut.nii": r"the voxels of .*cut\.nii cannot be read",
        "text.nii": r"text\.nii cannot be read as NIfTI",
        "other.xyz": r"expected \.nii or \.nii\.gz; got other\.xyz",
    }.items():
        with pytest.raises(ValueError, match=message):
            open_stored(tmp_path / name)
    with pytest.raises(ValueError, match="expected a NIfTI file in one piece"):
        NiftiImage(tmp_path / "pair.hdr")
    with pytest.raises(FileNotFoundError, match="nothing at"):
        open_stored(tmp_path / "missing.nii")


def test_a_lattice_rounds_to_its_levels_and_never_past_its_ends() -> None:
    held = Lattice(slope=0.5, intercept=1.0, lowest=-4, highest=4)
    values = torch.linspace(-10, 10, 201)
    levels = torch.arange(-4, 5) * 0.5 + 1
    nearest = levels[(values[:, None] - levels).abs().argmin(1)]
    assert float((held.nearest(values) - values).abs().sub((nearest - values).abs()).abs().max()) <= 1e-5
    assert held.bounds == (-1.0, 3.0)
    assert held.whole_levels(1.3) == 1.0
    assert held.whole_levels(0.0) == 0.0
    with pytest.raises(ValueError, match=r"at least one level of the file, 0\.5; got 0\.4"):
        held.whole_levels(0.4)


def test_slices_may_differ_in_their_slope() -> None:
    held = Lattice(torch.tensor([1.0, 10.0]), torch.tensor([0.0, -5.0]), 0, 10)
    assert held.nearest(torch.tensor([[3.4, 3.4], [99.0, 99.0]])).tolist() == [[3.0, 5.0], [10.0, 95.0]]
    assert held.bounds == (-5.0, 95.0)
    assert held.whole_levels(25.0) == 20.0
    odd = Lattice(torch.tensor([0.7, 1.0]), 0.0, -10, 10)
    budget = odd.whole_levels(2.0)  # two levels of 1.0 would round to three of 0.7
    assert float(odd.nearest(torch.tensor([budget, budget])).max()) <= 2.0


def test_floating_types_hold_every_value() -> None:
    held = Lattice.of_type(np.float32)
    values = torch.rand(5)
    assert held.continuous
    assert held.bounds is None
    assert torch.equal(held.nearest(values), values)
    with pytest.raises(ValueError, match="a floating type has no levels"):
        held.levels(values)
    with pytest.raises(ValueError, match="expected integers or floating-point numbers; got complex64"):
        Lattice.of_type(np.complex64)
    with pytest.raises(ValueError, match="slope: expected"):
        Lattice(-1.0)
    with pytest.raises(ValueError, match="expected lowest < highest; got 3, 3"):
        Lattice(1.0, 0.0, 3, 3)
