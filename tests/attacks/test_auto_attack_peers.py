"""`AutoAttack` beside torchattacks' on a trained network."""

from __future__ import annotations

import functools
import math
from types import ModuleType

import pytest
import torch
from torch import nn

from monai_smia.attacks import AutoAttack

CE = nn.CrossEntropyLoss()
CLASSES, SIZE = 4, 10


def quarters(count: int, source: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise in [0, 1] of which one quarter is brighter; the quarter is the class."""
    label = torch.randint(CLASSES, (count,), generator=source)
    image = 0.6 * torch.rand(count, 1, SIZE, SIZE, generator=source)
    half = SIZE // 2
    for i, k in enumerate(label.tolist()):
        image[i, :, k // 2 * half :][:, :half, k % 2 * half :][..., :half] += 0.4
    return image, label


@functools.cache
def trained() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A convolutional network trained for a second, and 16 images that it gets right."""
    source = torch.Generator().manual_seed(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(72, CLASSES),
        )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    with torch.enable_grad():
        for _ in range(80):
            image, label = quarters(32, source)
            optimizer.zero_grad()
            CE(network(image), label).backward()
            optimizer.step()
    network.eval()
    image, label = quarters(32, source)
    with torch.no_grad():
        right = network(image).argmax(1) == label
    assert int(right.sum()) >= 16
    return network, image[right][:16], label[right][:16]


@pytest.fixture
def torchattacks() -> ModuleType:
    return pytest.importorskip("torchattacks")


@pytest.mark.peers
@pytest.mark.parametrize(("norm", "eps"), [(math.inf, 0.15), (2, 1.0)])
def test_robust_accuracy_is_that_of_torchattacks(torchattacks: ModuleType, norm: float, eps: float) -> None:
    """With the same steps and queries, within one sample: each draws its own start."""
    network, image, label = trained()
    theirs = torchattacks.AutoAttack(network, norm=f"L{norm:g}", eps=eps, n_classes=CLASSES, seed=0)
    for member in theirs._autoattack.attacks:
        member.steps = 20
        member.n_queries = 100
    with torch.random.fork_rng(devices=[]):
        adversarial = theirs(image, label)
    with torch.no_grad():
        stands = int((network(adversarial).argmax(1) == label).sum())
    ours = AutoAttack(CE, eps=eps, norm=norm, bounds=(0.0, 1.0), steps=20, queries=100)(network, image, label)
    assert 0 < stands < len(label)
    assert abs(int((~ours.success).sum()) - stands) <= 1
