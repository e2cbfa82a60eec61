# SPDX-License-Identifier: Apache-2.0
"""Chest CTs with lung masks: this project's own layout and that of COVID-19-CT-Seg."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .groups import GROUP, GROUP_KIND, UNKNOWN

_IMAGE, _LUNGS = "_image.nii.gz", "_lungs.nii.gz"
_COVID_FOLDER, _COVID_MASKS = "COVID-19-CT-Seg_20cases", "lung_mask"
_COVID_PATTERNS = ("coronacases_*.nii.gz", "radiopaedia_*.nii.gz")


def lung_ct_datalist(
    dataset_dir: str | os.PathLike[str], cases: Sequence[str] | None = None, *, exclude: Sequence[str] | None = None
) -> list[dict[str, str]]:
    """List the image and the lung mask of each case in a folder of chest CTs.

    Two layouts are read. Ours: ``<case>_image.nii.gz`` and ``<case>_lungs.nii.gz``. COVID-19-CT-Seg as it is
    distributed: ``coronacases_*.nii.gz`` and ``radiopaedia_*.nii.gz`` in the folder or in its
    ``COVID-19-CT-Seg_20cases/``, with masks of the same names in the folder's ``lung_mask/`` (or in ``lung_mask/``
    beside the images). In both, 1 is the patient's left lung and 2 the right lung.

    Args:
        dataset_dir: the folder. When it holds both layouts, ours is read.
        cases: names of the cases to list, in this order: what stands before ``_image.nii.gz`` or ``.nii.gz``. None for
            all, sorted by name.
        exclude: names to leave out when ``cases`` is None: those that were trained on. Unknown names are ignored.

    Returns:
        One dictionary for each case: ``image`` and ``label`` are paths, ``group`` is the name of the case and
        ``group_kind`` "image": neither layout says whether two volumes are of one patient.

    Raises:
        FileNotFoundError: the folder, the images or a listed case's mask is missing; names the first one missed.
        ValueError: ``cases`` is a string, is empty or names a case that the folder does not have, or ``exclude`` leaves
            none; lists what the folder has.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a_image.nii.gz", "a_lungs.nii.gz"):
        ...     (folder / name).touch()
        >>> [Path(item["label"]).name for item in lung_ct_datalist(folder)]
        ['a_lungs.nii.gz']
    """
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"dataset_dir: expected a folder, {folder} is none")
    found = _own_layout(folder) or _covid_layout(folder)
    if not found:
        covid = " or ".join(_COVID_PATTERNS)
        raise FileNotFoundError(
            f"dataset_dir: expected {folder / f'<case>{_IMAGE}'}, or {covid} in {folder} or {folder / _COVID_FOLDER}; "
            "found neither"
        )
    return [_existing(case, *found[case]) for case in _selected(found, cases, exclude or ())]


def _own_layout(folder: Path) -> dict[str, tuple[Path, Path]]:
    names = sorted(path.name.removesuffix(_IMAGE) for path in folder.glob(f"*{_IMAGE}"))
    return {name: (folder / f"{name}{_IMAGE}", folder / f"{name}{_LUNGS}") for name in names}


def _covid_layout(folder: Path) -> dict[str, tuple[Path, Path]]:
    for images in (folder, folder / _COVID_FOLDER):
        files = sorted(path for pattern in _COVID_PATTERNS for path in images.glob(pattern))
        if files:
            masks = images / _COVID_MASKS if (images / _COVID_MASKS).is_dir() else folder / _COVID_MASKS
            return {path.name.removesuffix(".nii.gz"): (path, masks / path.name) for path in files}
    return {}


def _selected(found: dict[str, tuple[Path, Path]], cases: Sequence[str] | None, exclude: Sequence[str]) -> list[str]:
    if cases is None:
        kept = [case for case in found if case not in exclude]
        if not kept:
            raise ValueError(f"exclude: leaves no case of those in the folder: {', '.join(found)}")
        return kept
    if isinstance(cases, str) or not cases:
        raise ValueError(f"cases: expected a list of case names or None, got {cases!r}")
    unknown = [case for case in cases if case not in found]
    if unknown:
        raise ValueError(f"cases: {unknown[0]!r} does not exist; the folder has {', '.join(found)}")
    return list(cases)


def _existing(case: str, image: Path, label: Path) -> dict[str, str]:
    if not label.is_file():
        raise FileNotFoundError(f"dataset_dir: the lung mask of case {case!r} is missing, expected {label}")
    return {"image": str(image), "label": str(label), GROUP: case, GROUP_KIND: UNKNOWN}
