"""Sound networks on which a doctor must find nothing, trained where that takes a moment, and images for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import networks
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import nn

BOUNDS = (0.0, 1.0)


@dataclass(frozen=True)
class Patient:
    """A network with images that it is right on."""

    network: Callable[..., Any]
    image: torch.Tensor
    target: torch.Tensor
    loss: nn.Module
    eps: float

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.network, self.image, self.target, self.loss


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(count: int, rank: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images in [0, 1], half of their air exactly 0, with a bright ball; and the mask of the ball."""
    source = generator(seed)
    axes = torch.meshgrid(*[torch.arange(size).float()] * rank, indexing="ij")
    centre = torch.rand((count, rank), generator=source) * (size - 6) + 3
    distance = sum((axes[i][None] - centre[:, i].reshape(-1, *[1] * rank)) ** 2 for i in range(rank))
    mask = (distance < (size / 4) ** 2)[:, None]
    image = 0.1 * torch.randn((count, 1, *[size] * rank), generator=source) + 0.6 * mask
    return image.clamp(0, 1), mask.long()


def fitted(network: nn.Module, loss: nn.Module, image: torch.Tensor, target: torch.Tensor, steps: int) -> nn.Module:
    """The network after a few steps of Adam, in evaluation mode."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network(image), target).backward()
        optimizer.step()
    return network.eval()


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def linear(seed: int, size: int = 8, classes: int = 3) -> Patient:
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(size * size, classes)), seed)
    image = torch.rand((4, 1, size, size), generator=generator(seed))
    return Patient(network, image, network(image).argmax(1), nn.CrossEntropyLoss(), 0.01)


def classifier(seed: int, steps: int = 40) -> Patient:
    """A CNN that tells in which half the ball lies, trained."""
    image, mask = blobs(64, 2, 16, seed)
    target = (mask[:, 0, :8].sum((1, 2)) > mask[:, 0, 8:].sum((1, 2))).long()

    def build() -> nn.Module:
        body = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 2))

    # smoothed, so that leads stay near ln 19: a doctor is right to object where 1 - p is lost in rounding
    network = seeded(lambda: fitted(build(), nn.CrossEntropyLoss(label_smoothing=0.1), image, target, steps), seed)
    right = network(image).argmax(1) == target
    return Patient(network, image[right][:6], target[right][:6], nn.CrossEntropyLoss(), 0.02)


def multilabel(seed: int) -> Patient:
    network = networks.tiny_network(2, False, seed=seed).eval()
    image = torch.rand((4, 1, 12, 12), generator=generator(seed))
    return Patient(network, image, (network(image) > 0).float(), nn.BCEWithLogitsLoss(), 0.02)


def volumes(seed: int) -> Patient:
    """A random CNN on volumes, two channels."""
    network = networks.tiny_network(3, False, channels=2, seed=seed).eval()
    image = torch.rand((3, 2, 8, 8, 6), generator=generator(seed))
    return Patient(network, image, network(image).argmax(1), nn.CrossEntropyLoss(), 0.01)


def segmenter(seed: int, rank: int = 2, size: int = 16, steps: int = 30) -> Patient:
    """A UNet that finds the ball, trained."""
    image, mask = blobs(8, rank, size, seed)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)

    def build() -> nn.Module:
        return UNet(rank, 1, 2, channels=(8, 16), strides=(2,), num_res_units=1, norm="batch")

    network = seeded(lambda: fitted(build(), loss, image, mask, steps), seed)
    return Patient(network, image[:3], mask[:3], loss, 0.02)


def volume_segmenter(seed: int) -> Patient:
    return segmenter(seed, rank=3, size=12, steps=20)


SOUND = (linear, classifier, multilabel, volumes, segmenter, volume_segmenter)
