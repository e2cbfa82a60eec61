# SPDX-License-Identifier: Apache-2.0
"""Endoscopy frames with boxes of artefacts: the layout of the EAD-2019 challenge."""

from __future__ import annotations

import os
from pathlib import Path

from .checks import Item, dataset_folder, require_files, visible_files
from .groups import with_groups
from .splits import split_by_rule

_IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
_CLASS_LIST = "class_list.txt"
_NOT_BOXES = ("class_list", "classes", "readme", "license")
_CLASSES = ("specularity", "saturation", "artifact", "blur", "contrast", "bubbles", "instrument")


def ead2019_datalist(dataset_dir: str | os.PathLike[str], split: str | None = None) -> list[Item]:
    """List the frame and the text with the boxes of each case.

    A frame is a JPEG, PNG or TIFF, its boxes a text of the same name in YOLO's format, both in the folder or frames in
    ``images/`` and texts in ``annotations/``. An image named ``<name>_mask`` is one of the challenge's segmentations
    and no frame; texts named ``class_list``, ``classes``, ``readme`` or ``license`` hold no boxes. The challenge has no
    split and does not say which frames are of one video: `split` follows the rule of `monai_smia.data.splits` by frame:
    each is a group of its own, and two frames of one video may fall into different splits.

    Args:
        dataset_dir: the folder.
        split: "training", "validation" or "test"; None for all frames.

    Returns:
        One dictionary for each frame, sorted by name: ``image`` and ``boxes`` are paths, for `read_yolo_boxes`. MONAI
        loads a TIFF only where `LoadImaged` is told its reader, such as ``reader="PILReader"``. ``group`` and
        ``group_kind`` as `monai_smia.data.groups` has them: by "image".

    Raises:
        FileNotFoundError: the folder, its frames, a frame's text or a text's frame is missing; names the first one.
        ValueError: the split does not exist (lists those that do) or is empty, or two frames differ only in suffix.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("00003.jpg", "00003.txt", "class_list.txt"):
        ...     (folder / name).touch()
        >>> [Path(item["boxes"]).name for item in ead2019_datalist(folder)]
        ['00003.txt']

    Source:
        Ali et al., "Endoscopy artifact detection (EAD 2019) challenge dataset", 2019, https://arxiv.org/abs/1905.03209
    """
    folder = dataset_folder(dataset_dir)
    images, texts = folder, folder
    if (folder / "images").is_dir():
        images, texts = folder / "images", folder / "annotations"
    frames: dict[str, Path] = {}
    for path in visible_files(images, *_IMAGES):
        if path.stem in frames:
            raise ValueError(f"dataset_dir: {frames[path.stem]} and {path} are two frames of one name")
        if not path.stem.endswith("_mask"):
            frames[path.stem] = path
    if not frames:
        raise FileNotFoundError(f"dataset_dir: expected frames ({', '.join(_IMAGES)}) in {images}, found none")
    for path in visible_files(texts, ".txt"):
        if path.stem not in frames and path.stem.lower() not in _NOT_BOXES:
            raise FileNotFoundError(f"dataset_dir: the frame of {path} is missing, expected {images / path.stem}.jpg")
    cases = with_groups(
        {"image": str(path), "boxes": str(texts / f"{name}.txt")} for name, path in sorted(frames.items())
    )
    if split is None:
        return require_files(cases)
    return require_files(split_by_rule(cases, split))


def ead2019_classes(dataset_dir: str | os.PathLike[str]) -> list[str]:
    """The names of the classes, at the index that the texts of the boxes use.

    Args:
        dataset_dir: the folder. Its ``class_list.txt`` (or that of ``annotations/``), one name a line, is read where
            there is one; else the seven classes of the challenge are given in its order.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the ``class_list.txt`` names no class, or one twice.

    Example:
        >>> import tempfile
        >>> ead2019_classes(tempfile.mkdtemp())
        ['specularity', 'saturation', 'artifact', 'blur', 'contrast', 'bubbles', 'instrument']
    """
    folder = dataset_folder(dataset_dir)
    for path in (folder / _CLASS_LIST, folder / "annotations" / _CLASS_LIST):
        if path.is_file():
            names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{path}: expected the name of each class once, one a line, got {names}")
            return names
    return list(_CLASSES)
