"""`BiasField`: the basis against SciPy, closed forms of linear networks, the field's range, and the contract."""

from __future__ import annotations

from typing import Any

import contract
import networks
import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss
from oracles import LinearMargin
from scipy.interpolate import BSpline
from torch import nn

import monai_smia.attacks
from monai_smia.attacks.bias_field import BiasField, bspline_basis

TASKS = ("classification", "multilabel", "segmentation")
# eps is no Lp radius of the image: the two clauses that measure one are replaced by `test_budget_bounds_and_autocast`
CLAUSES = sorted({*contract.CHECKS} - {"budget_and_bounds", "grad_modes"})


def make(**fixed: Any) -> contract.Make:
    """Built for Linf whatever norm a clause asks for."""
    return lambda loss, **arguments: BiasField(loss, **{"steps": 3, **fixed, **arguments, "norm": "inf"})


ROWS = {
    "BiasField": make(),
    "BiasField-linear-random": make(random_start=True, order=1, control_points=3, step_size=0.02, per_channel=True),
}
CASES = [("BiasField", rank, task) for rank in (2, 3) for task in TASKS]
CASES += [("BiasField-linear-random", 2, "segmentation"), ("BiasField-linear-random", 3, "classification")]


@pytest.mark.parametrize("clause", CLAUSES)
@pytest.mark.parametrize(("name", "rank", "task"), CASES)
def test_contract(name: str, rank: int, task: str, clause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monai_smia.attacks, "BiasField", BiasField, raising=False)
    contract.CHECKS[clause](contract.Case(ROWS[name], rank, task))


@pytest.mark.parametrize(("name", "rank", "task"), CASES)
def test_budget_bounds_and_autocast(name: str, rank: int, task: str) -> None:
    """``|x' - x| <= eps |x|`` voxel by voxel, per sample, under autocast too; the same bits in every grad mode."""
    case = contract.Case(ROWS[name], rank, task)
    image, network = case.image(), case.network()

    def relative(adversarial: torch.Tensor) -> torch.Tensor:
        return ((adversarial - image) / image).flatten(1).abs().amax(1)

    free = case.run(network, case.attack(bounds=None))
    assert bool((relative(free.adversarial) <= contract.EPS + 1e-5).all() and (relative(free.adversarial) > 0.02).all())
    eps = torch.tensor([0.0, 0.05, 0.5])
    size = relative(case.run(network, case.attack(eps=eps[:, None], bounds=None)).adversarial)
    assert bool((size <= eps + 1e-5).all())
    assert size[0] == 0
    tight = case.run(network, case.attack(eps=0.5)).adversarial
    assert bool((tight >= contract.BOUNDS[0]).all() and (tight <= contract.BOUNDS[1]).all())
    expected = case.run(network)
    with torch.inference_mode():
        assert torch.equal(case.run(network).adversarial, expected.adversarial)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = case.run(network, case.attack(bounds=None))
    for result in (cast, case.run(network, case.attack(amp="bfloat16", bounds=None))):
        assert not result.adversarial.requires_grad
        assert bool((relative(result.adversarial) <= contract.EPS + 1e-5).all())


@pytest.mark.parametrize(("count", "order"), [(1, 3), (2, 3), (3, 1), (4, 3), (5, 1), (6, 2), (9, 3), (4, 9)])
@pytest.mark.parametrize("size", [1, 2, 17])
def test_basis_is_scipys_and_a_partition_of_unity(size: int, count: int, order: int) -> None:
    degree = min(order, count - 1)
    inner = np.linspace(0, 1, count - degree + 1)
    knots = np.r_[[0.0] * degree, inner, [1.0] * degree]
    ours = bspline_basis(size, count, order)
    theirs = BSpline.design_matrix(np.linspace(0, 1, size), knots, degree).toarray()
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.sum(1), torch.ones(size, dtype=torch.float64))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_one_control_value_on_a_linear_network_in_closed_form(rank: int) -> None:
    """A constant field b makes the margin ``o w.1 + b w.(x - o)``; b is at the end of its range that lowers it."""
    shape = (2, 7, 6, 5)[: rank + 1]
    network = LinearMargin(shape).double()
    image = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eps, origin = 0.2, -0.1
    attack = BiasField(nn.CrossEntropyLoss(), eps=eps, control_points=1, origin=origin, steps=5)
    result = attack(network, image, torch.ones(8, dtype=torch.long))
    slope = network.margin(image - origin).detach()
    assert bool((slope > 0).any() and (slope < 0).any())
    field = (1 - eps * slope.sign()).reshape(-1, *[1] * (rank + 1))
    torch.testing.assert_close(result.adversarial, origin + field * (image - origin), rtol=0, atol=1e-12)


