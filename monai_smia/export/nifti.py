# SPDX-License-Identifier: Apache-2.0
"""`NiftiImage`: a NIfTI file; the copy differs from it in the voxels alone, byte for byte."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from monai_smia.export.lattice import Lattice
from monai_smia.export.stored import StoredImage, appearing


class NiftiImage(StoredImage):
    """A NIfTI file in one piece, ``.nii`` or ``.nii.gz``: two or three spatial axes, and a last one for channels.

    Header, extensions, affine, type and scaling of a copy are those of the original.

    Args:
        path: the file.

    Raises:
        ValueError: when it cannot be read, is a pair of files, or has other axes or a type that no network takes.

    Example:
        .. code-block:: python

            image = NiftiImage("ct.nii.gz")
            image.write(image.values() + 1.0, Path("ct_adversarial.nii.gz"))
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        image = _load(self.path)
        self._proxy = image.dataobj
        try:
            self._levels = np.asanyarray(self._proxy.get_unscaled())
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"path: the voxels of {self.path} cannot be read: {error}") from error
        if self._levels.ndim not in (2, 3, 4):
            raise ValueError(f"path: expected two to four axes; got {self._levels.shape} in {self.path}")
        slope = float(self._proxy.slope)
        self._sign = -1 if slope < 0 else 1
        try:
            self.lattice = Lattice.of_type(self._levels.dtype, slope, float(self._proxy.inter))
        except ValueError as error:
            raise ValueError(f"path: {self.path}: {error}") from None
        self.suffix = ".nii.gz" if self.path.name.endswith(".gz") else ".nii"

    def values(self) -> torch.Tensor:
        """As MONAI's `NibabelReader` loads it, channel first."""
        array = np.ascontiguousarray(np.asanyarray(self._proxy), dtype=np.float32)
        tensor = torch.from_numpy(array)
        return tensor.movedim(-1, 0) if tensor.ndim == 4 else tensor.unsqueeze(0)

    def write(self, values: torch.Tensor, path: Path) -> None:
        plain = self.check(values)
        grid = plain.movedim(0, -1) if self._levels.ndim == 4 else plain[0]
        if self.lattice.continuous:
            slope, intercept = float(self._proxy.slope), float(self._proxy.inter)
            levels = (grid.double().numpy() - intercept) / slope + 0.0  # no negative zeros
        else:
            levels = self.lattice.levels(grid).numpy() * self._sign
        voxels = levels.astype(self._levels.dtype).tobytes(order="F")
        content = _read_bytes(self.path)
        begin = int(self._proxy.offset)
        content = content[:begin] + voxels + content[begin + len(voxels) :]
        with appearing(path) as place:
            place.write_bytes(gzip.compress(content, mtime=0) if path.name.endswith(".gz") else content)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"path: no file {path}")
    try:
        image: Any = nib.load(path)
    except Exception as error:
        raise ValueError(f"path: {path} cannot be read as NIfTI: {error}") from error
    if not isinstance(image, nib.Nifti1Image) or path.suffix in (".hdr", ".img"):
        raise ValueError(f"path: expected a NIfTI file in one piece; got {type(image).__name__} in {path}")
    return image


def _read_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.name.endswith(".gz") else content
