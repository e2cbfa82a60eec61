# SPDX-License-Identifier: Apache-2.0
"""Chest X-rays with a finding and with lung masks: this project's own layout and those of four public data sets."""

from __future__ import annotations

import os
from pathlib import Path

from .checks import Item, dataset_folder, one_of, require_files
from .dataset_json import DATASET_JSON, listed
from .groups import GROUP, GROUP_KIND, with_groups
from .medmnist import medmnist_archive, medmnist_datalist
from .nih_chest import finding_key, nih_datalist, nih_table
from .nlm_chest import nlm_cases, nlm_images
from .splits import split_by_rule

_NO_FINDING = ("image", "label", "subject", "patient", GROUP, GROUP_KIND)


def chest_xray_datalist(
    dataset_dir: str | os.PathLike[str], split: str, *, target: str = "tuberculosis", masks: bool = False
) -> list[Item]:
    """List the X-ray of each case of one split, with whether it shows a finding and with its lung mask.

    The first of these layouts that the folder has is read:

    - ours: a ``dataset.json`` with ``image``, ``label`` (the lung mask) and findings such as ``tuberculosis``.
    - Shenzhen and Montgomery County: ``CXR_png/CHNCXR_0001_0.png`` or ``MCUCXR_0001_0.png``, whose last digit is
      ``tuberculosis``, also inside ``ChinaSet_AllFiles/``, ``MontgomerySet/`` or ``Lung Segmentation/``. Lung masks:
      ``mask/`` or ``masks/`` beside it, named like the X-ray or with ``_mask``, or Montgomery's
      ``ManualMask/leftMask/`` and ``rightMask/``: then ``label`` is the list of these two paths, which `LoadImaged`
      stacks as two channels. Some X-rays of Shenzhen have no mask, and no ``label``. Each is its own group in the
      rule of `monai_smia.data.splits`.
    - ChestX-ray14 of the NIH: ``Data_Entry_2017*.csv`` with images in ``images*/`` or ``images_*/images/``. With
      ``train_val_list.txt`` and ``test_list.txt``, "test" is theirs; else, and for "validation", the rule by patient.
    - an archive of MedMNIST, ``dataset_dir`` itself or the only ``.npz`` in it: its own three splits. Its images are
      loaded by `MedMNISTReader`.

    Args:
        dataset_dir: the folder, or the path of an ``.npz``.
        split: "training", "validation" or "test".
        target: the finding, which has to be one of the data set's, in any case, spaces or underscores. Lower case with
            underscores is its key in the items. Ours keep all their findings.
        masks: list only the cases that have a lung mask. The others stay in the split that they are in.

    Returns:
        One dictionary for each case: ``image``, the target (0 or 1; of an unknown archive its label), and ``label`` and
        ``patient`` where known. ``group`` and ``group_kind`` as `monai_smia.data.groups` has them: by "patient" for
        the NIH's, by "image" for all others, which do not say which X-rays are of one patient.

    Raises:
        FileNotFoundError: the folder, all layouts, or a file of the split is missing; names the first one.
        ValueError: the split or the finding does not exist (lists those that do), the split is empty, or a data set is
            not as it is distributed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "CXR_png").mkdir()
        >>> (folder / "CXR_png" / "CHNCXR_0327_1.png").touch()
        >>> [(Path(item["image"]).name, item["tuberculosis"]) for item in chest_xray_datalist(folder, "test")]
        [('CHNCXR_0327_1.png', 1)]

    Source:
        Jaeger et al., "Two public chest X-ray datasets for computer-aided screening of pulmonary diseases", 2014,
        https://doi.org/10.3978/j.issn.2223-4292.2014.11.20; Wang et al., "ChestX-ray8", CVPR 2017,
        https://arxiv.org/abs/1705.02315; MedMNIST: see `MedMNISTReader`.
    """
    key = finding_key(target)
    if Path(dataset_dir).suffix == ".npz":
        items = medmnist_datalist(Path(dataset_dir), split, key)
    else:
        items = _of_folder(dataset_folder(dataset_dir), split, key)
    if masks:
        items = [item for item in items if "label" in item]
        if not items:
            raise ValueError(f"masks: no case of {split!r} in {dataset_dir} has a lung mask")
    return items


def _of_folder(folder: Path, split: str, key: str) -> list[Item]:
    if (folder / DATASET_JSON).is_file():
        items = listed(folder, split, ("image",))
        for item in items:
            one_of("target", key, [name for name in item if name not in _NO_FINDING])
        return items
    if (images := nlm_images(folder)) is not None:
        one_of("target", key, ["tuberculosis"])
        return require_files(split_by_rule(with_groups(nlm_cases(folder, images)), split))
    if (table := nih_table(folder)) is not None:
        return require_files(nih_datalist(folder, table, split, key))
    if (archive := medmnist_archive(folder)) is not None:
        return medmnist_datalist(archive, split, key)
    raise FileNotFoundError(
        f"dataset_dir: expected {DATASET_JSON}, CXR_png/, Data_Entry_2017*.csv or one .npz in {folder}; found none"
    )
