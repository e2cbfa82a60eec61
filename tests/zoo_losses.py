"""The losses that the model zoo's bundles configure, with an output and a label as their networks and loaders give."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser

SPACE = (8, 8, 8)
DICE_CE = {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True}
BATCHED = {**DICE_CE, "squared_pred": True, "batch": True}
SMOOTH = {"smooth_nr": 1e-05, "smooth_dr": 1e-05}


class ZooLoss(NamedTuple):
    """A bundle's loss, the channels of its output, its label, and what is expected of it."""

    config: dict[str, Any]
    channels: int
    label: str
    kind: str
    activation: str


ZOO = {
    "brats_mri_segmentation": ZooLoss(
        {"_target_": "DiceLoss", "smooth_nr": 0, "smooth_dr": 1e-05, "squared_pred": True, "sigmoid": True},
        3,
        "several bool",
        "multilabel segmentation",
        "sigmoid",
    ),
    "endoscopic_inbody_classification": ZooLoss(
        {"_target_": "torch.nn.CrossEntropyLoss", "reduction": "sum"}, 2, "class", "classification", "softmax"
    ),
    "endoscopic_tool_segmentation": ZooLoss(
        {
            "_target_": "DiceFocalLoss",
            "include_background": False,
            "to_onehot_y": True,
            "softmax": True,
            "jaccard": True,
        },
        2,
        "indices",
        "segmentation",
        "softmax",
    ),
    "multi_organ_segmentation, pancreas_ct_dints_segmentation": ZooLoss(
        {**BATCHED, **SMOOTH, "include_background": False}, 8, "indices", "segmentation", "softmax"
    ),
    "pathology_nuclei_classification": ZooLoss(
        {"_target_": "torch.nn.CrossEntropyLoss"}, 4, "class column", "classification", "softmax"
    ),
    "pathology_nuclick_annotation": ZooLoss(
        {"_target_": "DiceLoss", "sigmoid": True, "squared_pred": True}, 1, "binary bytes", "segmentation", "sigmoid"
    ),
    "pathology_tumor_detection": ZooLoss(
        {"_target_": "torch.nn.BCEWithLogitsLoss"}, 1, "patch", "classification", "sigmoid"
    ),
    "pediatric_abdominal_ct_segmentation": ZooLoss(
        {**BATCHED, "include_background": False, "smooth_nr": 1e-06, "smooth_dr": 1e-06},
        4,
        "indices",
        "segmentation",
        "softmax",
    ),
    "prostate_mri_anatomy": ZooLoss(
        {"_target_": "DiceFocalLoss", "to_onehot_y": True, "softmax": True, "include_background": False},
        3,
        "indices",
        "segmentation",
        "softmax",
    ),
    "renalStructures_CECT_segmentation": ZooLoss(
        {"_target_": "DiceLoss", "include_background": False, "to_onehot_y": True, "sigmoid": True, "smooth_nr": 0.0},
        6,
        "indices",
        "segmentation",
        "sigmoid",
    ),
    "renalStructures_UNEST, swin_unetr_btcv, wholeBrainSeg": ZooLoss(BATCHED, 5, "indices", "segmentation", "softmax"),
    "segmentation_template, ventricular_short_axis_3label": ZooLoss(
        {"_target_": "DiceLoss", "include_background": True, "to_onehot_y": True, "softmax": True},
        4,
        "indices",
        "segmentation",
        "softmax",
    ),
    "spleen_ct_segmentation": ZooLoss(
        {**BATCHED, **SMOOTH, "lambda_dice": 0.5, "lambda_ce": 0.5}, 2, "indices", "segmentation", "softmax"
    ),
    "spleen_deepedit_annotation, wholeBody_ct_segmentation": ZooLoss(DICE_CE, 2, "indices", "segmentation", "softmax"),
    "valve_landmarks": ZooLoss({"_target_": "torch.nn.L1Loss"}, 2, "landmarks", "regression", "none"),
    "vista3d, without its prompts": ZooLoss(
        {"_target_": "DiceCELoss", "sigmoid": True, "smooth_dr": 1e-05, "smooth_nr": 0, "squared_pred": True},
        1,
        "binary bytes",
        "segmentation",
        "sigmoid",
    ),
    "maisi_ct_generative": ZooLoss(
        {"_target_": "torch.nn.L1Loss", "reduction": "none"}, 1, "intensities", "regression", "none"
    ),
    "brats_mri_generative_diffusion": ZooLoss({"_target_": "torch.nn.MSELoss"}, 1, "intensities", "regression", "none"),
    "mednist_reg, images": ZooLoss(
        {
            "_target_": "LocalNormalizedCrossCorrelationLoss",
            "spatial_dims": 3,
            "kernel_size": 5,
            "kernel_type": "rectangular",
        },
        1,
        "intensities",
        "regression",
        "none",
    ),
    "mednist_reg, metric": ZooLoss({"_target_": "GlobalMutualInformationLoss"}, 1, "intensities", "regression", "none"),
}
"""By bundle; `HoVerNetLoss` (a dictionary of heads) and `PerceptualLoss` (weights to download) are not here."""


def built(config: dict[str, Any]) -> Any:
    return ConfigParser({"loss": config}).get_parsed_content("loss")


def batch_of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two samples of output and label."""
    row, g = ZOO[name], torch.Generator().manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {"landmarks": (2, 10), "patch": (1, 1, 1), "class": (), "class column": ()}
    shape = shapes.get(row.label, (row.channels, *SPACE)) or (row.channels,)
    output = torch.randn(2, *shape, generator=g)
    index = torch.randint(0, row.channels, (2, 1, *SPACE), generator=g).float()
    several = torch.rand(2, *shape, generator=g) > 0.5
    labels = {
        "several bool": several,
        "class": torch.tensor([1, 0]),
        "class column": torch.tensor([[1.0], [0.0]]),
        "indices": index,
        "binary bytes": several.byte(),
        "patch": torch.tensor([[[1.0]], [[0.0]]]),
        "landmarks": torch.randint(0, 256, (2, 2, 10), generator=g),
        "intensities": torch.rand(2, *shape, generator=g),
    }
    return output, labels[row.label]
