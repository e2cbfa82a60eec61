# SPDX-License-Identifier: Apache-2.0
"""Data lists: which files of a dataset folder belong together, as the dictionaries MONAI's datasets take."""

from __future__ import annotations

from .chest_xray import chest_xray_datalist
from .decathlon import decathlon_datalist
from .ead2019 import ead2019_classes, ead2019_datalist
from .fundus_dr import fundus_dr_datalist
from .lung_ct import lung_ct_datalist
from .medmnist import MedMNISTReader
from .polyp import polyp_datalist
from .yolo import read_yolo_boxes

__all__ = [
    "MedMNISTReader",
    "chest_xray_datalist",
    "decathlon_datalist",
    "ead2019_classes",
    "ead2019_datalist",
    "fundus_dr_datalist",
    "lung_ct_datalist",
    "polyp_datalist",
    "read_yolo_boxes",
]
