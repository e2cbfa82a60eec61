"""Networks that are right about `tiny_data` without training; with a weight of their own, 0 until it is loaded."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

GAIN = 40.0


class Known(nn.Module):
    """What the networks share: their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.0))

    @staticmethod
    def weights() -> dict[str, torch.Tensor]:
        """What a checkpoint of them holds."""
        return {"gain": torch.tensor(GAIN)}


class Levels(Known):
    """Voxel by voxel: inside above 0.5; or, of three classes, 0 below 0.25, 1 to about 0.8, 2 above."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = image[:, :1]
        if self.classes == 1:
            return self.gain * (image - 0.5)
        return self.gain * torch.cat((0 * image, 0.5 * (image - 0.25), 1.5 * (image - 0.6)), 1)


class Means(Known):
    """One logit per channel: how far its mean is above 0.3."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.gain * (image.flatten(2).mean(2) - 0.3)


class Squares(Known):
    """The packed maps of the detection bundle: the first anchor, where it is full of light, at the finest level only.

    The codes are 0, so that a box is its anchor: 32 x 32 pixels around the middle of each step of 8.
    """

    def __init__(self, num_classes: int, num_anchors: int) -> None:
        super().__init__()
        self.scores, self.codes = num_anchors * num_classes, num_anchors * 4

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        width, height = (side // 8 for side in image.shape[2:])
        filled = functional.avg_pool2d(image[:, :1], 32, stride=8, padding=12).flatten(1)
        places = sum((width // step) * (height // step) for step in (1, 2, 4, 8))
        scores = torch.full((len(image), self.scores, places), -GAIN)
        scores[:, 0, : width * height] = self.gain * (filled - 0.8)
        return torch.cat((scores, torch.zeros(len(image), self.codes, places)), 1)
