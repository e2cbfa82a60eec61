# SPDX-License-Identifier: Apache-2.0
"""The archives of MedMNIST (``.npz``): a list of their images by name, and the reader that loads such a name."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, ensure_tuple
from numpy.typing import NDArray

from .checks import Item, one_of
from .groups import GROUP, GROUP_KIND, UNKNOWN

_PARTS = {"training": "train", "validation": "val", "test": "test"}
_FINDINGS = {
    "chestmnist": [
        "atelectasis",
        "cardiomegaly",
        "effusion",
        "infiltration",
        "mass",
        "nodule",
        "pneumonia",
        "pneumothorax",
        "consolidation",
        "edema",
        "emphysema",
        "fibrosis",
        "pleural",
        "hernia",
    ],
    "pneumoniamnist": ["pneumonia"],
}


def medmnist_archive(folder: Path) -> Path | None:
    """The folder's only ``.npz``; None where there is none.

    Raises:
        ValueError: there are several: `dataset_dir` has to name one.
    """
    archives = sorted(folder.glob("*.npz"))
    if len(archives) > 1:
        raise ValueError(f"dataset_dir: expected one archive, got {', '.join(map(str, archives))}; name one of them")
    return archives[0] if archives else None


def medmnist_datalist(archive: Path, split: str, target: str) -> list[Item]:
    """The images of one of the archive's own three splits, with one label each.

    Args:
        archive: a ``.npz`` with the arrays ``train_images`` (N, H, W) or (N, H, W, 3) and ``train_labels`` (N, C), and
            the same for ``val`` and ``test``.
        split: "training", "validation" or "test".
        target: the key of the label. By its name, ChestMNIST has 14 findings, of which this is one, and PneumoniaMNIST
            has "pneumonia"; of another archive the labels have to be one column, which `target` gives a name.

    Returns:
        One dictionary for each image: ``image`` is its name for `MedMNISTReader`, ``<archive>/train/<index>``, and
        `target` its label, an integer. Its ``group`` is ``train/<index>``: patients are not known.

    Raises:
        FileNotFoundError: there is no such archive.
        ValueError: the split or the finding does not exist (lists those that do), or the arrays do not fit.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"dataset_dir: expected a .npz archive, {archive} is none")
    part = _PARTS[one_of("split", split, _PARTS)]
    labels, images = _array(archive, f"{part}_labels"), _array(archive, f"{part}_images")
    findings = _FINDINGS.get(re.sub(r"_\d+$", "", archive.stem), [target])
    column = findings.index(one_of("target", target, findings))
    if labels.shape != (len(images), len(findings)):
        raise ValueError(
            f"{archive}: expected {part}_labels of shape {(len(images), len(findings))}, one row for each image and "
            f"one column for each of {', '.join(findings)}, got {labels.shape}"
        )
    return [
        {
            "image": str(archive / part / str(index)),
            target: int(label),
            GROUP: f"{part}/{index}",
            GROUP_KIND: UNKNOWN,
        }
        for index, label in enumerate(labels[:, column])
    ]


class MedMNISTReader(ImageReader):
    """Read one image of a MedMNIST archive, so that `LoadImaged` takes it like a file.

    The name of an image is ``<path of the .npz>/<train, val or test>/<index>``. The array comes out as MONAI's
    ``PILReader`` gives that of a PNG: width first, (W, H) or (W, H, 3), in the archive's 8 bit. Every other name is
    refused, upon which `LoadImaged` tries its next reader; so this one stands beside others.

    An array is decompressed as a whole (ChestMNIST at 224 pixels: 4 GB for training) when the first image of it is
    asked for, and kept for later ones, the last six of them, in the process. `chest_xray_datalist` asks for it, so
    that forked workers of a data loader share it; spawned ones each read their own.

    Example:
        >>> import tempfile
        >>> from monai.transforms import LoadImaged
        >>> path = Path(tempfile.mkdtemp()) / "tiny.npz"
        >>> np.savez(path, train_images=np.arange(6, dtype=np.uint8).reshape(1, 2, 3))
        >>> LoadImaged("image", reader=MedMNISTReader)({"image": f"{path}/train/0"})["image"].tolist()
        [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]

    Source:
        Yang et al., "MedMNIST v2", Scientific Data 10, 2023, https://doi.org/10.1038/s41597-022-01721-8
    """

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        """Whether the name, or every one of several, is that of an image in an archive."""
        return all(_parsed(name) is not None for name in ensure_tuple(filename))

    def read(self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **kwargs: Any) -> NDArray[Any]:
        """The image of one name, as it lies in the archive: (H, W) or (H, W, 3).

        Raises:
            ValueError: several names, or one that is not ``<archive>.npz/<train, val or test>/<index>``, or the
                archive has no such array.
            FileNotFoundError: there is no such archive.
            IndexError: the array has no such image; names how many it has.
        """
        names = ensure_tuple(data)
        parsed = _parsed(names[0]) if len(names) == 1 else None
        if parsed is None:
            raise ValueError(f"data: expected one name <archive>.npz/<train, val or test>/<index>, got {names}")
        archive, part, index = parsed
        images = _array(archive, f"{part}_images")
        if index >= len(images):
            raise IndexError(f"data: {archive} has {len(images)} images in {part!r}, counted from 0, got {index}")
        return images[index].copy()

    def get_data(self, img: NDArray[Any]) -> tuple[NDArray[Any], dict[str, Any]]:
        """The image with its first two axes swapped, and where its channels are: last, or nowhere (NaN)."""
        data = np.moveaxis(img, 0, 1)
        channel = -1 if data.ndim == 3 else float("nan")
        return data, {MetaKeys.SPATIAL_SHAPE: np.asarray(data.shape[:2]), MetaKeys.ORIGINAL_CHANNEL_DIM: channel}


def _parsed(name: str | os.PathLike[str]) -> tuple[Path, str, int] | None:
    path = Path(name)
    archive, part, index = path.parent.parent, path.parent.name, path.name
    if archive.suffix != ".npz" or part not in _PARTS.values() or not index.isdecimal():
        return None
    return archive, part, int(index)


def _array(archive: Path, name: str) -> NDArray[Any]:
    return _loaded(archive.resolve(), name, archive.stat().st_mtime_ns)


# Kept by the process and not by a reader: readers stay small to pickle, and share what was read. The time of the last
# change is part of the key, so that a file written anew is read anew. Six: images and labels of three splits.
@functools.lru_cache(maxsize=6)
def _loaded(archive: Path, name: str, _changed: int) -> NDArray[Any]:
    with np.load(archive, allow_pickle=False) as arrays:
        if name not in arrays.files:
            raise ValueError(f"{archive}: expected an array {name!r}, it has {', '.join(arrays.files)}")
        array: NDArray[Any] = arrays[name]
    array.setflags(write=False)
    return array
