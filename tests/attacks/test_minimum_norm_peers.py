"""FMN, DDN, DeepFool and CW beside foolbox's on a small trained network: the median norm is not worse."""

from __future__ import annotations

import functools
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from monai_smia.attacks import CW, DDN, FMN, Attack, DeepFool

pytestmark = pytest.mark.peers

CLASSES, SIZE = 4, 12
LOSS = nn.CrossEntropyLoss()


@pytest.fixture
def foolbox() -> ModuleType:
    return pytest.importorskip("foolbox")


def blobs(count: int, source: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright spot in one of four quarters, in noise, in [0, 1]; the quarter is the class."""
    label = torch.randint(CLASSES, (count,), generator=source)
    grid = torch.arange(SIZE, dtype=torch.float32)
    shift = torch.rand(count, 2, generator=source) * 3 + 1
    centre = torch.stack((label // 2, label % 2), 1) * SIZE / 2 + shift
    rows, columns = ((grid[None] - centre[:, i : i + 1]).square() for i in (0, 1))
    spot = torch.exp(-(rows[:, :, None] + columns[:, None, :]) / 4)
    noise = torch.rand(count, SIZE, SIZE, generator=source)
    return (0.5 * spot + 0.5 * noise).unsqueeze(1).clamp(0, 1), label


@functools.cache
def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A convolutional network trained for a second, and 24 images that it gets right."""
    source = torch.Generator().manual_seed(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, CLASSES),
        )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    with torch.enable_grad():
        for _ in range(120):
            image, label = blobs(64, source)
            optimizer.zero_grad()
            LOSS(network(image), label).backward()
            optimizer.step()
    network.eval()
    image, label = blobs(40, source)
    right = network(image).argmax(1) == label
    assert int(right.sum()) >= 24
    return network, image[right][:24], label[right][:24]


PEERS = {
    "FMN-Linf": (FMN(LOSS, bounds=(0.0, 1.0)), "LInfFMNAttack", {}, math.inf),
    "FMN-L2": (FMN(LOSS, bounds=(0.0, 1.0), norm=2), "L2FMNAttack", {}, 2),
    "FMN-L1": (FMN(LOSS, bounds=(0.0, 1.0), norm=1), "L1FMNAttack", {}, 1),
    "DDN": (DDN(LOSS, bounds=(0.0, 1.0)), "DDNAttack", {}, 2),
    "DeepFool-L2": (DeepFool(LOSS, bounds=(0.0, 1.0)), "L2DeepFoolAttack", {}, 2),
    "DeepFool-Linf": (DeepFool(LOSS, bounds=(0.0, 1.0), norm="inf"), "LinfDeepFoolAttack", {}, math.inf),
    "CW": (
        CW(LOSS, bounds=(0.0, 1.0), steps=50, searches=5, initial_c=0.1),
        "L2CarliniWagnerAttack",
        {"steps": 50, "binary_search_steps": 5, "initial_const": 0.1, "abort_early": False},
        2,
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_the_median_norm_is_not_worse_than_foolbox(foolbox: ModuleType, name: str) -> None:
    """With the same settings both always succeed; 1.02, an overshoot, is what two equal searches may differ by."""
    attack, peer, arguments, norm = PEERS[name]
    network, image, label = problem()
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    theirs, _, success = getattr(foolbox.attacks, peer)(**arguments)(model, image, label, epsilons=None)
    result = attack(network, image, label)
    assert result.success.all()
    assert success.all()
    ours, peers = (median(x - image, norm) for x in (result.adversarial, theirs))
    assert ours <= 1.02 * peers, (ours, peers)


def median(delta: torch.Tensor, norm: Any) -> float:
    return float(torch.linalg.vector_norm(delta.flatten(1), ord=norm, dim=1).median())


@pytest.mark.parametrize("norm", [2, math.inf])
def test_fmn_finds_less_than_deepfool(norm: float) -> None:
    """The papers' order: a hundred steps along the border beat a jump across it."""
    network, image, label = problem()
    attacks: list[Attack] = [kind(LOSS, bounds=(0.0, 1.0), norm=norm) for kind in (FMN, DeepFool)]
    fmn, deepfool = (median(attack(network, image, label).adversarial - image, norm) for attack in attacks)
    assert fmn < deepfool
