# SPDX-License-Identifier: Apache-2.0
"""L1 budgets on small images, where most steps end at a bound: what a linear loss gains over its optimum."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from monai_smia.attacks import BIM, PGD
from monai_smia.attacks.threat_models import LpBall


class Ascend(torch.nn.Module):
    """The first score, which is linear in the image below."""

    reduction = "mean"

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return prediction[:, 0].mean()


def gained(kind: Any, eps: float, seed: int, steps: int) -> float:
    """What the attack adds to the score, over the most that the budget and the bounds allow."""
    source = torch.Generator().manual_seed(seed)
    weight, image = torch.randn(400, generator=source), torch.rand((1, 1, 20, 20), generator=source)

    def network(x: torch.Tensor) -> torch.Tensor:
        score = (x - image).flatten(1) @ weight
        return torch.stack((score, torch.zeros_like(score)), 1)

    attack = kind(Ascend(), eps=eps, norm=1, bounds=(0.0, 1.0), steps=steps)
    change = (attack(network, image, torch.tensor([0])).adversarial - image).flatten()
    assert float(change.double().abs().sum()) <= eps * (1 + 1e-5)
    flat = image.flatten()
    room = torch.where(weight > 0, 1 - flat, flat)
    order = weight.abs().argsort(descending=True)
    spent = torch.minimum(room[order].cumsum(0), torch.tensor(eps)).diff(prepend=torch.zeros(1))
    return float(change @ weight) / float((spent * weight.abs()[order]).sum())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("eps", [5.0, 20.0])
def test_a_random_start_costs_nothing_and_more_steps_help(eps: float, seed: int) -> None:
    few, many = (gained(PGD, eps, seed, steps) for steps in (10, 100))
    assert few >= gained(BIM, eps, seed, 10) / 1.1
    assert few >= 0.9
    assert many >= max(few, 0.99)


def test_what_a_step_has_left_over_goes_to_the_next_voxels() -> None:
    """Of a step of 0.6 to the first voxel 0.1 fits; no other gets more than 0.6, and the room that each has."""
    ball = LpBall(eps=10.0, norm=1.0, bounds=(0.0, 1.0))
    z = torch.tensor([[[0.9, 0.8, 0.05, 0.5]]])
    gradient = torch.tensor([[[4.0, 3.0, -2.0, 1.0]]])
    update = torch.tensor([[[0.6, 0.0, 0.0, 0.0]]])
    spent = ball.spend(update, gradient, z)
    torch.testing.assert_close(spent, torch.tensor([[[0.1, 0.2, -0.05, 0.25]]]))
    for other in (LpBall(10.0, 1.0), LpBall(10.0, 2.0, (0.0, 1.0)), LpBall(10.0, bounds=(0.0, 1.0))):
        assert torch.equal(other.spend(update, gradient, z), update)
