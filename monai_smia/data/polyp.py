# SPDX-License-Identifier: Apache-2.0
"""Colonoscopy frames with polyp masks: this project's own layout and that of Kvasir-SEG."""

from __future__ import annotations

import os

from .checks import Item, dataset_folder, require_files, visible_files
from .dataset_json import DATASET_JSON, listed
from .groups import with_groups
from .splits import split_by_rule

_FOLDERS = (".", "Kvasir-SEG", "kvasir-seg")


def polyp_datalist(dataset_dir: str | os.PathLike[str], split: str) -> list[Item]:
    """List the frame and the polyp mask of each case of one split.

    Two layouts are read. Ours: a ``dataset.json`` with ``image`` and ``label``. Kvasir-SEG as it is distributed:
    ``images/*.jpg`` and ``masks/*.jpg`` of the same names, in the folder or in its ``Kvasir-SEG/`` or ``kvasir-seg/``;
    other files, such as ``kavsir_bboxes.json``, are not read. It has no split, so its frames are split by the rule of
    `monai_smia.data.splits`. It does not say which frames are of one patient: each frame is a group of its own, and
    two of one patient may fall into different splits. Its masks are JPEG, with values near 0 and near 255 instead of
    two values only: take a threshold of 128.

    Args:
        dataset_dir: the folder. When it holds both layouts, ours is read.
        split: "training", "validation" or "test".

    Returns:
        One dictionary for each case: ``image`` and ``label`` are paths, ``group`` and ``group_kind`` as
        `monai_smia.data.groups` has them: by "image", for the patients are not known.

    Raises:
        FileNotFoundError: the folder, both layouts, or a file of the split is missing, also an image whose mask is
            there; names the first one.
        ValueError: the split does not exist (lists those that do), or a case has no image or label.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp())
        >>> for part in ("images", "masks"):
        ...     (folder / part).mkdir()
        ...     (folder / part / "a.jpg").touch()
        >>> [Path(item["label"]).parent.name for item in polyp_datalist(folder, "test")]
        ['masks']

    Source:
        Jha et al., "Kvasir-SEG: A Segmented Polyp Dataset", MMM 2020, https://datasets.simula.no/kvasir-seg/
    """
    folder = dataset_folder(dataset_dir)
    if (folder / DATASET_JSON).is_file():
        return listed(folder, split, ("image", "label"))
    root = next((folder / name for name in _FOLDERS if (folder / name / "images").is_dir()), folder)
    parts = (root / "images", root / "masks")
    names = sorted({path.name for part in parts for path in visible_files(part, ".jpg")})
    if not names:
        raise FileNotFoundError(
            f"dataset_dir: expected {folder / DATASET_JSON}, or images/*.jpg and masks/*.jpg in {folder} or "
            f"{folder / _FOLDERS[1]}; found neither"
        )
    cases: list[Item] = [{"image": str(parts[0] / name), "label": str(parts[1] / name)} for name in names]
    return require_files(split_by_rule(with_groups(cases), split))
