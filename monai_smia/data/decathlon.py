# SPDX-License-Identifier: Apache-2.0
"""Tasks of the Medical Segmentation Decathlon: this project's own layout and the official one."""

from __future__ import annotations

import os
from pathlib import Path

from .checks import Item, dataset_folder, require_files
from .dataset_json import listed, read_dataset_json
from .splits import split_by_rule

_LABELLED = "training"


def decathlon_datalist(dataset_dir: str | os.PathLike[str], split: str) -> list[Item]:
    """List the image and the segmentation of each case of one split.

    Two layouts are read, both from the folder's ``dataset.json``: files that it does not list, such as the ``._*`` of
    macOS, do not matter. Ours lists labelled cases under "training", "validation" and "test". The official one, as in
    ``Task04_Hippocampus``, lists labelled cases under "training" only; they are split by the rule of
    `monai_smia.data.splits`, with each case a group of its own. Its "test" has no segmentations and is not used.

    Args:
        dataset_dir: the folder with the ``dataset.json``.
        split: "training", "validation" or "test".

    Returns:
        One dictionary for each case: ``image`` and ``label`` are paths.

    Raises:
        FileNotFoundError: the folder, its ``dataset.json`` or a file of the split is missing; names the first one.
        ValueError: the split does not exist (lists those that do), or a case has no image or label.

    Example:
        >>> import json, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for part in ("imagesTr", "labelsTr"):
        ...     (folder / part).mkdir()
        ...     (folder / part / "a.nii.gz").touch()
        >>> case = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
        >>> _ = (folder / "dataset.json").write_text(json.dumps({"training": [case], "test": ["./imagesTs/b.nii.gz"]}))
        >>> [Path(item["label"]).name for item in decathlon_datalist(folder, "test")]
        ['a.nii.gz']

    Source:
        Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications 13, 2022,
        https://doi.org/10.1038/s41467-022-30695-9; http://medicaldecathlon.com
    """
    folder = dataset_folder(dataset_dir)
    keys = ("image", "label")
    if isinstance(read_dataset_json(folder).get("validation"), list):
        return listed(folder, split, keys)
    cases = listed(folder, _LABELLED, keys, check_files=False)
    return require_files(split_by_rule(cases, split, lambda case: Path(case["image"]).name))
