# SPDX-License-Identifier: Apache-2.0
"""`write_whole`: files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX, SUFFIX = ".monai-smia-", ".tmp"
"""Of the names of temporary files and folders, so that those of a run that was killed are known as such."""


class OutputFault(OSError):
    """A file of ours could not be written: a fault of the machine, wherever it is met."""


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Whatever the system refuses inside it is an `OutputFault`.

    That something is there already is none, nor an error about a file elsewhere, such as one that is read meanwhile. An
    error without a number, which libraries raise, is one only where the disk is full.
    """
    try:
        yield
    except (FileExistsError, OutputFault):
        raise
    except OSError as error:
        elsewhere = error.filename is not None and not _is_below(error.filename, Path(path).absolute().parent)
        if elsewhere or (error.errno is None and not _is_full(Path(path).absolute().parent)):
            raise
        raise OutputFault(error.errno, error.strerror or str(error), str(error.filename or path)) from error


def _is_below(name: str | bytes | int, folder: Path) -> bool:
    if isinstance(name, int):
        return True
    place = Path(os.path.abspath(os.fsdecode(name)))
    return place.is_relative_to(folder) or folder.is_relative_to(place)


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < 1 << 20
    except OSError:
        return False


def write_whole(path: str | Path, content: str | bytes, overwrite: bool = False) -> None:
    """Write a file beside its place, then move it there; the folder is made.

    Args:
        path: where to.
        content: text (UTF-8) or bytes.
        overwrite: whether an existing file may be replaced.

    Raises:
        FileExistsError: when there is a file and `overwrite` is false.
        OutputFault: when the system does not let it; a file that was there is as it was.
    """
    path = Path(path)
    with writing(path):
        if (path.exists() or path.is_symlink()) and not overwrite:
            raise FileExistsError(f"path: {path} exists; expected a new file, or overwrite=True")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=PREFIX, suffix=SUFFIX)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())  # or a power cut leaves the new name with nothing in it
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def force(path: str | Path) -> None:
    """Force a file, or all files of a folder, to the disk: a power cut after a move then leaves them whole."""
    place = Path(path)
    for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if file.is_file():
            with open(file, "r+b") as stream:
                os.fsync(stream.fileno())


def is_temporary(path: Path) -> bool:
    """Whether the name is one of ours for what is not finished."""
    return path.name.startswith(PREFIX) and path.name.endswith(SUFFIX)
