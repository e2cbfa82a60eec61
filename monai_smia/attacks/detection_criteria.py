# SPDX-License-Identifier: Apache-2.0
"""Criteria for detectors: true boxes that are missed, boxes that are not there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from monai.data.box_utils import box_iou

from monai_smia.attacks import checks
from monai_smia.attacks.criteria import Criterion
from monai_smia.attacks.detection import Boxes, DetectorHeads, HeadOutputs, check_heads, check_share


@dataclass(frozen=True)
class _Found(Criterion):
    """Base of the criteria that compare the boxes chosen with the true ones.

    Args:
        heads: the network that is attacked; it chooses the boxes.
        iou: intersection over union, in [0, 1], from which a box of the same label is the true one.
        score: lowest score, in [0, 1], of a box that counts. The detector's own threshold holds too.
    """

    heads: DetectorHeads = field(repr=False)
    iou: float = field(default=0.5, kw_only=True)
    score: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        check_heads(self.heads)
        check_share("iou", self.iou)
        check_share("score", self.score)

    def _matches(self, prediction: HeadOutputs, target: Sequence[Boxes]) -> Iterator[torch.Tensor]:
        """Of each image whether a true box and a chosen one are the same, ``(true, chosen)``."""
        detector = self.heads.detector
        box, label = detector.target_box_key, detector.target_label_key
        truths = self.heads.truths(prediction, target)
        for truth, chosen in zip(truths, self.heads.detections(prediction, self.score), strict=True):
            overlap = torch.as_tensor(box_iou(truth[box], chosen[box].to(truth[box])))
            yield (overlap >= self.iou) & (truth[label][:, None] == chosen[label])


@dataclass(frozen=True)
class BoxesMissed(_Found):
    r"""The share of an image's true boxes that the detector still finds is under a threshold.

    .. math:: \frac{|\{g : \exists\, d,\; \text{score}_d \ge s,\; \text{label}_d = \text{label}_g,\;
              \text{IoU}(d, g) \ge \iota\}|}{|\{g\}|} < \tau

    Boxes are not paired one to one: one that overlaps two true boxes enough finds both. An image without true boxes has
    none to miss and never succeeds.

    Args:
        heads: the network that is attacked.
        fraction: :math:`\tau`, in [0, 1].
        iou: :math:`\iota`, in [0, 1].
        score: lowest score s, in [0, 1], of a box that counts; the detector's own threshold holds too.

    Example:
        .. code-block:: python

            PGD(DetectionLoss(heads), eps=0.03, criterion=BoxesMissed(heads, fraction=0.5, iou=0.1, score=0.3))
    """

    fraction: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("fraction", self.fraction)

    def __call__(self, prediction: HeadOutputs, target: Sequence[Boxes]) -> torch.Tensor:
        return self.found(prediction, target) < self.fraction

    def found(self, prediction: HeadOutputs, target: Sequence[Boxes]) -> torch.Tensor:
        """The share that is compared, ``(B,)``; 1 where there are no true boxes."""
        shares = [same.any(1).float().mean() if len(same) else 1.0 for same in self._matches(prediction, target)]
        return torch.tensor(shares, device=prediction.anchors.device)


@dataclass(frozen=True)
class FalsePositives(_Found):
    r"""The detector sees boxes that are not there: at least `count` that match no true one.

    A second box on a true one that is found already is none: it is there.

    Args:
        heads: the network that is attacked.
        count: how many, at least 1.
        iou: intersection over union, in [0, 1], from which a box of the same label is the true one.
        score: lowest score, in [0, 1], of a box that counts; the detector's own threshold holds too.
    """

    count: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.as_count("count", self.count)

    def __call__(self, prediction: HeadOutputs, target: Sequence[Boxes]) -> torch.Tensor:
        return self.number(prediction, target) >= self.count

    def number(self, prediction: HeadOutputs, target: Sequence[Boxes]) -> torch.Tensor:
        """How many there are, ``(B,)``."""
        numbers = [int((~same.any(0)).sum()) for same in self._matches(prediction, target)]
        return torch.tensor(numbers, device=prediction.anchors.device)
