# SPDX-License-Identifier: Apache-2.0
"""Budgets in L1 beside intensity bounds, and in L2 on a network that is very sure of itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from monai_smia.attacks import BIM, MIFGSM, PGD
from monai_smia.attacks.balls import faint_norm_of, norm_of, project_ball, project_ball_in_box
from monai_smia.attacks.steps import Normalize
from monai_smia.attacks.threat_models import LpBall


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Ascend(torch.nn.Module):
    """The first logit, which is linear in the image below."""

    reduction = "mean"

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return prediction[:, 0].mean()


def never(prediction: Any, target: Any) -> torch.Tensor:
    return torch.zeros(len(prediction), dtype=torch.bool)


def optimum(weight: torch.Tensor, image: torch.Tensor, eps: float) -> float:
    """Closed form: fill the room of the voxels in the order of their weights until the budget is spent."""
    room = torch.where(weight > 0, 1 - image, image)
    order = weight.abs().argsort(descending=True)
    spent = torch.minimum(room[order].cumsum(0), torch.tensor(eps)).diff(prepend=torch.zeros(1))
    return float((spent * weight.abs()[order]).sum())


@pytest.mark.parametrize("kind", [BIM, MIFGSM, PGD])
@pytest.mark.parametrize("shape", [(1, 3, 24, 24), (1, 1, 12, 12, 12)])
def test_l1_attacks_near_the_bounds_reach_the_optimum(kind: Any, shape: tuple[int, ...]) -> None:
    """A third of the voxels start at a bound, which half of them would have to leave."""
    image = (torch.rand(shape, generator=seeded(1)) * 1.6 - 0.3).clamp(0, 1)
    weight = torch.randn(image[0].numel(), generator=seeded(2))

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.flatten(1) @ weight, torch.zeros(len(x))], 1)

    attack = kind(Ascend(), eps=10.0, norm=1, steps=40, bounds=(0.0, 1.0), keep="best", criterion=never)
    change = attack(network, image, torch.tensor([0])).adversarial - image
    assert float(change.flatten() @ weight) >= 0.98 * optimum(weight, image.flatten(), 10.0)
    assert float(change.abs().sum()) <= 10.0 * (1 + 1e-5)


def test_a_voxel_at_its_bound_is_left_out_of_an_l1_step_only() -> None:
    z, gradient = torch.tensor([[[1.0, 0.0, 1.0, 0.5]]]), torch.tensor([[[2.0, -2.0, -1.0, 3.0]]])
    bounds = (0.0, 1.0)
    assert LpBall(1.0, 1.0, bounds).feasible(gradient, z).tolist() == [[[0.0, 0.0, -1.0, 3.0]]]
    for ball in (LpBall(1.0, 1.0), LpBall(1.0, 2.0, bounds), LpBall(1.0, bounds=bounds)):
        assert torch.equal(ball.feasible(gradient, z), gradient)


def test_the_projection_to_ball_and_box_is_the_nearest_point() -> None:
    """Of a convex set d is the nearest point to c where ``(c - d) . (y - d) <= 0`` for every y of the set."""
    image = torch.rand((3, 1, 8), generator=seeded(8)).double()
    change = torch.randn((3, 1, 8), generator=seeded(9)).double()
    ball = LpBall(eps=1.0, norm=1.0, bounds=(0.0, 1.0))
    nearest = ball.project(image, image + change) - image
    assert (nearest.abs().sum(2) <= 1 + 1e-12).all()
    assert ((image + nearest >= -1e-12) & (image + nearest <= 1 + 1e-12)).all()
    for draw in range(200):
        far = 2 * torch.randn(image.shape, generator=seeded(draw)).double()
        other = ball.project(image, (image + project_ball(far, 1.0, 1)).clamp(0, 1)) - image
        assert ((change - nearest) * (other - nearest)).sum(2).max() <= 1e-9
    one_after_the_other = (image + project_ball(change, 1.0, 1)).clamp(0, 1) - image
    assert (nearest - one_after_the_other).abs().max() > 0.01  # which is another point
    small = torch.full_like(change, 1e-3)
    torch.testing.assert_close(project_ball_in_box(small, 1.0, torch.tensor(-1.0), torch.tensor(1.0)), small)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-9, 1e3, 1e15])
def test_the_norm_of_a_gradient_has_the_bits_of_the_plain_one(size: float) -> None:
    vector = torch.randn((4, 1, 999), generator=seeded(3)) * size
    assert torch.equal(faint_norm_of(vector, 2), norm_of(vector, 2))


@pytest.mark.parametrize("size", [1e-15, 1e-25, 1e-38])
def test_a_faint_gradient_has_a_direction(size: float) -> None:
    vector = torch.randn((4, 1, 99), generator=seeded(4))
    unit, _ = Normalize(2).update(vector * size, None)
    torch.testing.assert_close(unit, vector / vector.norm(dim=2, keepdim=True), atol=1e-5, rtol=1e-4)
    assert not Normalize(2).update(torch.zeros(1, 1, 4), None)[0].any()


def test_an_l2_attack_moves_on_a_network_that_is_very_sure() -> None:
    """The gradient is exp(-60) times a weight: its squares are 0 in single precision.

    The first logit has a gradient of p - 1, which single precision rounds to 0, so the second one gives the direction.
    """
    weight = torch.randn((2, 16), generator=seeded(5))
    image = torch.rand((1, 1, 4, 4), generator=seeded(6))
    margin = (weight @ image.flatten()).diff()

    def network(x: torch.Tensor) -> torch.Tensor:
        logits = x.flatten(1) @ weight.T
        return torch.stack([logits[:, 0], logits[:, 1] - margin - 60.0], 1)

    target = torch.tensor([0])
    attack = BIM(torch.nn.CrossEntropyLoss(), eps=0.5, norm=2, steps=5)
    change = (attack(network, image, target).adversarial - image).flatten()
    torch.testing.assert_close(change, weight[1] / weight[1].norm() * 0.5, atol=1e-5, rtol=1e-4)
