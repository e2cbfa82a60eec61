# SPDX-License-Identifier: Apache-2.0
"""The chest X-rays of Shenzhen and Montgomery County, as the US National Library of Medicine distributes them."""

from __future__ import annotations

import re
from pathlib import Path

from .checks import Item, visible_files

_SETS = (".", "ChinaSet_AllFiles", "MontgomerySet", "Lung Segmentation")
_IMAGES, _LEFT, _RIGHT = "CXR_png", "ManualMask/leftMask", "ManualMask/rightMask"
_MASKS = ("mask", "mask/mask", "masks")
_NAME = re.compile(r"(?:CHNCXR|MCUCXR)_\d+_([01])")


def nlm_images(folder: Path) -> Path | None:
    """The folder's ``CXR_png/``, also inside the folder that the archives unpack to; None where there is none.

    Raises:
        ValueError: there are several, and their masks differ in kind: `dataset_dir` has to name one.
    """
    found = [folder / name / _IMAGES for name in _SETS if (folder / name / _IMAGES).is_dir()]
    if len(found) > 1:
        raise ValueError(f"dataset_dir: expected one data set, got {' and '.join(str(path.parent) for path in found)}")
    return found[0] if found else None


def nlm_cases(folder: Path, images: Path) -> list[Item]:
    """Every X-ray of `images`: ``image``, ``tuberculosis`` (0 or 1, the end of its name) and its ``label`` if any.

    Raises:
        FileNotFoundError: there is no X-ray.
        ValueError: a PNG is not named as the data sets name theirs.
    """
    cases: list[Item] = []
    for path in visible_files(images, ".png"):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            raise ValueError(f"dataset_dir: expected names such as CHNCXR_0001_0.png or MCUCXR_0001_0.png, got {path}")
        label = _mask(folder, images.parent, path)
        cases.append({"image": str(path), **({} if label is None else {"label": label}), "tuberculosis": int(match[1])})
    if not cases:
        raise FileNotFoundError(f"dataset_dir: expected X-rays (*.png) in {images}, found none")
    return cases


def _mask(folder: Path, root: Path, image: Path) -> str | list[str] | None:
    sides = [root / _LEFT / image.name, root / _RIGHT / image.name]
    if any(side.is_file() for side in sides):
        return [str(side) for side in sides]
    for parent in (root, folder):
        for name in _MASKS:
            for mask in (parent / name / f"{image.stem}_mask.png", parent / name / image.name):
                if mask.is_file():
                    return str(mask)
    return None
