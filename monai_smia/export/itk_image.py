# SPDX-License-Identifier: Apache-2.0
"""`ItkImage`: an NRRD or MetaImage file."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import optional_import

from monai_smia.export.deidentify import Deidentification
from monai_smia.export.lattice import Lattice
from monai_smia.export.stored import StoredImage, appearing, one_line

itk, _ = optional_import("itk")

SUFFIXES = (".nrrd", ".mha", ".mhd")
ADDED = "ITK_"  # what ITK adds to the metadata that it reads
GEOMETRY = ("NRRD_kinds", "NRRD_measurement frame", "NRRD_space")
GZIPPED = (b"encoding:gzip", b"encoding:gz")
LONGEST_HEADER = 1 << 16


class ItkImage(StoredImage):
    """An NRRD (``.nrrd``) or MetaImage file (``.mha``, or ``.mhd`` with its voxels in a file beside it).

    A copy has the original's spacing, origin, direction and type, is compressed where the original is, and has what of
    its metadata ITK reads and writes. ITK's wheels read 8-bit integers without sign, 16- and 32-bit integers and
    floating-point numbers; two and three axes, a fourth one as channels, and RGB.

    Args:
        path: the file.
        deidentify: leave all metadata but the geometry out of the copies.

    Raises:
        ImportError: without itk.
        FileNotFoundError: when there is no file.
        ValueError: when it cannot be read, or is of another kind.

    Example:
        .. code-block:: python

            image = ItkImage("ct.nrrd")
            image.write(image.values() + 1.0, Path("ct_adversarial.nrrd"))
    """

    def __init__(self, path: str | Path, *, deidentify: Deidentification | None = None) -> None:
        self.path = Path(path)
        self._deidentify = deidentify
        if not self.path.is_file():
            raise FileNotFoundError(f"path: no file {self.path}")
        self.suffix = self.path.suffix.lower()
        if self.suffix not in SUFFIXES:
            raise ValueError(f"path: expected {', '.join(SUFFIXES)}; got {self.path.name}")
        image = _read_image(self.path)
        self._levels = np.array(itk.array_view_from_image(image))
        self._components = int(image.GetNumberOfComponentsPerPixel())
        if self._levels.ndim - (self._components > 1) > (4 if self._components == 1 else 3):
            raise ValueError(f"path: expected two to four axes; got {self._levels.shape} in {self.path}")
        _check_stream(self.path, self._levels.nbytes)
        self.lattice = Lattice.of_type(self._levels.dtype)

    def values(self) -> torch.Tensor:
        """As MONAI's `ITKReader` loads it, channel first."""
        grid = np.ascontiguousarray(self._channel_first(self._levels), dtype=np.float32)
        return torch.from_numpy(grid)

    def write(self, values: torch.Tensor, path: Path) -> None:
        if path.suffix.lower() != self.suffix:
            raise ValueError(f"path: expected a name that ends with {self.suffix}; got {path.name}")
        plain, clean = self.check(values), self.values()
        levels = plain if self.lattice.continuous else self.lattice.levels(plain)
        changed, wanted = (self._as_stored(x.numpy()) for x in (plain != clean, levels))
        stored = np.where(changed, wanted, self._levels).astype(self._levels.dtype)
        image = _read_image(self.path)
        itk.array_view_from_image(image)[...] = stored
        notes = image.GetMetaDataDictionary()
        for key in list(notes.GetKeys()):
            if key.startswith(ADDED) or not (self._deidentify is None or key.startswith(GEOMETRY)):
                notes.Erase(key)
        with appearing(path) as place:
            try:
                itk.imwrite(image, str(place), compression=_is_compressed(self.path))
                read = itk.array_view_from_image(_read_image(place))
            except (RuntimeError, ValueError) as error:
                raise OSError(f"path: {path} cannot be written: {one_line(error)}") from error
            if not np.array_equal(read, stored):  # ITK says nothing of a full disk
                raise OSError(f"path: {path} cannot be written: it holds other values than those written")

    def _channel_first(self, array: np.ndarray) -> np.ndarray:
        """From ITK's order, ``([t,] z, y, x[, c])``, to ``(C, x, y, z)``."""
        if self._components > 1:
            return array.T
        return np.moveaxis(array.T, -1, 0) if array.ndim == 4 else array.T[np.newaxis]

    def _as_stored(self, values: np.ndarray) -> np.ndarray:
        """The other way."""
        if self._components > 1:
            return values.T
        return np.moveaxis(values, 0, -1).T if self._levels.ndim == 4 else values[0].T


def _read_image(path: Path) -> Any:
    try:
        return itk.imread(str(path))
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"path: {path} cannot be read by ITK: {one_line(error)}") from error


def _check_stream(path: Path, size: int) -> None:
    """A compressed file is whole: it has a checksum, which ITK does not look at.

    Raises:
        ValueError: naming the file whose bytes are damaged.
    """
    if not _is_compressed(path):
        return
    content = path.read_bytes()
    if path.suffix.lower() == ".nrrd":
        head, _, data = content.partition(b"\r\n\r\n" if b"\r\n\r\n" in content[:LONGEST_HEADER] else b"\n\n")
        gzipped = any(line.replace(b" ", b"").lower() in GZIPPED for line in head.splitlines())
        if not gzipped or b"\ndata file:" in head.lower() or b"\ndatafile:" in head.lower():
            return
        unpack: Callable[[bytes], bytes] = gzip.decompress
    else:
        head, _, rest = content.partition(b"ElementDataFile")
        name, _, data = rest.partition(b"\n")
        name = name.replace(b"=", b"").strip()
        if name != b"LOCAL":
            path = path.parent / os.fsdecode(name)
            if not path.is_file():
                return
            data = path.read_bytes()
        unpack = zlib.decompress
    try:
        found = len(unpack(data))
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"path: the voxels of {path} cannot be read: {one_line(error)}") from error
    if found != size:
        raise ValueError(f"path: expected {size} bytes of voxels in {path}; got {found}")


def _is_compressed(path: Path) -> bool:
    """What the text at the beginning of the file says."""
    with path.open("rb") as file:
        begin = file.read(LONGEST_HEADER)
    if path.suffix.lower() == ".nrrd":
        lines = begin.split(b"\n\n")[0].split(b"\r\n\r\n")[0].splitlines()
        return any(line.lower().startswith(b"encoding:") and line.split(b":")[1].strip() != b"raw" for line in lines)
    lines = begin.split(b"ElementDataFile")[0].splitlines()
    return any(line.replace(b" ", b"").lower() == b"compresseddata=true" for line in lines)
