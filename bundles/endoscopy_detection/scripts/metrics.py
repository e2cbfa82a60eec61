# SPDX-License-Identifier: Apache-2.0
"""Average precision of boxes in MONAI's engines, by MONAI's matching and COCO metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from ignite.metrics import Metric
from monai.apps.detection.metrics.coco import COCOMetric
from monai.apps.detection.metrics.matching import matching_batch
from monai.data.box_utils import box_iou
from torch import distributed

Boxes = dict[str, torch.Tensor]


class AveragePrecision(Metric):
    """Mean of the classes' average precision at one overlap, over all processes.

    A class without a true box is left out of the mean; one whose boxes are all missed counts as 0 (MONAI's own mean
    counts both as -1). Without any true box the metric is not a number.

    Args:
        classes: names, in the order of the labels.
        iou: overlap from which a box is found, in [0, 1].
        max_detections: boxes per image that count, those of the highest scores.
        output_transform: engine output to ``(detections, targets)``, lists of dictionaries with ``boxes``, ``labels``
            and, of detections, ``labels_scores``.
    """

    def __init__(
        self,
        classes: Sequence[str],
        iou: float = 0.5,
        max_detections: int = 100,
        output_transform: Callable[[Any], Any] = lambda output: (output["pred"], output["label"]),
    ) -> None:
        self.classes = list(classes)
        self.max_detections = max_detections
        span = (iou, iou, 0.1)
        self.coco = COCOMetric(self.classes, (iou,), span, (max_detections,), verbose=False)
        super().__init__(output_transform)

    def reset(self) -> None:
        """Forget all images."""
        self._matched: list[Any] = []
        self._labels: list[int] = []

    def update(self, output: tuple[list[Boxes], list[Boxes]]) -> None:
        """Add a batch."""
        detections, targets = output
        self._labels += [int(label) for item in targets for label in item["labels"]]
        self._matched += matching_batch(
            box_iou,
            self.coco.get_iou_thresholds(),
            *([_array(item[key]) for item in detections] for key in ("boxes", "labels", "labels_scores")),
            *([_array(item[key]) for item in targets] for key in ("boxes", "labels")),
            max_detections=self.max_detections,
        )

    def compute(self) -> float:
        """The metric of all images, in [0, 1]."""
        matched, labels = _everywhere(self._matched), set(_everywhere(self._labels))
        if not labels:
            return float("nan")
        values, _ = self.coco(matched)
        found = {name.split("_mAP_")[0]: float(value) for name, value in values.items() if "_mAP_" in name}
        return sum(max(found[self.classes[label]], 0.0) for label in labels) / len(labels)


def _everywhere(items: list[Any]) -> list[Any]:
    """The items of all processes, in the order of their ranks."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return items
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, items)
    return list(chain.from_iterable(gathered))


def _array(value: torch.Tensor) -> Any:
    return torch.as_tensor(value).detach().cpu().numpy()
