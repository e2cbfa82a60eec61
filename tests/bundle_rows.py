"""The bundles that ship: one row for each, with what their tests have to know of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny_data
from monai.bundle import ConfigParser

BUNDLES = Path(__file__).parents[1] / "bundles"
UNIT = (0.0, 1.0)
SEGMENTATION_3D = {"_target_": "known_networks.Levels", "classes": 3}
SEGMENTATION_2D = {"_target_": "known_networks.Levels", "classes": 1}
RESIZED = "train#deterministic_transforms#3#spatial_size"
SPLIT = {"batch_size": 2, "val_interval": 1}


@dataclass(frozen=True)
class Row:
    """A bundle and what its tests have to know of it.

    Attributes:
        name: its folder.
        data: writes a tiny data set.
        images: the folder of images in it, that inference reads.
        small: overrides of train.json.
        infer: overrides of inference.json.
        known: a `network_def` that is right about the data.
        metrics: metrics of evaluate.json and their ranges; the known network reaches the upper ends.
        unit: of the attacks' budgets.
        width: of the network's input range [0, 1], in this unit.
    """

    name: str
    data: Callable[[Path], None]
    small: Mapping[str, Any]
    known: Mapping[str, Any]
    metrics: Mapping[str, tuple[float, float]]
    images: str = "images"
    infer: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "grey"
    width: float = 255.0

    @property
    def root(self) -> Path:
        return BUNDLES / self.name

    def config_file(self, name: str) -> dict[str, Any]:
        """One config file as it is."""
        content: dict[str, Any] = json.loads((self.root / "configs" / name).read_text())
        return content

    def config(self, *names: str) -> dict[str, Any]:
        """Config files merged as MONAI merges them, unresolved."""
        parser = ConfigParser()
        parser.read_config([str(self.root / "configs" / name) for name in names])
        return dict(parser.config)


ROWS = (
    Row(
        "chest_xray_classification",
        tiny_data.chest,
        {**SPLIT, "image_size": [64, 64]},
        {"_target_": "known_networks.Means"},
        {"val_auc": UNIT, "val_accuracy": UNIT},
    ),
    Row(
        "chest_xray_segmentation",
        tiny_data.chest,
        {**SPLIT, RESIZED: [64, 64]},
        SEGMENTATION_2D,
        {"val_mean_dice": UNIT},
    ),
    Row(
        "endoscopy_detection",
        tiny_data.polyps,
        {**SPLIT, "image_size": [128, 128]},
        {
            "_target_": "known_networks.Squares",
            "num_classes": "$len(@classes)",
            "num_anchors": "$len(@anchor_shapes)",
        },
        {"val_ap50": UNIT, "val_ap30": UNIT},
        infer={"image_size": [128, 128]},
    ),
    Row(
        "endoscopy_polyp_segmentation",
        tiny_data.polyps,
        {**SPLIT, RESIZED: [64, 64]},
        SEGMENTATION_2D,
        {"val_mean_dice": UNIT, "val_mean_iou": UNIT},
    ),
    Row(
        "fundus_dr_classification",
        tiny_data.fundus,
        {**SPLIT, RESIZED: [64, 64]},
        {"_target_": "known_networks.Means"},
        {"val_auc": UNIT, "val_accuracy": UNIT, "val_kappa": (-1.0, 1.0)},
    ),
    Row(
        "hippocampus_mri_segmentation",
        tiny_data.hippocampus,
        {**SPLIT, "train#deterministic_transforms#5#spatial_size": [16, 32, 16]},
        SEGMENTATION_3D,
        {"val_mean_dice": UNIT, "val_dice_anterior": UNIT, "val_dice_posterior": UNIT},
        images="imagesTr",
        unit="percent",
        width=100.0,
    ),
    Row(
        "lung_ct_segmentation",
        tiny_data.lungs,
        {
            "train_cases": ["training0", "training1"],
            "val_cases": ["test0", "test1", "test2"],
            "volumes_per_epoch": 2,
            # on a grid of 2 x 2 x 2, oneDNN's gradient of a convolution in bfloat16 reads memory that nobody wrote
            "train#random_transforms#1#spatial_size": [64, 64, 32],
            "train#random_transforms#2#roi_size": [64, 64, 32],
            "validate#inferer#roi_size": [32, 32, 16],
        },
        SEGMENTATION_3D,
        {"val_mean_dice": UNIT, "val_dice_left": UNIT, "val_dice_right": UNIT},
        images=".",
        infer={"inferer#roi_size": [32, 32, 16]},
        unit="HU",
        width=1400.0,
    ),
)
