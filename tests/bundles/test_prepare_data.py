# SPDX-License-Identifier: Apache-2.0
"""The derivation of the lung labels, on a phantom whose parts are known, and on the real CTs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("scipy")
itk = pytest.importorskip("itk")

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "lung_ct_segmentation"
REAL = Path(os.environ.get("MONAI_SMIA_DATA", ROOT.parent / "shared" / "data")) / "lung_ct"
SPACING = (3.0, 3.0, 5.0)


class Phantom(NamedTuple):
    """A chest in LPS order, and what it is made of."""

    hu: np.ndarray
    left: np.ndarray
    right: np.ndarray
    airway: np.ndarray
    gas: np.ndarray
    tumour: np.ndarray
    stray: np.ndarray


def make_phantom(bridge: bool = False) -> Phantom:
    """Body, two lungs with vessels, trachea, main bronchi, bowel gas, table, a lesion in the left lung, one outside."""
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip((120, 90, 44), SPACING, strict=True)), indexing="ij")
    x, y, z = grid[0] - 178.5, grid[1] - 120.0, grid[2]  # LPS: +x to the patient's left, +y to the back

    def ball(cx: float, cy: float, cz: float, rx: float, ry: float, rz: float) -> np.ndarray:
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 <= 1

    body = (x / 150) ** 2 + (y / 100) ** 2 <= 1
    left, right = ball(72, 0, 110, 50, 70, 75), ball(-70, 0, 105, 55, 72, 80)
    if bridge:
        middle = (abs(y + 40) < 5) & (abs(z - 110) < 8) & (abs(x) < 45)
        left, right = left | (middle & (x > 0)), right | (middle & (x <= 0))

    def tubes(thicker: float) -> np.ndarray:
        out = (x**2 + (y - 10) ** 2 <= (9 + thicker) ** 2) & (z >= 120)
        for side in (-1, 1):
            t = np.clip((120 - z) / 25, 0, 1)
            out |= ((x - side * 22 * t) ** 2 + (y - 10) ** 2 <= (7 + thicker) ** 2) & (z >= 95 - thicker) & (z < 120)
        return out

    airway, wall = tubes(0), tubes(6)
    left, right = left & ~wall, right & ~wall
    vessels = ((y % 30) < 4) & ((z % 30) < 6)
    tumour = ball(100, 55, 90, 18, 18, 18)
    gas = ball(60, -40, 10, 20, 20, 14)
    stray = ball(0, 80, 30, 8, 8, 8)

    hu = np.full(x.shape, -1000.0)
    hu[body] = 40.0
    hu[left | right] = -850.0
    hu[(left | right) & vessels] = 40.0
    hu[airway | gas] = -980.0
    hu[tumour | stray] = 40.0
    hu[(y > 105) & (y < 115) & (abs(x) < 160)] = 200.0
    hu += np.random.default_rng(0).normal(0, 15, hu.shape)
    return Phantom(np.rint(hu).astype(np.int16), (left & ~tumour) | tumour, right & ~tumour, airway, gas, tumour, stray)


def write_nrrd(path: Path, array: np.ndarray, flip_x: bool = False) -> None:
    """Write an (X, Y, Z) array in LPS order; `flip_x` stores it from left to right, in the same place."""
    stored = array[::-1] if flip_x else array
    image = itk.image_from_array(np.ascontiguousarray(stored.transpose(2, 1, 0)))
    image.SetSpacing(SPACING)
    origin = np.array([-178.5, -120.0, -300.0])
    if flip_x:
        origin[0] += SPACING[0] * (array.shape[0] - 1)
        image.SetDirection(itk.matrix_from_array(np.diag([-1.0, 1.0, 1.0])))
    image.SetOrigin(origin.tolist())
    itk.imwrite(image, str(path))


def write_case(folder: Path, phantom: Phantom, flip_x: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    write_nrrd(folder / "p_image.nrrd", phantom.hu, flip_x)
    write_nrrd(folder / "p_label.nrrd", (phantom.tumour | phantom.stray).astype(np.int16), flip_x)
    return folder


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def in_lps(file: Path) -> np.ndarray:
    """A NIfTI's voxels in LPS order, whatever its own."""
    nifti = nib.load(file)
    ras = nib.as_closest_canonical(nifti)
    return np.asarray(ras.dataobj)[::-1, ::-1]


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The bundle's `scripts.prepare_data`."""
    monkeypatch.syspath_prepend(str(BUNDLE))
    for name in [name for name in sys.modules if name == "scripts" or name.startswith("scripts.")]:
        monkeypatch.delitem(sys.modules, name)
    import scripts.prepare_data

    return scripts.prepare_data


