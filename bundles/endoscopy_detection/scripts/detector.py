# SPDX-License-Identifier: Apache-2.0
"""A small RetinaNet that gives one tensor, and MONAI's detector around it.

One tensor in and one out is what `verify_net_in_out`, `ckpt_export` and a TorchScript file understand; the detector
wants its maps level by level, which is only another view of the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.losses.giou_loss import BoxGIoULoss
from monai.networks.blocks.backbone_fpn_utils import BackboneWithFPN
from monai.networks.nets import ResNet
from torch import nn

STRIDES = (8, 16, 32, 64)
"""Pixels of the image per step of each level of the pyramid: the last three stages of the ResNet, and one pooled."""


class PackedRetinaNet(nn.Module):
    """RetinaNet over a narrow ResNet-18 with a feature pyramid; the maps of all levels in one tensor.

    Args:
        num_classes: K.
        num_anchors: A, boxes at each location.
        in_channels: channels of the image.
        widths: channels of the four stages of the ResNet.
        pyramid_channels: channels of the pyramid and of both heads.
    """

    def __init__(
        self,
        num_classes: int,
        num_anchors: int,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128),
        pyramid_channels: int = 64,
    ) -> None:
        super().__init__()
        backbone = ResNet(
            "basic",
            [2, 2, 2, 2],
            list(widths),
            spatial_dims=2,
            n_input_channels=in_channels,
            conv1_t_stride=2,
            feed_forward=False,
        )
        stages = {"layer2": "0", "layer3": "1", "layer4": "2"}
        pyramid = BackboneWithFPN(backbone, stages, list(widths[1:]), pyramid_channels, spatial_dims=2)
        self.num_classes = num_classes
        self.num_anchors = num_anchors
        self.net = RetinaNet(2, num_classes, num_anchors, pyramid, size_divisible=STRIDES[-1], use_list_output=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits and box codes of `image`, ``(B, C, H, W)`` with sides that 64 divides.

        Returns:
            ``(B, A * K + A * 4, N)``, N the locations of all levels from the finest to the coarsest.
        """
        maps = self.net(image)
        assert torch.jit.isinstance(maps, list[torch.Tensor])
        levels = len(maps) // 2
        classes = torch.cat([level.flatten(2) for level in maps[:levels]], 2)
        boxes = torch.cat([level.flatten(2) for level in maps[levels:]], 2)
        return torch.cat([classes, boxes], 1)


class Unpacked(nn.Module):
    """The maps of a `PackedRetinaNet`, or of its TorchScript export, as `RetinaNetDetector` reads them."""

    spatial_dims = 2
    size_divisible = (STRIDES[-1], STRIDES[-1])
    cls_key = "classification"
    box_reg_key = "box_regression"

    def __init__(self, packed: nn.Module, num_classes: int, num_anchors: int) -> None:
        super().__init__()
        self.packed = packed
        self.num_classes = num_classes
        self.num_anchors = num_anchors

    def forward(self, image: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """Maps from the finest level to the coarsest, ``(B, A * K, H', W')`` and ``(B, A * 4, H', W')``."""
        sizes = [[side // stride for side in image.shape[2:]] for stride in STRIDES]
        channels = [self.num_anchors * self.num_classes, self.num_anchors * 4]
        heads = self.packed(image).split(channels, 1)
        return {key: _by_level(head, sizes) for key, head in zip((self.cls_key, self.box_reg_key), heads, strict=True)}


def make_detector(
    packed: nn.Module, num_classes: int, anchor_shapes: Sequence[Sequence[float]], score_threshold: float = 0.05
) -> RetinaNetDetector:
    """MONAI's detector around a packed network: anchors, matcher, sampler, losses and the choice of boxes.

    Args:
        packed: a `PackedRetinaNet` or its TorchScript export.
        num_classes: K.
        anchor_shapes: A pairs of sides in pixels at the finest level; each next level doubles them.
        score_threshold: lowest score, in [0, 1], of a box that is given.
    """
    anchors = AnchorGeneratorWithAnchorShape(
        feature_map_scales=[stride // STRIDES[0] for stride in STRIDES], base_anchor_shapes=anchor_shapes
    )
    detector = RetinaNetDetector(Unpacked(packed, num_classes, len(anchor_shapes)), anchors)
    detector.set_atss_matcher(num_candidates=4, center_in_gt=False)
    detector.set_hard_negative_sampler(batch_size_per_image=64, positive_fraction=0.25, min_neg=16, pool_size=10)
    detector.set_box_regression_loss(BoxGIoULoss(reduction="mean"), encode_gt=False, decode_pred=True)
    detector.set_box_selector_parameters(
        score_thresh=score_threshold, topk_candidates_per_level=100, nms_thresh=0.4, detections_per_img=50
    )
    detector.set_target_keys(box_key="boxes", label_key="labels")
    return detector


def _by_level(head: torch.Tensor, sizes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """``(B, C, N)`` as maps ``(B, C, H', W')``."""
    levels = head.split([height * width for height, width in sizes], 2)
    return [level.unflatten(2, tuple(size)) for level, size in zip(levels, sizes, strict=True)]
