# SPDX-License-Identifier: Apache-2.0
"""`NiftiImage`: a NIfTI file; the copy differs from it in the voxels alone, byte for byte."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from monai_smia.export.deidentify import Deidentification
from monai_smia.export.lattice import Lattice
from monai_smia.export.stored import StoredImage, appearing, one_line

UNREADABLE_VOXELS = (EOFError, OSError, ValueError, zlib.error)
NIFTI_1, NIFTI_2 = 348, 540  # bytes of the headers; the extensions come after them
EXTENDER = 4
TEXTS_1 = ((4, 28), (148, 104), (328, 16))  # data_type and db_name, descrip and aux_file, intent_name
TEXTS_2 = ((240, 104), (508, 16))
GZIP_LEVEL = 1  # as nibabel writes: a whole volume in a second or two


class NiftiImage(StoredImage):
    """A NIfTI file in one piece, ``.nii`` or ``.nii.gz``: two or three spatial axes, and a last one for channels.

    Header, extensions, affine, type and scaling of a copy are those of the original, and so are the voxels whose values
    did not change.

    Args:
        path: the file.
        deidentify: blank the texts of the header and the extensions of the copies.

    Raises:
        ValueError: when it cannot be read, is a pair of files, or has other axes or a type that no network takes.

    Example:
        .. code-block:: python

            image = NiftiImage("ct.nii.gz")
            image.write(image.values() + 1.0, Path("ct_adversarial.nii.gz"))
    """

    def __init__(self, path: str | Path, *, deidentify: Deidentification | None = None) -> None:
        self.path = Path(path)
        self._deidentify = deidentify
        image = _load(self.path)
        self._proxy = image.dataobj
        after = (NIFTI_2 if isinstance(image, nib.Nifti2Image) else NIFTI_1) + EXTENDER
        if int(self._proxy.offset) < after:  # a copy's voxels would lie over its header
            raise ValueError(
                f"path: expected the voxels of {self.path} after byte {after}; its header says {self._proxy.offset}"
            )
        try:
            self._levels = np.asanyarray(self._proxy.get_unscaled())
        except UNREADABLE_VOXELS as error:
            raise ValueError(f"path: the voxels of {self.path} cannot be read: {one_line(error)}") from error
        if self._levels.ndim not in (2, 3, 4):
            raise ValueError(f"path: expected two to four axes; got {self._levels.shape} in {self.path}")
        slope = float(self._proxy.slope)
        self._sign = -1 if slope < 0 else 1
        try:
            self.lattice = Lattice.of_type(self._levels.dtype, slope, float(self._proxy.inter))
        except ValueError as error:
            raise ValueError(f"path: {self.path}: {one_line(error)}") from None
        self.suffix = ".nii.gz" if _is_gzip(self.path) else ".nii"

    def values(self) -> torch.Tensor:
        """As MONAI's `NibabelReader` loads it, channel first."""
        array = np.ascontiguousarray(np.asanyarray(self._proxy), dtype=np.float32)
        tensor = torch.from_numpy(array)
        return tensor.movedim(-1, 0) if tensor.ndim == 4 else tensor.unsqueeze(0)

    def write(self, values: torch.Tensor, path: Path) -> None:
        if not path.name.lower().endswith((".nii", ".nii.gz")):
            raise ValueError(f"path: expected a name that ends with .nii or .nii.gz; got {path.name}")
        plain = self.check(values)
        clean = self.values()
        grid, changed = (x.movedim(0, -1) if self._levels.ndim == 4 else x[0] for x in (plain, plain != clean))
        levels = np.where(changed.numpy(), self._levels_of(grid), self._levels)
        voxels = levels.astype(self._levels.dtype).tobytes(order="F")
        content = _read_bytes(self.path)
        begin = int(self._proxy.offset)
        head = content[:begin] if self._deidentify is None else _blanked(content[:begin])
        content = head + voxels + content[begin + len(voxels) :]
        with appearing(path) as place:
            place.write_bytes(gzip.compress(content, GZIP_LEVEL, mtime=0) if _is_gzip(path) else content)

    def _levels_of(self, grid: torch.Tensor) -> np.ndarray:
        """What the file stores for the values, in its own type."""
        if not self.lattice.continuous:
            return (self.lattice.levels(grid).numpy() * self._sign).astype(self._levels.dtype)
        with np.errstate(over="ignore"):
            levels = (grid.double().numpy() - float(self._proxy.inter)) / float(self._proxy.slope)
            levels = levels.astype(self._levels.dtype)
        if not np.isfinite(levels).all():
            raise ValueError(
                f"values: expected numbers that {self._levels.dtype} of {self.path.name} holds; got larger"
            )
        return levels


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"path: no file {path}")
    try:
        image: Any = nib.load(path)
    except (*UNREADABLE_VOXELS, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as error:
        raise ValueError(f"path: {path} cannot be read as NIfTI: {one_line(error)}") from error
    if not isinstance(image, nib.Nifti1Image) or path.suffix in (".hdr", ".img"):
        raise ValueError(f"path: expected a NIfTI file in one piece; got {type(image).__name__} in {path}")
    return image


def _blanked(head: bytes) -> bytes:
    """A header without its texts, and zeros in the place of its extensions."""
    blank = bytearray(head)
    second = any(int.from_bytes(head[:4], order) == NIFTI_2 for order in ("little", "big"))
    for begin, length in TEXTS_2 if second else TEXTS_1:
        blank[begin : begin + length] = bytes(length)
    after = NIFTI_2 if second else NIFTI_1
    blank[after:] = bytes(len(blank) - after)
    return bytes(blank)


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _read_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        return gzip.decompress(content) if _is_gzip(path) else content
    except UNREADABLE_VOXELS as error:
        raise ValueError(f"path: {path} cannot be read to its end: {one_line(error)}") from error
