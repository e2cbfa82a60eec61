# SPDX-License-Identifier: Apache-2.0
"""`StoredImage`: an image as its file holds it, and the copy of it that holds other values."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from monai_smia.export.lattice import Lattice
from monai_smia.reports.files import PREFIX, SUFFIX, force, writing

HEADER = ".mhd"
"""Of a MetaImage in two files, as ITK writes it."""
WHERE = b"ElementDataFile"


class StoredImage(ABC):
    """A file, or a folder of files, of one image.

    Attributes:
        path: the file or folder.
        lattice: the values that it can hold, in physical units (HU, grey levels), as MONAI's reader gives them.
        lossless: whether reading a copy back gives the values of the lattice that were written.
        suffix: of the copies, such as ``".nii.gz"``; empty for a folder.
    """

    path: Path
    lattice: Lattice
    suffix: str
    lossless: bool = True

    @abstractmethod
    def values(self) -> torch.Tensor:
        """The image as MONAI's reader loads it, channel first: ``(C, *spatial)``, float32, physical units."""

    @abstractmethod
    def write(self, values: torch.Tensor, path: Path) -> None:
        """A copy of the file with other values; everything else of it is kept.

        The copy appears whole or not at all.

        Args:
            values: as `values` gives them; each is stored as the nearest that can be held.
            path: the new file or folder.

        Raises:
            FileExistsError: when there is something at `path`.
            ValueError: when the shape is another one, or a value is not finite.
        """

    def held(self, values: torch.Tensor) -> torch.Tensor:
        """What reading a copy back gives; a lossy format overrides it."""
        return self.lattice.nearest(values)

    def approximation(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What stands in for `held` in the backward pass, a differentiable function of the values.

        ``None`` is the identity, which fits a rounding to levels; a lossy format overrides it.
        """
        return None

    def check(self, values: torch.Tensor) -> torch.Tensor:
        """The values as a plain tensor on the CPU.

        Raises:
            ValueError: as in `write`.
        """
        shape = tuple(self.values().shape)
        if tuple(values.shape) != shape:
            raise ValueError(f"values: expected {shape}, as {self.path.name} has; got {tuple(values.shape)}")
        plain = torch.as_tensor(values).detach().cpu().as_subclass(torch.Tensor)
        if not bool(plain.isfinite().all()):
            raise ValueError(f"values: expected finite numbers for {self.path.name}; got NaN or infinity")
        return plain


def one_line(error: BaseException) -> str:
    """What an error says, without the lines of its library."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary place beside `path` that becomes it at the end; after an error nothing is left.

    The folder is made. A file and a folder are moved alike, and what lies beside the temporary place (the voxels of a
    header in a file of its own) before it.

    Raises:
        FileExistsError: when there is something at `path`, before and after the work.
    """
    with writing(path):
        yield from _appearing(path)


def _appearing(path: Path) -> Iterator[Path]:
    refuse_existing(path)
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    moved: list[Path] = []
    place: Path | None = None
    try:
        place = Path(tempfile.mkdtemp(dir=path.parent, prefix=PREFIX, suffix=SUFFIX))
        made = place / path.name
        yield made
        for part in [*(other for other in sorted(place.iterdir()) if other != made), made]:
            goal = path.parent / part.name
            refuse_existing(goal)
            force(part)
            os.rename(part, goal)
            moved.append(goal)
    except BaseException:
        for goal in moved:
            goal.unlink(missing_ok=True)
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise
    shutil.rmtree(place, ignore_errors=True)


def checksum(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder in the order of their names; of a header with its voxels."""
    digest = hashlib.sha256()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path, *_voxels_of(path)]
    for file in files:
        with open(file, "rb") as stream:
            for part in iter(lambda: stream.read(1 << 20), b""):
                digest.update(part)
    return digest.hexdigest()


def _voxels_of(path: Path) -> list[Path]:
    """The file beside a header that holds its voxels."""
    if path.suffix.lower() != HEADER:
        return []
    names = (line.partition(b"=")[2].strip() for line in path.read_bytes().splitlines() if line.startswith(WHERE))
    files = [path.parent / os.fsdecode(name) for name in names if name]
    return [file for file in files if file.is_file()]


def refuse_existing(path: Path) -> None:
    """Nothing of the user's is overwritten.

    Raises:
        FileExistsError: naming the path.
    """
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"path: {path} exists; expected a new one")
