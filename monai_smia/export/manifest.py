# SPDX-License-Identifier: Apache-2.0
"""`Manifest`: a MONAI data list of adversarial files that says where each came from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

from monai_smia.attacks import Attack
from monai_smia.export.stored import checksum
from monai_smia.reports.files import write_whole
from monai_smia.reports.schema import ManifestFile, validated

LIST = "adversarial"
"""The key of the data list in the file."""

MADE = "made"
"""The key, in every item, of how it was made."""

IMAGES = "images"
"""The folder of the copies, beside the file."""


class Manifest:
    """A JSON file ``{"adversarial": [...]}``; each entry is an item of a data list, with what made it under ``made``.

    ``monai.data.load_decathlon_datalist(file, data_list_key="adversarial")`` reads it. Paths of images are relative to
    the file, those of sources are absolute.

    Args:
        file: where it lies; an existing one is gone on with.
        image_key: of the image in every item.
    """

    def __init__(self, file: Path, image_key: str) -> None:
        self.file = file
        self.image_key = image_key

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
            ValueError: as `read_manifest`.
        """
        return read_manifest(self.file, self.image_key)

    def add(self, row: Mapping[str, Any]) -> None:
        """An entry more, or in place of the one of the same file; the manifest is written whole."""
        rows = [old for old in self.read() if old.get(self.image_key) != row[self.image_key]]
        self._write(sorted([*rows, dict(row)], key=lambda one: str(one.get(self.image_key))))

    def files(self) -> list[Path]:
        """The copies."""
        return [self.file.parent / row[self.image_key] for row in self.read() if self.image_key in row]

    def keep(self, sources: Sequence[str]) -> list[dict[str, Any]]:
        """Only the entries of these source files, those whose cases are done; the others are returned."""
        wanted = {os.path.abspath(source) for source in sources}
        rows = self.read()
        kept = [row for row in rows if os.path.abspath(row[MADE]["source"]) in wanted]
        self._write(kept)
        return [row for row in rows if row not in kept]

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_whole(
            self.file,
            json.dumps({"version": ManifestFile.VERSION, LIST: rows}, indent=2, default=_plain_value) + "\n",
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
    except ValueError as error:  # of the encoding too
        raise ValueError(f"{file}: expected JSON; {error}") from error
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
