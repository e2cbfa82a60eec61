# SPDX-License-Identifier: Apache-2.0
"""`Manifest`: a MONAI data list of adversarial files that says where each came from."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

from monai_smia.attacks import Attack
from monai_smia.export.stored import checksum
from monai_smia.reports.files import write_whole, writing
from monai_smia.reports.schema import ManifestFile, validated

LIST = "adversarial"
"""The key of the data list in the file."""

MADE = "made"
"""The key, in every item, of how it was made."""

MARK = "written_by"
"""The key of the record that this program wrote the file."""

IMAGES = "images"
"""The folder of the copies, beside the file."""

PARTS = "files"
"""The key, in how it was made, of what the copy consists of: name to checksum."""

_WRITER = {"program": "monai_smia", "format": 1}


class Manifest:
    """A JSON file ``{"written_by": ..., "adversarial": [...]}``.

    Each entry of the list is an item of a data list, with what made it under ``made``.

    ``monai.data.load_decathlon_datalist(file, data_list_key="adversarial")`` reads it. Paths of images are relative to
    the file, those of sources are absolute.

    Args:
        file: where it lies; an existing one is gone on with.
        image_key: of the image in every item.
        seal: gives a source file the name under ``made.case`` that stands for it, where entries do not tell the file;
            ``None`` where they do.
    """

    def __init__(self, file: Path, image_key: str, seal: Callable[[str | Path], str] | None = None) -> None:
        self.file = file
        self.image_key = image_key
        self.seal = seal

    def exists(self) -> bool:
        """Whether the file is there."""
        return self.file.is_file()

    def begin(self) -> None:
        """An empty manifest where there is none: the mark of a cohort's folder, before anything else is in it."""
        if not self.exists():
            self._write([])

    def read(self) -> list[dict[str, Any]]:
        """The entries.

        Raises:
            ValueError: when this program did not write the file, or an entry leads out of ``images`` beside it.
        """
        if self.file.is_symlink():
            raise ValueError(f"folder: {self.file} is a link; expected a file that this program wrote")
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"folder: {self.file} is no manifest ({error}); nothing was touched") from error
        if not isinstance(content, dict) or content.get(MARK) != _WRITER or not isinstance(content.get(LIST), list):
            raise ValueError(
                f"folder: {self.file} is not a manifest that this program wrote, in this format; expected a new "
                "folder; nothing was touched"
            )
        for row in content[LIST]:
            self._check(row)
        try:
            return _entries(content, self.file, self.image_key)
        except ValueError as error:
            raise ValueError(f"folder: {error}; nothing was touched") from error

    def publish(self, row: Mapping[str, Any], made: Path) -> Path:
        """Move a finished copy, with what lies beside it, from its temporary folder to its place.

        Its entry, with the checksum of each part, is there before it is, so that a kill leaves nothing that is not
        known to be ours.

        Args:
            row: its entry.
            made: the copy, in a folder of its own.

        Returns:
            Its place.

        Raises:
            FileExistsError: when something else is there.
        """
        images = self.file.parent / IMAGES
        parts = [*(part for part in sorted(made.parent.iterdir()) if part != made), made]  # a header last
        old = next((one for one in self.read() if one.get(self.image_key) == row[self.image_key]), None)
        here = [images / part.name for part in parts if _is_there(images / part.name)]
        for goal in here:
            if old is None or not _is_own(goal, old):
                raise FileExistsError(f"folder: {goal} is there and not what this program wrote; nothing was replaced")
        with writing(made):
            for goal in here:
                _remove(goal)
            files = {part.name: checksum(part) for part in parts}
            self.add({**row, MADE: {**row[MADE], PARTS: files}})
            for part in parts:
                os.rename(part, images / part.name)
        return images / made.name

    def state(self, row: Mapping[str, Any]) -> str:
        """Of a copy: ``"whole"``, ``"gone"``, or ``"changed"`` where it is not what was written."""
        copy = self.file.parent / row[self.image_key]
        if not _is_there(copy):
            return "gone"
        return "changed" if copy.is_symlink() or checksum(copy) != row[MADE]["sha256"] else "whole"

    def remove(self, row: Mapping[str, Any]) -> list[Path]:
        """Take away the copy of an entry; what is not as it was written stays, and is returned."""
        left = []
        for name in row[MADE].get(PARTS, {}):
            goal = self.file.parent / IMAGES / name
            if not _is_there(goal):
                continue
            if _is_own(goal, row):
                _remove(goal)
            else:
                left.append(goal)
        return left

    def others(self, sources: Sequence[str]) -> list[dict[str, Any]]:
        """The entries of other source files than these."""
        wanted = {self.identity_of(source) for source in sources}
        return [row for row in self.read() if self.identity(row) not in wanted]

    def identity(self, row: Mapping[str, Any]) -> str:
        """What tells an entry's source file from others."""
        return str(row[MADE]["case"]) if self.seal is not None else os.path.abspath(row[MADE]["source"])

    def identity_of(self, source: str | Path) -> str:
        """The same, of a file."""
        return self.seal(source) if self.seal is not None else os.path.abspath(source)

    def drop(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Forget these entries."""
        self._write([row for row in self.read() if row not in rows])

    def _check(self, row: Any) -> None:
        """An entry leads to a file or folder straight in ``images``, and says where it came from.

        Raises:
            ValueError: when it does not.
        """
        if not isinstance(row, dict):
            row = {}
        made = row.get(MADE)
        parts = made.get(PARTS, {}) if isinstance(made, dict) else None
        copy = row.get(self.image_key, f"{IMAGES}/another key's")
        inside = isinstance(copy, str) and copy.startswith(f"{IMAGES}/") and isinstance(parts, dict)
        names = (str(copy).removeprefix(f"{IMAGES}/"), *(parts or ()))
        inside = inside and all(re.fullmatch(r"(?!\.{1,2}$)[^/\\]+", name) for name in names)
        told = isinstance(made, dict) and isinstance(made.get("sha256"), str)
        told = told and (isinstance(made.get("source"), str) or isinstance(made.get("case"), str))
        if not inside or not told:
            raise ValueError(
                f"folder: {self.file} has an entry that this program does not write ({self.image_key}: {copy!r}); "
                f"expected a file in {IMAGES}/; nothing was touched"
            )

    def add(self, row: Mapping[str, Any]) -> None:
        """An entry more, or in place of the one of the same file; the manifest is written whole."""
        rows = [old for old in self.read() if old.get(self.image_key) != row[self.image_key]]
        self._write(sorted([*rows, dict(row)], key=lambda one: str(one.get(self.image_key))))

    def files(self) -> list[Path]:
        """The copies."""
        return [self.file.parent / row[self.image_key] for row in self.read() if self.image_key in row]

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_whole(
            self.file,
            json.dumps({MARK: _WRITER, "version": ManifestFile.VERSION, LIST: rows}, indent=2, default=_plain_value)
            + "\n",
            overwrite=True,
        )


def read_manifest(file: Path, image_key: str | None = None) -> list[dict[str, Any]]:
    """The entries of a manifest, which must be one, with images that lie below its folder.

    Args:
        file: the manifest.
        image_key: of the image in every item; ``None`` does not look at its path.

    Raises:
        ValueError: naming the file and what is wrong in it: no JSON, no manifest, of a newer version, an image that
            lies elsewhere.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{file} is no JSON: {error}") from error
    return _entries(content, file, image_key)


def _entries(content: Any, file: Path, image_key: str | None) -> list[dict[str, Any]]:
    try:
        return validated(ManifestFile, content, file).rows(image_key)
    except ValueError as error:
        where = "" if str(file) in str(error) else f"{file}: "
        raise ValueError(f"{where}{error}; expected a manifest that monai-smia export wrote") from None


def entry(
    item: Mapping[Any, Any],
    image_key: str,
    source: Path,
    written: Path,
    attack: Attack | None,
    *,
    unit: str,
    seed: int,
    **numbers: Any,
) -> dict[str, Any]:
    """The item of the data list with the adversarial file, and how it was made.

    Args:
        item: of the data list.
        image_key: of the image.
        source, written: the file attacked and its copy.
        attack: what was run, its eps in `unit`; ``None`` where it is not known.
        unit: of eps.
        seed: of its randomness.
        numbers: what else is told, such as losses.
    """
    made = {
        "source": str(source.absolute()),
        "source_sha256": checksum(source),
        "sha256": checksum(written),
        "attack": None if attack is None else repr(attack),
        "eps": None if attack is None else torch.as_tensor(attack.eps, dtype=torch.float64).tolist(),
        "unit": unit,
        "seed": seed,
        **numbers,
        "versions": {"monai_smia": version("monai-smia"), "monai": monai.__version__, "torch": str(torch.__version__)},
    }
    others = {str(key): _absolute(value) for key, value in item.items() if key != image_key}
    return {image_key: f"{IMAGES}/{written.name}", **others, MADE: made}


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _is_own(path: Path, row: Mapping[str, Any]) -> bool:
    """Whether something is what was written there, by the entry's checksum."""
    return not path.is_symlink() and checksum(path) == row[MADE].get(PARTS, {}).get(path.name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _absolute(value: Any) -> Any:
    """Paths of labels as they are on this machine, also in lists; anything else as it is."""
    if isinstance(value, (list, tuple)):
        return [_absolute(one) for one in value]
    return os.path.abspath(value) if isinstance(value, (str, Path)) and _is_path(str(value)) else value


def _is_path(text: str) -> bool:
    """A file, or a folder that is more than one word: the name of a class may be that of a folder here."""
    return os.path.isfile(text) or (os.path.isdir(text) and os.path.basename(text) != text)


def _plain_value(value: Any) -> Any:
    """Numbers of numpy and torch, and arrays of them, as numbers; anything else as text."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray, torch.Tensor)) else str(value)
