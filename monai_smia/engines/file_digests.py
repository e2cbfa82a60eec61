# SPDX-License-Identifier: Apache-2.0
"""`FileDigests`: SHA-256 of files, read once as long as they do not change."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from monai_smia.engines.described import described, digest
from monai_smia.reports.files import write_whole

HEADERS = (".mhd", ".nhdr", ".hdr", ".img")
"""Images in several files of one stem, or whose header names the file of the voxels."""

_POINTERS = (b"ElementDataFile", b"data file", b"datafile")
_SETTLED = 2_000_000_000  # ns: a file that changed less long ago may change again within one tick of its clock
_FORMAT = "monai-smia file digests 1"


class FileDigests:
    """SHA-256 of files and folders, kept with size and times in a small JSON file.

    A file whose size, time of change and inode are those of before is not read again. The file of digests is only a
    cache: if it is damaged, or gone, everything is read anew.

    Args:
        file: where they are kept; ``None`` for in memory only.
        others: files of other runs over the same cohort, which are read and never written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     image = Path(folder, "a.raw")
        ...     _ = image.write_bytes(b"abc")
        ...     FileDigests(None).of(image)[:16]
        'ba7816bf8f01cfea'
    """

    def __init__(self, file: str | Path | None = None, others: Sequence[str | Path] = ()) -> None:
        self.file = None if file is None else Path(file)
        self._known: dict[str, list[Any]] = {}
        for one in (*others, *([] if self.file is None else [self.file])):
            self._known |= _read(Path(one))
        self._saved = len(self._known)
        self._new = 0

    def of(self, path: str | Path) -> str:
        """SHA-256 of a file; of a folder (a DICOM series) that of the names and digests of all files in it.

        An image in two files (``.mhd`` and ``.raw``, ``.hdr`` and ``.img``) is both of them.

        Raises:
            OSError: when it cannot be read.
        """
        place = Path(os.path.abspath(path))
        if place.is_dir():
            inside = sorted(file for file in place.rglob("*") if file.is_file() and not file.name.startswith("."))
            return digest("\n".join(f"{file.relative_to(place).as_posix()} {self._one(file)}" for file in inside))
        beside = list(_beside(place)) if place.suffix.lower() in HEADERS else []
        if not beside:
            return self._one(place)
        return digest("\n".join(f"{file.name} {self._one(file)}" for file in sorted({place, *beside})))

    def content(self, item: Any, skip: Sequence[str] = ()) -> str:
        """A digest of all that an item of a data list consists of: the content of its files, other values as such.

        Where the files lie does not matter, only their names and what is in them.

        Args:
            item: a path, a tensor, a number, or a mapping or sequence of such.
            skip: keys that do not count.
        """
        return digest(self._content(item, skip))

    def save(self) -> None:
        """Keep what is new."""
        if self.file is not None and self._new:
            write_whole(self.file, json.dumps({"format": _FORMAT, "files": self._known}), overwrite=True)
            self._saved, self._new = len(self._known), 0

    def _content(self, value: Any, skip: Sequence[str]) -> str:
        if isinstance(value, Mapping):
            rows = {str(key): self._content(item, skip) for key, item in value.items() if key not in skip}
            return json.dumps(rows, sort_keys=True)
        if isinstance(value, (list, tuple)):
            return json.dumps([self._content(item, skip) for item in value])
        if isinstance(value, (str, os.PathLike)):
            text = os.fspath(value)
            if is_path(text):
                return f"{os.path.basename(os.path.abspath(text))} {self.of(text)}"
        return described(value)

    def _one(self, file: Path) -> str:
        before = _stat(file)
        known = self._known.get(str(file))
        if known is not None and known[:-1] == before:
            return str(known[-1])
        found = sha256()
        with open(file, "rb") as stream:
            for part in iter(lambda: stream.read(1 << 20), b""):
                found.update(part)
        if before == _stat(file) and time.time_ns() - max(before[1:3]) > _SETTLED:
            self._known[str(file)] = [*before, found.hexdigest()]
            self._new += 1
            if self._new > max(64, self._saved // 4):  # now and then, so that a kill costs little
                self.save()
        return found.hexdigest()


def is_path(text: str) -> bool:
    """A file, or a folder that is more than one word: the name of a class may be that of a folder here."""
    try:
        return os.path.isfile(text) or (os.path.isdir(text) and os.path.basename(text) != text)
    except ValueError:  # a zero byte
        return False


def _stat(file: Path) -> list[int]:
    found = os.stat(file)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _beside(header: Path) -> Iterator[Path]:
    """The other files of an image whose header, or half, this is."""
    stem = header.name[: -len(header.suffix)]
    for file in sorted(header.parent.glob(f"{_literal(stem)}.*")):
        if file.is_file() and file != header:
            yield file
    if header.suffix.lower() in (".mhd", ".nhdr") and header.is_file():
        for line in header.read_bytes()[: 1 << 16].splitlines():
            name, _, value = line.replace(b"=", b":", 1).partition(b":")
            if name.strip() in _POINTERS and (named := header.parent / os.fsdecode(value.strip())).is_file():
                yield named


def _literal(text: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def _read(file: Path) -> dict[str, list[Any]]:
    """What a file of digests holds; nothing where it is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            return {}
        return {
            str(name): row
            for name, row in content["files"].items()
            if isinstance(row, list) and len(row) == 5 and isinstance(row[-1], str) and len(row[-1]) == 64
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # of a file that is another, or half
        return {}
