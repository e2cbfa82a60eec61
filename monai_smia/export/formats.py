# SPDX-License-Identifier: Apache-2.0
"""`open_stored`: the format of a file, by its name and kind."""

from __future__ import annotations

from pathlib import Path

from monai_smia.export.nifti import NiftiImage
from monai_smia.export.stored import StoredImage


def open_stored(path: str | Path) -> StoredImage:
    """The image in a file: NIfTI so far.

    Raises:
        FileNotFoundError: when nothing is there.
        ValueError: for a format that cannot be written back, and for a file that cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: nothing at {path}")
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return NiftiImage(path)
    raise ValueError(f"path: expected .nii or .nii.gz; got {path.name}")
