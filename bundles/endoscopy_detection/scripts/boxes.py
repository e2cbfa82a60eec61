# SPDX-License-Identifier: Apache-2.0
"""Boxes beside images: from masks and from YOLO text, in batches, and on a device."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.apps.detection.transforms.box_ops import convert_box_to_mask, convert_mask_to_box
from monai.config import KeysCollection
from monai.data import list_data_collate
from monai.data.box_utils import clip_boxes_to_image
from monai.transforms import MapTransform
from scipy import ndimage

from monai_smia.data import read_yolo_boxes

Item = dict[Hashable, Any]


class MaskToBoxesd(MapTransform):
    """Replace a mask by the extents of its parts: ``{"boxes": (N, 4), "labels": (N,)}``, all labels 0.

    Pixels that touch, corners included, are one part. Boxes are `x1, y1, x2, y2` in pixels along the mask's two axes,
    the upper ends excluded.

    Args:
        keys: of masks ``(1, W, H)``; what is above 0 is inside.
        min_pixels: parts with fewer pixels give no box: specks at a border that resampling left.
    """

    def __init__(self, keys: KeysCollection, min_pixels: int = 16) -> None:
        super().__init__(keys)
        self.min_pixels = min_pixels

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """Return `data` with the masks of `keys` replaced."""
        out = dict(data)
        for key in self.key_iterator(out):
            parts, _ = ndimage.label(np.asarray(out[key][0]) > 0, np.ones((3, 3)))
            found = ndimage.find_objects(parts)
            kept = [box for i, box in enumerate(found, 1) if (parts[box] == i).sum() >= self.min_pixels]
            corners = [[x.start, y.start, x.stop, y.stop] for x, y in kept]
            boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
            out[key] = {"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.long)}
        return out


class YoloToMasksd(MapTransform):
    """Replace the path of a YOLO text by one channel per box, so that MONAI's spatial transforms move the boxes.

    Boxes are rounded to whole pixels and cut at the image's border; one of which nothing is left gives no channel.

    Args:
        keys: of paths; the image's size is read from `reference_key`.
        reference_key: key of the image, ``(C, W, H)``.
    """

    def __init__(self, keys: KeysCollection, reference_key: str = "image") -> None:
        super().__init__(keys)
        self.reference_key = reference_key

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """Return `data` with masks ``(N, W, H)`` of value label + 1 under `keys`; one empty channel where N is 0."""
        out = dict(data)
        size = tuple(out[self.reference_key].shape[1:])
        for key in self.key_iterator(out):
            boxes, labels = map(torch.from_numpy, read_yolo_boxes(out[key], size))
            boxes, kept = clip_boxes_to_image(boxes.round(), size, remove_empty=True)
            out[key] = convert_box_to_mask(boxes, labels[kept] + 1, size, bg_label=0).float()
        return out


class MasksToBoxesd(MapTransform):
    """The way back from `YoloToMasksd`: the extent of each channel's inside, with its label.

    Args:
        keys: of masks ``(N, W, H)``.
        min_pixels: channels with fewer pixels inside the picture give no box.
    """

    def __init__(self, keys: KeysCollection, min_pixels: int = 4) -> None:
        super().__init__(keys)
        self.min_pixels = min_pixels

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """Return `data` with ``{"boxes": (N, 4), "labels": (N,)}`` under `keys`."""
        out = dict(data)
        for key in self.key_iterator(out):
            masks = torch.as_tensor(out[key]).round().short()
            large = (masks > 0).flatten(1).sum(1) >= self.min_pixels
            boxes, labels = convert_mask_to_box(masks[large], bg_label=0)
            out[key] = {"boxes": boxes, "labels": labels - 1}
        return out


def collate_boxes(items: Sequence[Item]) -> Item:
    """A batch: images in one tensor, labels in a list, for images have different numbers of boxes."""
    batch: Item = dict(list_data_collate([{"image": item["image"]} for item in items]))
    if all("label" in item for item in items):
        batch["label"] = [item["label"] for item in items]
    return batch


def prepare_boxes(
    batch: Mapping[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]] | None]:
    """MONAI's `prepare_batch` for boxes: images ``BCHW`` and a list of boxes on `device`."""
    image = batch["image"].to(device, non_blocking=non_blocking, **kwargs)
    if "label" not in batch:
        return image, None
    return image, [{key: value.to(device) for key, value in label.items()} for label in batch["label"]]