def test_linear_interpolation_on_a_linear_network_in_closed_form() -> None:
    """To first order in z each control value goes to the end that its own weight ``B^T (w x)`` says; 1-D, 2 values."""
    image = torch.rand(1, 1, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = torch.linspace(-1, 1, 9, dtype=torch.float64)

    def network(x: torch.Tensor) -> torch.Tensor:
        margin = (x * weight).flatten(1).sum(1)
        return torch.stack((torch.zeros_like(margin), margin), 1)

    attack = BiasField(nn.CrossEntropyLoss(), eps=0.1, control_points=2, steps=4)
    result = attack(network, image, torch.tensor([0]))
    u = torch.linspace(0, 1, 9, dtype=torch.float64)
    expected = image * torch.exp(np.log(0.9) * (1 - u) + np.log(1.1) * u)  # darker where w < 0, brighter where w > 0
    torch.testing.assert_close(result.adversarial, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [2, 3])
def test_the_field_is_a_low_order_polynomial(rank: int) -> None:
    """Differences of its logarithm of one order above the polynomial's vanish along every axis; one order lower not."""
    case = contract.Case(make(steps=4, control_points=3), rank, "segmentation")
    image = case.image().double().abs() + 0.5
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    attack = BiasField(loss, eps=0.3, control_points=3, steps=4)
    field = attack(case.network().double(), image, case.target()).adversarial / image
    assert float(field.min()) >= 0.7 - 1e-9
    assert float(field.max()) <= 1.3 + 1e-9
    assert float(field.max() - field.min()) > 0.1
    for axis in range(2, rank + 2):
        assert float(field.log().diff(n=3, dim=axis).abs().max()) < 1e-12
        assert float(field.log().diff(n=2, dim=axis).abs().max()) > 1e-4


def test_channels_share_a_field_unless_told_otherwise_and_axes_have_their_own_numbers() -> None:
    network = networks.tiny_network(3, dense=True, channels=2)
    image = torch.rand(1, 2, 9, 7, 5, generator=torch.Generator().manual_seed(1)) + 0.5
    label = torch.randint(3, (1, 1, 9, 7, 5), generator=torch.Generator().manual_seed(2))
    loss = DiceCELoss(to_onehot_y=True, softmax=True)

    def field(**arguments: Any) -> torch.Tensor:
        return BiasField(loss, eps=0.1, **arguments)(network, image, label).adversarial / image

    shared = field(control_points=(4, 2, 1))
    torch.testing.assert_close(shared[:, 0], shared[:, 1], rtol=0, atol=1e-6)
    torch.testing.assert_close(shared, shared[..., :1].expand_as(shared), rtol=0, atol=1e-6)
    own = field(per_channel=True)
    assert not torch.allclose(own[:, 0], own[:, 1], atol=1e-3)
    one_eps = BiasField(loss, eps=(0.0, 0.2), per_channel=True)
    only_second = one_eps(network, image, label).adversarial
    assert torch.equal(only_second[:, 0], image[:, 0])
    assert not torch.equal(only_second[:, 1], image[:, 1])


def test_errors() -> None:
    loss = nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match="norm: the budget of BiasField is the largest relative deviation"):
        BiasField(loss, eps=0.1, norm=2)
    with pytest.raises(ValueError, match="eps: expected a relative deviation in \\[0, 1\\)"):
        BiasField(loss, eps=1.0)
    with pytest.raises(ValueError, match="order: expected a whole number >= 1; got 0"):
        BiasField(loss, eps=0.1, order=0)
    with pytest.raises(ValueError, match="control_points: expected a whole number >= 1; got 0"):
        BiasField(loss, eps=0.1, control_points=(4, 0))
    image = torch.ones(1, 2, 4, 4)
    with pytest.raises(ValueError, match="control_points: expected a number or 2, one per spatial axis"):
        BiasField(loss, eps=0.1, control_points=(4, 4, 4))(nn.Flatten(), image, torch.tensor([0]))
    with pytest.raises(ValueError, match="eps: all channels share a field"):
        BiasField(loss, eps=(0.1, 0.2))(nn.Flatten(), image, torch.tensor([0]))
