# SPDX-License-Identifier: Apache-2.0
"""What every data list checks at its border: the folder, the names chosen from it, and the files that it lists."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Item = dict[str, Any]
FILE_KEYS = ("image", "label", "boxes")


def dataset_folder(dataset_dir: str | os.PathLike[str]) -> Path:
    """The folder as a path.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"dataset_dir: expected a folder, {folder} is none")
    return folder


def one_of(argument: str, value: str, exist: Iterable[str]) -> str:
    """`value`, which has to be one of the names that exist.

    Raises:
        ValueError: it is not; names the argument, the value and all names that exist.

    Example:
        >>> one_of("split", "test", ("training", "test"))
        'test'
    """
    names = list(exist)
    if value not in names:
        raise ValueError(f"{argument}: {value!r} does not exist; there are {', '.join(names)}")
    return value


def visible_files(folder: Path, *suffixes: str) -> list[Path]:
    """The files of a folder with these suffixes (in any case), sorted by name; hidden ones (``._a.png``) left out."""
    return sorted(
        path
        for path in folder.glob("*")
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def require_files(items: list[Item]) -> list[Item]:
    """The same items, every file of which exists: the paths under ``image``, ``label`` and ``boxes``.

    Raises:
        FileNotFoundError: a file is missing; names the first one, and the key of the item that lists it.
    """
    for item in items:
        for key in FILE_KEYS:
            value = item.get(key, ())
            for name in (value,) if isinstance(value, str) else value:
                if not os.path.isfile(name):
                    raise FileNotFoundError(f"dataset_dir: a listed file ({key!r}) is missing, expected {name}")
    return items