@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("bridge", [False, True])
def test_phantom(prepare: ModuleType, tmp_path: Path, flip_x: bool, bridge: bool) -> None:
    phantom = make_phantom(bridge)
    source = write_case(tmp_path / "nrrd", phantom, flip_x)
    prepare.main(["--source", str(source), "--output", str(tmp_path / "out")])
    label = in_lps(tmp_path / "out" / "p_lungs.nii.gz")
    assert label.dtype == np.uint8
    assert set(np.unique(label)) == {0, 1, 2}
    assert dice(label == 1, phantom.left) > 0.97
    assert dice(label == 2, phantom.right) > 0.97
    assert (label[phantom.tumour] == 1).all()
    for outside in (phantom.gas, phantom.stray, phantom.airway):
        assert (label[outside] > 0).mean() < 0.02
    np.testing.assert_array_equal(in_lps(tmp_path / "out" / "p_image.nii.gz"), phantom.hu)


def test_spacing_keeps_volume_and_place(prepare: ModuleType, tmp_path: Path) -> None:
    phantom = make_phantom()
    source = write_case(tmp_path / "nrrd", phantom)
    prepare.main(["--source", str(source), "--output", str(tmp_path / "native")])
    prepare.main(["--source", str(source), "--output", str(tmp_path / "out"), "--spacing", "6", "6", "5"])
    native, coarse = (nib.load(tmp_path / folder / "p_lungs.nii.gz") for folder in ("native", "out"))
    np.testing.assert_allclose(coarse.header.get_zooms(), (6, 6, 5), rtol=1e-5)
    for index in (1, 2):
        there = [np.argwhere(np.asarray(n.dataobj) == index) for n in (native, coarse)]
        centres = [
            nib.affines.apply_affine(n.affine, points.mean(0))
            for n, points in zip((native, coarse), there, strict=True)
        ]
        np.testing.assert_allclose(centres[0], centres[1], atol=1.0)
        assert len(there[1]) * 4 == pytest.approx(len(there[0]), rel=0.02)


def test_nothing_is_overwritten_without_force(prepare: ModuleType, tmp_path: Path) -> None:
    source = write_case(tmp_path / "nrrd", make_phantom())
    out = tmp_path / "out"
    out.mkdir()
    (out / "p_lungs.nii.gz").write_bytes(b"mine")
    arguments = ["--source", str(source), "--output", str(out)]
    with pytest.raises(FileExistsError, match=r"p_lungs\.nii\.gz exists"):
        prepare.main(arguments)
    assert (out / "p_lungs.nii.gz").read_bytes() == b"mine"
    prepare.main([*arguments, "--force"])
    assert sorted(path.name for path in out.iterdir()) == ["p_image.nii.gz", "p_lungs.nii.gz"]
    assert nib.load(out / "p_lungs.nii.gz").shape == (120, 90, 44)


def test_an_image_without_lungs_is_an_error(prepare: ModuleType) -> None:
    with pytest.raises(ValueError, match="expected two lungs"):
        prepare.derive_lungs(np.zeros((20, 20, 4)), (3.0, 3.0, 5.0))
    with pytest.raises(ValueError, match=r"hu: expected an array of 3 axes"):
        prepare.derive_lungs(np.zeros((20, 20)), (3.0, 3.0, 5.0))
    with pytest.raises(ValueError, match=r"tumour: expected the shape of hu"):
        prepare.derive_lungs(np.zeros((20, 20, 4)), (3.0, 3.0, 5.0), np.zeros((20, 20, 5), bool))


@pytest.mark.skipif(
    not (REAL / "lung1_image.nrrd").is_file(),
    reason=f"needs lung1_image.nrrd and lung1_label.nrrd of the PyPI source distribution pyradiomics 3.0.1 in {REAL}"
    " (MONAI_SMIA_DATA names the folder above lung_ct)",
)
def test_real_ct_gives_the_sample_that_ships(prepare: ModuleType, tmp_path: Path) -> None:
    prepare.main(["--source", str(REAL), "--output", str(tmp_path), "--cases", "lung1", "--spacing", "2.5", "2.5", "5"])
    for name in ("lung1_image.nii.gz", "lung1_lungs.nii.gz"):
        made, shipped = nib.load(tmp_path / name), nib.load(BUNDLE / "sample" / name)
        np.testing.assert_allclose(made.affine, shipped.affine, atol=1e-4)
        difference = np.asarray(made.dataobj).astype(int) - np.asarray(shipped.dataobj).astype(int)
        # another scipy or torch may round a voxel on a border the other way
        assert (difference != 0).mean() < 1e-3


def test_sample_is_anatomically_right() -> None:
    """The heart lies between the lungs and to the left: the left lung is the smaller one, at smaller x in RAS."""
    label, image = (
        nib.load(BUNDLE / "sample" / "lung1_lungs.nii.gz"),
        nib.load(BUNDLE / "sample" / "lung1_image.nii.gz"),
    )
    lungs, hu = np.asarray(label.dataobj), np.asarray(image.dataobj)
    assert hu.dtype == np.int16
    assert lungs.dtype == np.uint8
    np.testing.assert_allclose(label.affine, image.affine)
    litres = [(lungs == index).sum() * np.prod(label.header.get_zooms()) / 1e6 for index in (1, 2)]
    x = [nib.affines.apply_affine(label.affine, np.argwhere(lungs == index).mean(0))[0] for index in (1, 2)]
    assert x[0] < x[1]
    assert 0.7 < litres[0] < litres[1] < 3.0
    assert np.median(hu[lungs > 0]) < -750
