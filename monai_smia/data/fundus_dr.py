# SPDX-License-Identifier: Apache-2.0
"""Fundus photographs with grades of diabetic retinopathy: this project's own layout and that of APTOS-2019."""

from __future__ import annotations

import os
from pathlib import Path

from .checks import Item, dataset_folder, require_files
from .dataset_json import DATASET_JSON, listed
from .groups import with_groups
from .splits import split_by_rule
from .tables import read_table

_TABLE, _IMAGES, _GRADES = "train.csv", "train_images", ("0", "1", "2", "3", "4")


def fundus_dr_datalist(dataset_dir: str | os.PathLike[str], split: str) -> list[Item]:
    """List the photograph and the grade of each case of one split.

    Two layouts are read. Ours: a ``dataset.json`` with ``image``, ``grade`` (0 none, 1 non-proliferative,
    2 proliferative) and ``patient``, split by patient. APTOS-2019 as it is distributed on Kaggle: ``train.csv`` with
    ``id_code,diagnosis`` and ``train_images/<id_code>.png``, grades 0 none, 1 mild, 2 moderate, 3 severe,
    4 proliferative. It has no split with labels, so its cases are split by the rule of `monai_smia.data.splits`. It
    does not say which photographs are of one patient: each is a group of its own, and two of one patient may fall into
    different splits. Its ``test.csv`` has no grades and is not used.

    Args:
        dataset_dir: the folder. When it holds both layouts, ours is read.
        split: "training", "validation" or "test".

    Returns:
        One dictionary for each case: ``image`` is a path, ``grade`` a number; ours has further keys.
        ``group`` and ``group_kind`` as `monai_smia.data.groups` has them: ours by "patient", APTOS by "image".

    Raises:
        FileNotFoundError: the folder, its ``dataset.json`` or ``train.csv``, or a file of the split is missing; names
            the first one.
        ValueError: the split does not exist (lists those that do), or a case has no grade.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "train_images").mkdir()
        >>> (folder / "train_images" / "000c1434d8d7.png").touch()
        >>> _ = (folder / "train.csv").write_text("id_code,diagnosis\\n000c1434d8d7,2\\n")
        >>> [(Path(item["image"]).name, item["grade"]) for item in fundus_dr_datalist(folder, "test")]
        [('000c1434d8d7.png', 2)]

    Source:
        APTOS 2019 Blindness Detection, https://www.kaggle.com/competitions/aptos2019-blindness-detection
    """
    folder = dataset_folder(dataset_dir)
    if (folder / DATASET_JSON).is_file():
        return listed(folder, split, ("image", "grade"))
    if not (folder / _TABLE).is_file():
        raise FileNotFoundError(f"dataset_dir: expected {folder / DATASET_JSON} or {folder / _TABLE}; found neither")
    return require_files(split_by_rule(with_groups(_aptos(folder)), split))


def _aptos(folder: Path) -> list[Item]:
    cases: list[Item] = []
    for line, row in read_table(folder / _TABLE, ("id_code", "diagnosis")):
        if row["diagnosis"] not in _GRADES:
            raise ValueError(
                f"{folder / _TABLE}, line {line}: expected a diagnosis from 0 to 4, got {row['diagnosis']!r}"
            )
        image = folder / _IMAGES / f"{row['id_code']}.png"
        cases.append({"image": str(image), "grade": int(row["diagnosis"])})
    return cases
