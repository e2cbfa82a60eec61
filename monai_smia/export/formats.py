# SPDX-License-Identifier: Apache-2.0
"""`open_stored`: the format of a file, by its name and kind."""

from __future__ import annotations

from pathlib import Path

from monai.utils import optional_import

from monai_smia.export import dicom, itk_image, picture
from monai_smia.export.deidentify import Deidentification
from monai_smia.export.dicom import DicomSeries
from monai_smia.export.itk_image import ItkImage
from monai_smia.export.nifti import NiftiImage
from monai_smia.export.picture import PictureImage
from monai_smia.export.stored import StoredImage

is_dicom, _ = optional_import("pydicom.misc", name="is_dicom")

NIFTI = (".nii", ".nii.gz")
PICTURES = tuple(suffix for suffixes in picture.SUFFIXES.values() for suffix in suffixes)


def open_stored(
    path: str | Path,
    *,
    reader: str | None = None,
    as_png: bool = False,
    deidentify: Deidentification | None = None,
) -> StoredImage:
    """The image in a file, or in a folder of DICOM instances.

    A file whose name tells nothing is looked into: DICOM files often have no suffix.

    Args:
        path: the file or folder.
        reader: of MONAI, whose order of slices a DICOM series has, see `DicomSeries`; no matter elsewhere.
        as_png: write copies of JPEG files as PNG, see `PictureImage`; no matter elsewhere.
        deidentify: takes what names the patient out of the copies.

    Raises:
        FileNotFoundError: when nothing is there.
        ImportError: without the library that reads the format.
        ValueError: for a format that cannot be written back, and for a file that cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: nothing at {path}")
    name = path.name.lower()
    if path.is_file():
        if name.endswith(NIFTI):
            return NiftiImage(path, deidentify=deidentify)
        if name.endswith(PICTURES):
            return PictureImage(path, as_png=as_png, deidentify=deidentify)
        if name.endswith(itk_image.SUFFIXES):
            return ItkImage(path, deidentify=deidentify)
        if not name.endswith(dicom.SUFFIXES) and not is_dicom(path):
            known = ", ".join((*NIFTI, *PICTURES, *itk_image.SUFFIXES))
            raise ValueError(f"path: expected {known}, or DICOM; got {path.name}")
    return DicomSeries(path, reader=reader, deidentify=deidentify)
