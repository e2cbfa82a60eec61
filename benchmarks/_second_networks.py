# SPDX-License-Identifier: Apache-2.0
"""A second architecture for each bundle, to transfer attacks between; trained by the bundle's own `train.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Second:
    """Another network for a bundle.

    Args:
        network_def: in place of the one of the bundle's ``train.json``.
        epochs: how long it is trained; less than the bundle's own, for it is a victim, not a product.
    """

    network_def: dict[str, Any]
    epochs: int


def dense(channels: int, classes: Any) -> dict[str, Any]:
    """A small DenseNet for 2-D classification."""
    return {
        "_target_": "DenseNet",
        "spatial_dims": 2,
        "in_channels": channels,
        "out_channels": classes,
        "init_features": 32,
        "growth_rate": 16,
        "block_config": [3, 6, 6, 3],
    }


def residual(rank: int, channels: int, classes: int) -> dict[str, Any]:
    """A small SegResNet: group normalisation, and sums where a UNet concatenates."""
    return {
        "_target_": "SegResNet",
        "spatial_dims": rank,
        "in_channels": channels,
        "out_channels": classes,
        "init_filters": 8,
        "blocks_down": [1, 1, 2, 2],
        "blocks_up": [1, 1, 1],
    }


def dense_retinanet(num_classes: int, num_anchors: int, widths: Sequence[int] = (3, 6, 6, 3)) -> nn.Module:
    """The bundle's detector over a DenseNet in place of a ResNet; called inside the detection bundle.

    Args:
        num_classes: K.
        num_anchors: boxes at each location.
        widths: layers of the four dense blocks.
    """
    from monai.apps.detection.networks.retinanet_network import RetinaNet
    from monai.networks.blocks.backbone_fpn_utils import BackboneWithFPN
    from monai.networks.nets import DenseNet
    from scripts.detector import STRIDES, PackedRetinaNet

    dense_net = DenseNet(2, 3, 1, init_features=32, growth_rate=16, block_config=widths)
    stages = {"denseblock2": "0", "denseblock3": "1", "denseblock4": "2"}
    channels, found = 32, []
    for i, layers in enumerate(widths):
        channels += 16 * layers
        found.append(channels)
        channels //= 1 if i == len(widths) - 1 else 2
    pyramid = BackboneWithFPN(dense_net.features, stages, found[1:], 64, spatial_dims=2)
    packed = PackedRetinaNet(num_classes, num_anchors)
    packed.net = RetinaNet(2, num_classes, num_anchors, pyramid, size_divisible=STRIDES[-1], use_list_output=True)
    return packed


SECOND = {
    "chest_xray_classification": Second(dense(1, 1), 20),
    "chest_xray_segmentation": Second(residual(2, 1, 1), 6),
    "endoscopy_detection": Second(
        {
            "_target_": "benchmarks._second_networks.dense_retinanet",
            "num_classes": "$len(@classes)",
            "num_anchors": "$len(@anchor_shapes)",
        },
        8,
    ),
    "endoscopy_polyp_segmentation": Second(residual(2, 3, 1), 5),
    "fundus_dr_classification": Second(dense(3, "@num_classes"), 20),
    "hippocampus_mri_segmentation": Second(residual(3, 1, 3), 8),
    "lung_ct_segmentation": Second(residual(3, 1, 3), 2),
}
