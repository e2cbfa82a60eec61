# SPDX-License-Identifier: Apache-2.0
"""Write this bundle's dataset, CTs and lung labels as NIfTI, from the two chest CTs that pyradiomics ships as NRRD.

Reads `<case>_image.nrrd` and, where it exists, `<case>_label.nrrd` (a tumour mask) of a folder and writes
`<case>_image.nii.gz` (int16, HU) and `<case>_lungs.nii.gz` (uint8: 0 background, 1 the patient's left lung, 2 the right
lung), from the repository's root:

    python bundles/lung_ct_segmentation/scripts/prepare_data.py --output data/lung_ct
    python bundles/lung_ct_segmentation/scripts/prepare_data.py --output small --cases lung1 --spacing 2.5 2.5 5

How the labels are made is told in `derive_lungs.py`. With `--spacing` the image is resampled linearly; so is the mask
of each label, and each voxel takes the label that has most of it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from numpy.typing import NDArray
from tqdm import tqdm

BUNDLE = Path(__file__).resolve().parents[1]
if str(BUNDLE) not in sys.path:
    sys.path.insert(0, str(BUNDLE))

from scripts.derive_lungs import derive_lungs  # noqa: E402

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def default_source() -> Path:
    """`lung_ct` of $MONAI_SMIA_DATA, or of ../shared/data next to the repository."""
    root = os.environ.get("MONAI_SMIA_DATA")
    return (Path(root) if root else BUNDLE.parents[1].parent / "shared" / "data") / "lung_ct"


def read_nrrd(path: Path) -> MetaTensor:
    """Read a volume as a MetaTensor of shape (1, X, Y, Z) whose affine is RAS, in the file's own voxel order."""
    image = itk.imread(str(path))
    if image.GetImageDimension() != 3:
        raise ValueError(f"{path}: expected a 3-D volume, got {image.GetImageDimension()} dimensions")
    direction = itk.array_from_matrix(image.GetDirection())
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(image.GetSpacing())
    affine[:3, 3] = np.array(image.GetOrigin())
    voxels = itk.array_from_image(image).transpose(2, 1, 0).astype(np.float32)
    return MetaTensor(torch.from_numpy(voxels.copy())[None], affine=torch.from_numpy(LPS_TO_RAS @ affine))


def label_lungs(image: MetaTensor, tumour: MetaTensor | None = None) -> MetaTensor:
    """Derive the lung label of a CT on its own grid, shape (1, X, Y, Z), float32 with the values 0, 1 and 2."""
    to_ras = Orientation("RAS", labels=None)
    ras = to_ras(image)
    lesion = None if tumour is None else np.asarray(to_ras(tumour)[0]) > 0
    lungs = derive_lungs(np.asarray(ras[0]), [float(s) for s in ras.pixdim], lesion)
    label = MetaTensor(torch.from_numpy(lungs).float()[None], meta=ras.meta, applied_operations=ras.applied_operations)
    return to_ras.inverse(label)


def resample(image: MetaTensor, label: MetaTensor, spacing: Sequence[float]) -> tuple[MetaTensor, MetaTensor]:
    """Resample a CT linearly and its label by linear votes of its classes, on the RAS grid that the configs choose."""
    to_ras = Orientation("RAS", labels=None)
    image, label = to_ras(image), to_ras(label)
    to_grid = Spacing(pixdim=spacing, mode="bilinear", padding_mode="border")
    votes = torch.cat([label == index for index in range(3)]).float()
    votes_on_grid = to_grid(MetaTensor(votes, affine=label.affine))
    voted = MetaTensor(votes_on_grid.as_tensor().argmax(0, keepdim=True).float(), affine=votes_on_grid.affine)
    return to_grid(MetaTensor(image.as_tensor(), affine=image.affine)), voted


def write_nifti(path: Path, volume: MetaTensor, dtype: type[np.generic], *, force: bool) -> None:
    """Write a volume of shape (1, X, Y, Z) whole or not at all, with mm as its unit."""
    if path.exists() and not force:
        raise FileExistsError(f"output: {path} exists; give --force to replace it")
    voxels: NDArray[np.generic] = np.rint(np.asarray(volume.as_tensor()[0])).astype(dtype)
    nifti = nib.Nifti1Image(voxels, np.asarray(volume.affine, dtype=np.float64))
    nifti.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial_") as folder:
        part = Path(folder) / path.name
        nib.save(nifti, part)
        os.replace(part, path)


def prepare_case(
    source: Path, output: Path, case: str, spacing: Sequence[float] | None = None, *, force: bool = False
) -> None:
    """Read one case of `source`, derive its lungs and write both files to `output`."""
    targets = [output / f"{case}_image.nii.gz", output / f"{case}_lungs.nii.gz"]
    for target in targets:
        if target.exists() and not force:
            raise FileExistsError(f"output: {target} exists; give --force to replace it")
    image_file, tumour_file = source / f"{case}_image.nrrd", source / f"{case}_label.nrrd"
    if not image_file.is_file():
        raise FileNotFoundError(f"source: expected {image_file}, which does not exist")
    image = read_nrrd(image_file)
    label = label_lungs(image, read_nrrd(tumour_file) if tumour_file.is_file() else None)
    if spacing is not None:
        image, label = resample(image, label, spacing)
    write_nifti(targets[0], image, np.int16, force=force)
    write_nifti(targets[1], label, np.uint8, force=force)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", type=Path, default=default_source(), help="folder of the NRRD files (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to; made when missing")
    parser.add_argument("--cases", nargs="+", help="names without _image.nrrd (default: all of the folder)")
    parser.add_argument(
        "--spacing", nargs=3, type=float, metavar="MM", help="resample to this voxel size (default: native grid)"
    )
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    args = parser.parse_args(argv)
    suffix = "_image.nrrd"
    cases = args.cases or sorted(path.name.removesuffix(suffix) for path in args.source.glob(f"*{suffix}"))
    if not cases:
        parser.error(f"--source: expected a folder with <case>{suffix} files, got {args.source}")
    for case in tqdm(cases, desc="cases", delay=2.0):
        prepare_case(args.source, args.output, case, args.spacing, force=args.force)


if __name__ == "__main__":
    main()
