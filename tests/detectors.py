"""A tiny trained RetinaNet in 2-D and 3-D, its data, and what MONAI's detector itself says of an image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import networks
import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from torch import nn

from monai_smia.attacks import PGD, SMIA, Attack
from monai_smia.attacks.detection import DetectionDivergence, DetectionLoss, DetectorHeads
from monai_smia.attacks.detection_criteria import BoxesMissed

Targets = list[dict[str, torch.Tensor]]
SIZE = {2: (18, 19), 3: (13, 14, 15)}  # no multiple of what the network needs, so that the detector pads
EPS = 0.25
IOU = 0.4


class Pyramid(nn.Module):
    """Feature maps at half and a quarter of the resolution, with BatchNorm and dropout."""

    out_channels = 8

    def __init__(self, rank: int) -> None:
        super().__init__()
        conv, norm = networks.CONV[rank], networks.NORM[rank]
        fine = [conv(1, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Dropout(0.1), conv(8, 8, 3, stride=2, padding=1)]
        self.fine = nn.Sequential(*fine)
        self.coarse = nn.Sequential(norm(8), nn.ReLU(), conv(8, 8, 3, stride=2, padding=1))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        fine = self.fine(image)
        return [fine, self.coarse(fine)]


def data(rank: int, cases: int = 4) -> tuple[torch.Tensor, Targets]:
    """Two bright blocks in each image, of two kinds; in the last image none."""
    source = torch.Generator().manual_seed(1)
    images = torch.rand((cases, 1, *SIZE[rank]), generator=source) * 0.3
    targets = []
    for i in range(cases):
        lows, labels = [], []
        for label in (0, 1) if i < cases - 1 else ():
            low = [int(torch.randint(0, SIZE[rank][0] // 2 - 5, (1,), generator=source)) + label * 6]
            low += [int(torch.randint(0, size - 5, (1,), generator=source)) for size in SIZE[rank][1:]]
            images[(i, 0, *(slice(start, start + 6) for start in low))] += 0.3 + 0.3 * label
            lows.append(low)
            labels.append(label)
        corner = torch.tensor(lows, dtype=torch.float32).reshape(-1, rank)
        targets.append({"boxes": torch.cat((corner, corner + 6), 1), "labels": torch.tensor(labels, dtype=torch.long)})
    return images.clamp(0, 1), targets


def untrained(rank: int) -> RetinaNetDetector:
    anchors = AnchorGeneratorWithAnchorShape(feature_map_scales=(1, 2), base_anchor_shapes=((5,) * rank, (7,) * rank))
    network = RetinaNet(rank, 2, anchors.num_anchors_per_location()[0], Pyramid(rank), size_divisible=4)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1 and "cls_logits" not in name and "bbox_reg" not in name:
            nn.init.kaiming_normal_(parameter)
    nn.init.constant_(network.classification_head.cls_logits.bias, -2.0)
    detector = RetinaNetDetector(network, anchors)
    detector.set_regular_matcher(0.45, 0.35)
    detector.set_hard_negative_sampler(16, 0.5, min_neg=8, pool_size=4)
    detector.set_box_selector_parameters(score_thresh=0.05, nms_thresh=0.3)
    return detector


@cache
def trained(rank: int) -> RetinaNetDetector:
    """A detector that finds all boxes of the data, and nothing else; take `copied`, which a test may change."""
    images, targets = data(rank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = untrained(rank).train()
        optimizer = torch.optim.Adam(detector.parameters(), 1e-2)
        for _ in range(70):
            optimizer.zero_grad()
            sum(detector(images, targets).values()).backward()
            optimizer.step()
    detector.zero_grad()
    return detector


def copied(rank: int) -> tuple[DetectorHeads, torch.Tensor, Targets]:
    detector = copy.deepcopy(trained(rank))
    detector.network.feature_extractor.coarse[0].eval()  # a BatchNorm frozen by hand
    return DetectorHeads(detector), *data(rank)


def own_losses(heads: DetectorHeads, image: torch.Tensor, target: Targets, seed: int = 0) -> dict[str, torch.Tensor]:
    """The detector's own losses, in train mode with BatchNorm and dropout in eval mode."""
    detector = copy.deepcopy(heads.detector).train()
    detector.network.eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return detector(image, copy.deepcopy(target))


def own_boxes(heads: DetectorHeads, image: torch.Tensor, **arguments: Any) -> Targets:
    """The boxes that the detector itself chooses."""
    with torch.no_grad():
        return copy.deepcopy(heads.detector).eval()(image, **arguments)


def attack_on(heads: DetectorHeads, kind: Callable[..., Attack] = PGD, **arguments: Any) -> Attack:
    loss = DetectionLoss(heads)
    if kind is SMIA:
        arguments = {"divergence": DetectionDivergence(loss), "stabilization_weight": 0.3, **arguments}
    return kind(
        loss, eps=EPS, bounds=(0.0, 1.0), criterion=BoxesMissed(heads, fraction=0.75, iou=IOU, score=0.3), **arguments
    )
