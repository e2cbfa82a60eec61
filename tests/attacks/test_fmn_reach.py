# SPDX-License-Identifier: Apache-2.0
"""The norm that FMN and DDN find over the closed-form optimum of a linear network, in every size and unit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from monai_smia.attacks import DDN, FMN, AutoAttack

LOSS = torch.nn.CrossEntropyLoss()
DUAL = {math.inf: 1.0, 2.0: 2.0, 1.0: math.inf}


class Linear:
    """Two scores that differ by ``w . (x - image) - margin``, whose border is `optimum` away from the image."""

    def __init__(self, shape: tuple[int, ...], norm: float, optimum: float, scale: float = 1.0) -> None:
        source = torch.Generator().manual_seed(len(shape))
        self.image = (0.4 + 0.2 * torch.rand((1, 1, *shape), generator=source)) * scale
        self.weight = torch.randn(self.image.numel(), generator=source)
        self.weight /= self.weight.norm()
        self.margin = optimum * float(torch.linalg.vector_norm(self.weight.double(), ord=DUAL[norm]))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        gap = (x - self.image).flatten(1) @ self.weight + self.margin
        return torch.stack((gap, torch.zeros_like(gap)), 1)


def ratio(attack: Any, network: Linear, optimum: float) -> float:
    result = attack(network, network.image, torch.tensor([0]))
    assert bool(result.success)
    change = (result.adversarial - network.image).double().flatten()
    return float(torch.linalg.vector_norm(change, ord=float(attack.norm))) / optimum


SIZES = [(20, 20), (96, 96), (64, 64, 64), (128, 128, 128)]
ROWS = [(FMN, math.inf), (FMN, 2.0), (DDN, 2.0)]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize(("kind", "norm"), ROWS)
def test_the_optimum_is_reached_in_every_size(kind: Any, norm: float, shape: tuple[int, ...]) -> None:
    """An optimum of 8 grey levels in every voxel: 0.6 in L2 at 20x20, 45 at 128x128x128."""
    optimum = 8 / 255 * (math.prod(shape) ** 0.5 if norm == 2 else 1.0)
    attack = kind(LOSS, norm=norm, bounds=(0.0, 1.0), steps=20)
    assert 1 - 1e-5 <= ratio(attack, Linear(shape, norm, optimum), optimum) <= 1.1


def test_the_optimum_is_reached_in_a_whole_volume() -> None:
    optimum = 8 / 255
    attack = FMN(LOSS, bounds=(0.0, 1.0), steps=10)
    assert 1 - 1e-5 <= ratio(attack, Linear((192, 192, 192), math.inf, optimum), optimum) <= 1.1


@pytest.mark.parametrize("shape", [(20, 20), (128, 128)])
@pytest.mark.parametrize("optimum", [0.3, 20.0])
def test_the_optimum_is_reached_in_l1(shape: tuple[int, ...], optimum: float) -> None:
    """All of it in one voxel, which no bound keeps from it."""
    assert 1 - 1e-5 <= ratio(FMN(LOSS, norm=1), Linear(shape, 1.0, optimum), optimum) <= 1.1


@pytest.mark.parametrize("optimum", [0.3, 2.0, 20.0])
def test_the_optimum_is_reached_in_l1_inside_bounds(optimum: float) -> None:
    """Closed form: voxels in the order of their weights, each to its bound, until the margin is spent."""
    network = Linear((20, 20), 1.0, 1.0)
    w, image = network.weight, network.image.flatten()
    room = torch.where(w > 0, image, 1 - image)
    order = w.abs().argsort(descending=True)
    spent = torch.minimum(room[order].cumsum(0), torch.tensor(optimum)).diff(prepend=torch.zeros(1))
    network.margin = float((spent * w.abs()[order]).sum())
    attack = FMN(LOSS, norm=1, bounds=(0.0, 1.0))
    assert 1 - 1e-4 <= ratio(attack, network, optimum) <= 1.1


@pytest.mark.parametrize("scale", [1e-3, 1.0, 4000.0])
@pytest.mark.parametrize(("kind", "norm"), [*ROWS, (FMN, 1.0)])
def test_the_unit_of_the_image_plays_no_part(kind: Any, norm: float, scale: float) -> None:
    optimum = 0.05 * scale
    attack = kind(LOSS, norm=norm)
    assert 1 - 1e-4 <= ratio(attack, Linear((32, 32), norm, optimum, scale), optimum) <= 1.1


def test_auto_attack_reaches_what_fmn_reaches() -> None:
    """FMN alone, in a volume at a budget a tenth over the optimum."""
    optimum = 8 / 255
    network = Linear((64, 64, 64), math.inf, optimum)
    attack = AutoAttack(LOSS, eps=1.1 * optimum, bounds=(0.0, 1.0), members=["fmn"], steps=20)
    result = attack(network, network.image, torch.tensor([0]))
    assert bool(result.success)
