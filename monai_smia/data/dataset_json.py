# SPDX-License-Identifier: Apache-2.0
"""The layout with a ``dataset.json``: lists of cases by split, with paths relative to the folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .checks import Item, one_of, require_files
from .groups import with_groups

DATASET_JSON = "dataset.json"
_PATHS = ("image", "label")


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """The content of the folder's ``dataset.json``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or not an object.
    """
    path = folder / DATASET_JSON
    if not path.is_file():
        raise FileNotFoundError(f"dataset_dir: expected {path}, which does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"dataset_dir: {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"dataset_dir: expected an object in {path}, got a {type(content).__name__}")
    return content


def listed(folder: Path, split: str, keys: Sequence[str], *, check_files: bool = True) -> list[Item]:
    """The cases of one split as the folder's ``dataset.json`` lists them, in its order.

    Args:
        folder: the folder with the ``dataset.json``; its ``image`` and ``label`` are relative to it.
        split: a list of the file: "training", "validation" or "test".
        keys: what every case has to have.
        check_files: whether the files have to exist. False where the list is split further and checked then.

    Returns:
        One dictionary for each case, ``image`` and ``label`` (where there is one) joined to the folder, the other
        values as they are, and its ``group`` and ``group_kind`` (`with_groups`).

    Raises:
        FileNotFoundError: the ``dataset.json`` or a listed file is missing; names the first one.
        ValueError: the file has no such list (lists those it has), the list is empty, a case lacks a key, or its
            ``image`` or ``label`` is no text.
    """
    content = read_dataset_json(folder)
    one_of("split", split, [name for name, value in content.items() if isinstance(value, list)])
    if not content[split]:
        raise ValueError(f"split: {split!r} is empty in {folder / DATASET_JSON}")
    items = [_joined(folder, split, number, case, keys) for number, case in enumerate(content[split])]
    return with_groups(require_files(items) if check_files else items)


def _joined(folder: Path, split: str, number: int, case: object, keys: Sequence[str]) -> Item:
    if (
        not isinstance(case, dict)
        or any(key not in case for key in keys)
        or not all(isinstance(case.get(key, ""), str) for key in _PATHS)
    ):
        raise ValueError(
            f"dataset_dir: expected {', '.join(keys)} in every case of {split!r} in {folder / DATASET_JSON}, "
            f"case {number} (counted from 0) is {case!r}"
        )
    return {key: str(folder / value) if key in _PATHS else value for key, value in case.items()}
