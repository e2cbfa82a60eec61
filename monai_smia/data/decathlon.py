# SPDX-License-Identifier: Apache-2.0
"""Tasks of the Medical Segmentation Decathlon: this project's own layout and the official one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .checks import Item, dataset_folder, require_files
from .dataset_json import listed, read_dataset_json
from .groups import GROUP, GROUP_KIND, UNKNOWN
from .splits import split_by_rule

_LABELLED = "training"
_SIDE = re.compile(r"hippocampus_(\d+)\.nii(?:\.gz)?")


def decathlon_datalist(dataset_dir: str | os.PathLike[str], split: str) -> list[Item]:
    """List the image and the segmentation of each case of one split.

    Two layouts are read, both from the folder's ``dataset.json``: files that it does not list, such as the ``._*`` of
    macOS, do not matter. Ours lists labelled cases under "training", "validation" and "test". The official one, as in
    ``Task04_Hippocampus``, lists labelled cases under "training" only; they are split by group, by the rule of
    `monai_smia.data.splits`. Its "test" has no segmentations and is not used.

    Task04's ``hippocampus_023`` and ``hippocampus_024`` are the two sides of one subject, number 12: the cases 2k - 1
    and 2k are subject k, (number + 1) // 2, and their group. Nothing says so in the data set; the label volumes of such
    pairs correlate by 0.92, those of other pairs by 0.07. In other tasks each case is a group of its own.

    Args:
        dataset_dir: the folder with the ``dataset.json``.
        split: "training", "validation" or "test".

    Returns:
        One dictionary for each case: ``image`` and ``label`` are paths, ``subject`` (in Task04 only) the number of the
        person, ``group`` and ``group_kind`` as `monai_smia.data.groups` has them: "subject", else "image".

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
        return _by_subject(listed(folder, split, keys))
    cases = sorted(_by_subject(listed(folder, _LABELLED, keys, check_files=False)), key=lambda case: case["image"])
    return require_files(split_by_rule(cases, split))


def _by_subject(cases: list[Item]) -> list[Item]:
    """The cases with their subjects, where their names are Task04's."""
    return [
        {**case, **_subject(int(side[1]))} if case[GROUP_KIND] == UNKNOWN and side is not None else case
        for case, side in ((case, _SIDE.fullmatch(Path(case["image"]).name)) for case in cases)
    ]


def _subject(number: int) -> Item:
    subject = (number + 1) // 2
    return {"subject": subject, GROUP: f"{subject:03d}", GROUP_KIND: "subject"}
