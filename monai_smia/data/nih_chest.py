# SPDX-License-Identifier: Apache-2.0
"""ChestX-ray14 of the US National Institutes of Health: a table of findings, folders of images, a split by patient."""

from __future__ import annotations

from pathlib import Path

from .checks import Item, one_of
from .groups import with_groups
from .splits import SPLITS, split_by_rule, split_of_groups
from .tables import read_table

_TABLES = "Data_Entry_2017*.csv"
_TRAIN_VAL, _TEST = "train_val_list.txt", "test_list.txt"
_IMAGE, _FINDINGS, _PATIENT = "Image Index", "Finding Labels", "Patient ID"


def finding_key(finding: str) -> str:
    """The key of a finding in an item: lower case, spaces as underscores.

    Example:
        >>> finding_key("No Finding")
        'no_finding'
    """
    return finding.lower().replace(" ", "_")


def nih_table(folder: Path) -> Path | None:
    """The folder's ``Data_Entry_2017*.csv``, the last by name (the corrected one of 2020) of several; None without."""
    tables = sorted(folder.glob(_TABLES))
    return tables[-1] if tables else None


def nih_datalist(folder: Path, table: Path, split: str, target: str) -> list[Item]:
    """The X-rays of one split, sorted by patient, with whether they show one finding.

    Args:
        folder: holds ``images*/*.png`` or ``images_*/images/*.png``, and ``train_val_list.txt`` and ``test_list.txt``
            or neither.
        table: the CSV file with ``Image Index``, ``Finding Labels`` (separated by ``|``) and ``Patient ID``.
        split: with the two lists, "test" is theirs and "validation" is taken from the other by patient, by the rule of
            `monai_smia.data.splits`; without, all three follow the rule by patient.
        target: the key of a finding (`finding_key`).

    Returns:
        One dictionary for each X-ray: ``image``, `target` (1 if the finding is among its labels, else 0), ``patient``,
        and the patient as its ``group``.

    Raises:
        FileNotFoundError: one of the two lists is missing.
        ValueError: the split or the finding does not exist (lists those that do), or lists and table disagree.
    """
    one_of("split", split, SPLITS)
    rows = [row for _, row in read_table(table, (_IMAGE, _FINDINGS, _PATIENT))]
    one_of("target", target, sorted({finding_key(name) for row in rows for name in row[_FINDINGS].split("|")}))
    where = _image_paths(folder)
    cases = with_groups(
        {
            # An image that no folder has keeps the place where it is expected, so that the check names it.
            "image": str(where.get(row[_IMAGE], folder / "images" / row[_IMAGE])),
            target: int(target in map(finding_key, row[_FINDINGS].split("|"))),
            "patient": row[_PATIENT],
        }
        for row in sorted(rows, key=lambda row: (row[_PATIENT], row[_IMAGE]))
    )
    lists = [folder / _TRAIN_VAL, folder / _TEST]
    if not any(path.is_file() for path in lists):
        return split_by_rule(cases, split)
    return _official(cases, split, *lists)


def _image_paths(folder: Path) -> dict[str, Path]:
    parts = [part / inner for part in sorted(folder.glob("images*")) for inner in (".", "images")]
    return {path.name: path for part in parts if part.is_dir() for path in part.glob("*.png")}


def _official(cases: list[Item], split: str, train_val_list: Path, test_list: Path) -> list[Item]:
    train_val, test = _names(train_val_list), _names(test_list)
    listed = {Path(case["image"]).name for case in cases}
    if listed != train_val | test or train_val & test:
        odd = min((listed ^ (train_val | test)) | (train_val & test))
        raise ValueError(
            f"dataset_dir: expected every image of the table in one of {train_val_list.name} and {test_list.name}, and "
            f"every image of these in the table; {odd} is not so"
        )
    held_out = [case for case in cases if Path(case["image"]).name in test]
    pool = [case for case in cases if Path(case["image"]).name in train_val]
    shared = {case["patient"] for case in held_out} & {case["patient"] for case in pool}
    if shared:
        raise ValueError(f"dataset_dir: expected no patient in both official lists, {min(shared)} is")
    # The rule's test joins training here: the official list has the test.
    assigned = split_of_groups(case["patient"] for case in pool)
    chosen = {
        "test": held_out,
        "validation": [case for case in pool if assigned[case["patient"]] == "validation"],
        "training": [case for case in pool if assigned[case["patient"]] != "validation"],
    }[split]
    if not chosen:
        raise ValueError(f"split: {split!r} has no case: {len(assigned)} patients are in {train_val_list.name}")
    return chosen


def _names(path: Path) -> set[str]:
    if not path.is_file():
        raise FileNotFoundError(f"dataset_dir: the official split needs both lists, expected {path}")
    return set(path.read_text(encoding="utf-8").split())
