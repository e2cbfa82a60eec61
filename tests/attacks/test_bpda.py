"""BPDA: the value of the step, the gradient of the approximation, and an attack that sees through rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_smia.attacks import BIM
from monai_smia.attacks.bpda import BPDA, straight_through_round


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_value_of_the_step_and_slope_of_the_approximation(rank: int) -> None:
    x = torch.randn(2, 3, *(6, 5, 4)[:rank], generator=seeded(rank), dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    weight = torch.randn(x.shape, generator=seeded(9), dtype=torch.float64)

    def through_numpy(value: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(value.numpy().round(1))

    for backward, slope in ((torch.sin, x.cos()), (None, torch.ones_like(x)), (nn.Tanh(), 1 - x.tanh().square())):
        y = BPDA(through_numpy, backward)(leaf)
        assert torch.equal(y, through_numpy(x))
        torch.testing.assert_close(torch.autograd.grad((y * weight).sum(), leaf)[0], slope * weight)
    with torch.no_grad():
        assert torch.equal(BPDA(torch.floor)(x), x.floor())
    assert torch.equal(BPDA(lambda value: value.mul_(0))(x), torch.zeros_like(x))
    assert torch.equal(leaf, x)  # a step that works in place has a copy


def test_a_step_that_changes_the_shape() -> None:
    """A step that halves the grid, approximated by a mean: the gradient is spread over both voxels."""
    x = torch.tensor([[[1.0, 4.0, 2.0, 3.0]]], requires_grad=True)
    layer = BPDA(lambda v: v.unflatten(2, (2, 2)).median(3).values, lambda v: v.unflatten(2, (2, 2)).mean(3))
    y = layer(x)
    assert y.tolist() == [[[1.0, 2.0]]]
    (gradient,) = torch.autograd.grad((y * torch.tensor([1.0, 3.0])).sum(), x)
    assert gradient.tolist() == [[[0.5, 0.5, 1.5, 1.5]]]


def test_what_carries_no_gradient_is_refused_by_name() -> None:
    x = torch.ones(1, 1, 4, requires_grad=True)
    with pytest.raises(TypeError, match="forward: expected a callable"):
        BPDA(3)
    with pytest.raises(TypeError, match="backward: expected a callable"):
        BPDA(torch.round, 3)
    with pytest.raises(TypeError, match="floating"):
        BPDA(lambda v: v.long())(x)
    with pytest.raises(ValueError, match="identity"):
        BPDA(lambda v: v[..., :2])(x)
    y = BPDA(torch.round, lambda v: v[..., :2])(x)
    with pytest.raises(ValueError, match="approximation"):
        torch.autograd.grad(y.sum(), x)
    with pytest.raises(ValueError, match="step"):
        straight_through_round(0.0)


@pytest.mark.parametrize("rank", [2, 3])
def test_an_attack_sees_through_rounding(rank: int) -> None:
    """A linear classifier behind five levels: plainly nothing moves; with BPDA every voxel goes against its weight."""
    shape = (2, 1, *(9, 7, 5)[:rank])
    weight = torch.randn(shape[1:], generator=seeded(4))
    image = torch.rand(shape, generator=seeded(5)) * 0.6 + 0.2
    level = 0.25

    def plain(x: torch.Tensor) -> torch.Tensor:
        return (x / level).round() * level

    middle = (plain(image) * weight).flatten(1).sum(1) - 0.5  # each sample is of class 1 by a margin of 0.5

    def behind(rounding):
        def network(x: torch.Tensor) -> torch.Tensor:
            margin = (rounding(x) * weight).flatten(1).sum(1) - middle
            return torch.stack((0 * margin, margin), 1)

        return network

    target = torch.ones(2, dtype=torch.long)
    attack = BIM(nn.CrossEntropyLoss(), eps=0.15, steps=3, bounds=(0.0, 1.0))
    blind = attack(behind(plain), image, target)
    seeing = attack(behind(straight_through_round(level)), image, target)
    assert torch.equal(blind.adversarial, image)
    assert not blind.success.any()
    assert not seeing.clean_success.any()
    assert seeing.success.all()
    torch.testing.assert_close(seeing.adversarial, (image - 0.15 * weight.sign()).clamp(0, 1))
    torch.testing.assert_close(seeing.clean_loss, blind.clean_loss)


def test_rounding_is_to_whole_numbers_unless_a_step_is_given() -> None:
    assert straight_through_round()(torch.tensor([0.4, 0.6, 1.6, -2.4])).tolist() == [0.0, 1.0, 2.0, -2.0]
