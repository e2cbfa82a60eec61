"""Attacks against closed-form optima of linear networks, and against identities between attacks."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import (
    BIM,
    DIFGSM,
    FGSM,
    MIFGSM,
    NIFGSM,
    PGD,
    SMIA,
    TIFGSM,
    VMIFGSM,
    CosPGD,
    DiceBelow,
    SegPGD,
)

SHAPES = [(1, 6, 5), (3, 7, 4), (2, 5, 4, 3)]
BUDGETED = [FGSM, BIM, PGD, MIFGSM, NIFGSM, VMIFGSM, SMIA, SegPGD, CosPGD]
NORMS = [math.inf, 2.0, 1.0]


def few_steps(attack):
    """Enough to converge, without the neighbourhood that a linear network does not need."""
    if attack is FGSM:
        return {}
    return {"steps": 20, **({"neighbours": 1} if attack is VMIFGSM else {})}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attack", BUDGETED)
def test_a_budget_attack_reaches_the_linear_optimum(attack, shape, norm):
    network = oracles.LinearMargin(shape)
    image = torch.rand((4, *shape), generator=torch.Generator().manual_seed(3))
    target = torch.tensor([0, 1, 0, 1])
    eps = {math.inf: 0.05, 2.0: 0.5, 1.0: 1.0}[norm]
    extra = few_steps(attack)
    if attack in (PGD, SegPGD, CosPGD) and norm != math.inf:  # it takes long steps to leave a random start behind
        extra["step_size"] = eps
    result = attack(nn.CrossEntropyLoss(), eps=eps, norm=norm, **extra)(network, image, target)
    moved = network.margin(result.adversarial) - network.margin(image)
    away = torch.where(target == 1, -moved, moved)
    optimum = oracles.largest_margin_change(network.weight, eps, norm)
    assert (away >= optimum / 1.01).all()
    assert (away <= optimum * (1 + 1e-4)).all()


@pytest.mark.parametrize("attack", BUDGETED)
def test_success_appears_at_the_closed_form_distance(attack):
    """Just above the distance to the boundary every attack succeeds, just below none does; also voxel by voxel."""
    shape = (2, 5, 4, 3)
    network = oracles.LinearMargin(shape)
    image = torch.rand((3, *shape), generator=torch.Generator().manual_seed(4))
    target = (network.margin(image) > 0).long()
    distance = network.margin(image).abs() / network.weight.abs().sum()
    for factor, expected in ((1.01, True), (0.99, False)):
        make = attack(nn.CrossEntropyLoss(), eps=(factor * distance)[:, None], **few_steps(attack))
        result = make(network, image, target)
        assert result.success.tolist() == [expected] * 3
        assert not result.clean_success.any()


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("attack", BUDGETED)
def test_every_voxel_reaches_its_own_optimum(attack, rank):
    """A 1x1 convolution: each voxel's margin changes by ``eps * |w|_1``, no more and no less."""
    network = oracles.VoxelMargin(3, rank)
    image = torch.rand((2, 3, 6, 5, 4)[: rank + 2], generator=torch.Generator().manual_seed(5))
    target = torch.randint(2, (2, 1, 6, 5, 4)[: rank + 2], generator=torch.Generator().manual_seed(6))
    make = attack(nn.CrossEntropyLoss(), eps=0.1, criterion=DiceBelow(), **few_steps(attack))
    moved = network.margin(make(network, image, target).adversarial) - network.margin(image)
    away = torch.where(target[:, 0] == 1, -moved, moved)
    optimum = oracles.largest_margin_change(network.weight, 0.1, math.inf)
    torch.testing.assert_close(away, optimum.detach().expand_as(away), rtol=0.01, atol=0)


def test_bounds_are_part_of_the_optimum():
    """In a box the Linf optimum moves every voxel to the nearer of eps and the bound."""
    network = oracles.LinearMargin((1, 6, 5))
    image = torch.rand((2, 1, 6, 5), generator=torch.Generator().manual_seed(7))
    result = BIM(nn.CrossEntropyLoss(), eps=0.3, bounds=(0.0, 1.0))(network, image, torch.tensor([0, 0]))
    expected = (image + 0.3 * network.weight.sign()).clamp(0, 1)
    torch.testing.assert_close(result.adversarial, expected.detach(), rtol=0, atol=1e-6)


def test_a_targeted_attack_goes_the_other_way():
    network = oracles.LinearMargin((1, 6, 5))
    image = torch.rand((2, 1, 6, 5), generator=torch.Generator().manual_seed(8))
    attack = PGD(nn.CrossEntropyLoss(), eps=0.5, targeted=True, steps=20)
    for label in (0, 1):
        result = attack(network, image, torch.full((2,), label))
        expected = image + (0.5 if label else -0.5) * network.weight.sign()
        torch.testing.assert_close(result.adversarial, expected.detach(), rtol=0, atol=1e-6)
        assert result.success.all()
        assert (result.loss < result.clean_loss).all()


@pytest.mark.parametrize("attack", [FGSM, BIM, MIFGSM, NIFGSM, TIFGSM, SMIA])
@pytest.mark.parametrize("norm", [2.0, 1.0])
def test_a_small_mask_gets_the_whole_budget(attack, norm):
    """16 of 4096 voxels may change: the optimum over these alone, by the dual norm."""
    network = oracles.LinearMargin((1, 16, 16, 16))
    image = torch.rand((1, 1, 16, 16, 16), generator=torch.Generator().manual_seed(10))
    mask = torch.zeros(1, 1, 16, 16, 16)
    mask[..., 4:8, 4:8, 4:5] = 1
    extra = {"sigma": 0.0} if attack is TIFGSM else {}
    result = attack(nn.CrossEntropyLoss(), eps=0.5, norm=norm, **extra)(network, image, torch.tensor([0]), mask=mask)
    moved = network.margin(result.adversarial) - network.margin(image)
    optimum = oracles.largest_margin_change(network.weight[mask[0] > 0], 0.5, norm)
    assert float(moved) == pytest.approx(float(optimum), rel=0.01)


@pytest.mark.parametrize("attack", [FGSM, BIM, MIFGSM, SMIA])
@pytest.mark.parametrize("norm", [2.0, 1.0])
def test_every_channel_uses_its_own_ball(attack, norm):
    network = oracles.LinearMargin((2, 6, 5))
    with torch.no_grad():
        network.weight[1] *= 1e-2
    image = torch.rand((2, 2, 6, 5), generator=torch.Generator().manual_seed(11))
    result = attack(nn.CrossEntropyLoss(), eps=[[0.5, 0.2]], norm=norm)(network, image, torch.tensor([0, 0]))
    moved = network.margin(result.adversarial) - network.margin(image)
    optimum = sum(oracles.largest_margin_change(network.weight[c], eps, norm) for c, eps in ((0, 0.5), (1, 0.2)))
    torch.testing.assert_close(moved, optimum.detach().expand(2), rtol=0.01, atol=0)


@pytest.mark.parametrize(("attack", "reach"), [(VMIFGSM, 1 + 1.5), (NIFGSM, 1 + 2.5), (MIFGSM, 1.0), (SMIA, 1.0)])
@pytest.mark.parametrize("norm", [2.0, 1.0])
def test_what_the_network_is_shown_has_the_units_of_the_norm(attack, reach, norm):
    """VMI looks within beta eps of the iterate, NI at most all its momentum ahead: none grows with the image."""
    image = torch.rand((1, 1, 32, 32), generator=torch.Generator().manual_seed(12))
    network, seen = oracles.LinearMargin((1, 32, 32)), []

    def watched(x):
        seen.append(float(torch.linalg.vector_norm((x.detach() - image).flatten(), norm)))
        return network(x)

    attack(nn.CrossEntropyLoss(), eps=1.0, norm=norm)(watched, image, torch.tensor([0]))
    assert max(seen) <= reach * (1 + 1e-4)


def test_ti_takes_its_whole_step_inside_a_mask():
    network = oracles.LinearMargin((1, 12, 12))
    image, mask = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(13)), torch.zeros(1, 1, 12, 12)
    mask[..., 3:5, 3:5] = 1
    attack = TIFGSM(nn.CrossEntropyLoss(), eps=1.0, steps=1, step_size=0.5, norm=2)
    change = (attack(network, image, torch.tensor([0]), mask=mask).adversarial - image).norm()
    assert float(change) == pytest.approx(0.5, abs=1e-5)


@pytest.fixture(params=[2, 3])
def setup(request):
    import networks

    network = networks.tiny_network(request.param, dense=True, channels=2)
    source = torch.Generator().manual_seed(9)
    image = torch.rand((3, 2, 9, 7, 5)[: request.param + 2], generator=source)
    target = torch.randint(3, (3, 1, 9, 7, 5)[: request.param + 2], generator=source)
    return network, image, target


LOSS = nn.CrossEntropyLoss()
COMMON = {"eps": 0.1, "steps": 5, "bounds": (0.0, 1.0)}
SAME_AS_BIM = {
    "PGD without random start": PGD(LOSS, random_start=False, **COMMON),
    "MI with decay 0": MIFGSM(LOSS, decay=0.0, **COMMON),
    "NI with decay 0": NIFGSM(LOSS, decay=0.0, **COMMON),
    "VMI with decay 0 and no neighbourhood": VMIFGSM(LOSS, decay=0.0, beta=0.0, neighbours=1, **COMMON),
    "DI that never resizes, decay 0": DIFGSM(LOSS, decay=0.0, diversity_probability=0.0, **COMMON),
    "TI with sigma 0": TIFGSM(LOSS, sigma=0.0, **COMMON),
    "SMIA with weight 0": SMIA(LOSS, stabilization_weight=0.0, **COMMON),
    "SMIA with weight 0, by gradient": SMIA(LOSS, stabilization_weight=0.0, combine="gradient", **COMMON),
    "SMIA of the authors with weight 0": SMIA.authors(LOSS, stabilization_weight=0.0, **COMMON),
}


@pytest.mark.parametrize("name", SAME_AS_BIM)
def test_equals_bim_bit_for_bit(name, setup):
    expected = BIM(LOSS, **COMMON)(*setup)
    result = SAME_AS_BIM[name](*setup)
    assert torch.equal(result.adversarial, expected.adversarial)
    assert not torch.equal(result.adversarial, setup[1])
    if name.startswith("SMIA"):
        assert torch.equal(result.forward_passes, expected.forward_passes)


def test_bim_with_one_step_is_fgsm(setup):
    one = BIM(LOSS, eps=0.1, steps=1, step_size=0.1, bounds=(0.0, 1.0))(*setup)
    assert torch.equal(one.adversarial, FGSM(LOSS, eps=0.1, bounds=(0.0, 1.0))(*setup).adversarial)


def test_di_without_resize_is_mi(setup):
    never = DIFGSM(LOSS, diversity_probability=0.0, **COMMON)(*setup)
    assert torch.equal(never.adversarial, MIFGSM(LOSS, **COMMON)(*setup).adversarial)
    always = DIFGSM(LOSS, diversity_probability=1.0, **COMMON)(*setup)
    assert not torch.equal(always.adversarial, never.adversarial)


def iterate(network, image, gradient, steps=5, eps=0.1, alpha=0.05):
    """A textbook Linf loop in [0, 1], written without the library."""
    network = network.eval()
    x, states = image.clone(), []
    for t in range(steps):
        step = alpha * gradient(network, x, t, states).sign()
        states.append((x, step))
        x = (image + (x + step - image).clamp(-eps, eps)).clamp(0, 1)
    return x


def gradient_of(function, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


@pytest.mark.parametrize("kind", ["MIFGSM", "NIFGSM", "TIFGSM", "SegPGD", "CosPGD"])
def test_equals_a_loop_written_out(kind, setup):
    """Each formula once more, by hand, on several samples."""
    network, image, target = setup
    index, memory = target[:, 0], {"m": torch.zeros_like(image)}
    axes = tuple(range(1, image.ndim))

    def entropy(x):
        return F.cross_entropy(network(x), index, reduction="none")

    def gradient(network, x, t, states):
        if kind in ("MIFGSM", "NIFGSM"):
            at = x + 0.05 * memory["m"] if kind == "NIFGSM" else x
            g = gradient_of(lambda v: entropy(v).sum(), at)
            memory["m"] = memory["m"] + g / g.abs().mean(axes, keepdim=True)
            return memory["m"]
        if kind == "TIFGSM":
            g = gradient_of(lambda v: entropy(v).sum(), x)
            taps = torch.exp(-0.5 * torch.arange(-1.0, 2.0) ** 2)
            taps = taps / taps.sum()
            for axis in range(2, image.ndim):
                near = [torch.roll(g, shift, axis) for shift in (1, 0, -1)]
                near[0].select(axis, 0).zero_()
                near[2].select(axis, -1).zero_()
                g = sum(tap * item for tap, item in zip(taps, near, strict=True))
            return g

        def weighted(v):
            with torch.no_grad():
                output = network(v)
                if kind == "SegPGD":
                    share = t / 10
                    weight = torch.where(output.argmax(1) == index, 1 - share, share)
                else:
                    p = output.softmax(1)
                    weight = p.gather(1, target)[:, 0] / p.norm(dim=1)
            return (weight * entropy(v)).sum()

        return gradient_of(weighted, x)

    extra = {
        "TIFGSM": {"kernel_size": 3, "sigma": 1.0},
        "SegPGD": {"random_start": False},
        "CosPGD": {"random_start": False},
    }
    attack = {"MIFGSM": MIFGSM, "NIFGSM": NIFGSM, "TIFGSM": TIFGSM, "SegPGD": SegPGD, "CosPGD": CosPGD}[kind]
    result = attack(LOSS, **COMMON, **extra.get(kind, {}))(network, image, target)
    expected = iterate(network, image, gradient)
    # a component of the gradient that is zero but for rounding may take either sign
    assert (result.adversarial - expected).abs().gt(1e-6).float().mean() < 2e-3


def test_vmi_equals_a_loop_written_out(setup):
    network, image, target = setup
    memory = {"m": torch.zeros_like(image), "v": torch.zeros_like(image)}
    source = torch.Generator().manual_seed(21)
    axes = tuple(range(1, image.ndim))

    def gradient(network, x, t, states):
        def at(v):
            return gradient_of(lambda u: F.cross_entropy(network(u), target[:, 0], reduction="sum"), v)

        g = at(x)
        total = sum(at(x + (2 * torch.rand(x.shape, generator=source) - 1) * 0.15) for _ in range(2))
        corrected = g + memory["v"]
        memory["v"] = total / 2 - g
        memory["m"] = memory["m"] + corrected / corrected.abs().mean(axes, keepdim=True)
        return memory["m"]

    expected = iterate(network, image, gradient)
    result = VMIFGSM(LOSS, neighbours=2, **COMMON)(*setup, generator=torch.Generator().manual_seed(21))
    assert (result.adversarial - expected).abs().gt(1e-6).float().mean() < 2e-3


@pytest.mark.parametrize("attack", [BIM, PGD, MIFGSM, SMIA, SegPGD, CosPGD])
def test_keep_best_never_loses(attack, setup):
    """The best iterate is at least as strong as the last, and as the clean image where the start is the image."""
    rough = {"eps": 0.3, "steps": 6, "step_size": 0.3, "bounds": (0.0, 1.0)}
    last = attack(LOSS, keep="last", **rough)(*setup)
    best = attack(LOSS, keep="best", **rough)(*setup)
    assert (best.loss >= last.loss - 1e-6).all()
    if not attack(LOSS, **rough).is_random:
        assert (best.loss >= best.clean_loss - 1e-6).all()


def test_restarts_never_lose(setup):
    losses = [PGD(LOSS, restarts=n, **COMMON)(*setup) for n in (1, 4)]
    better = losses[1].success.int() - losses[0].success.int()
    assert (better >= 0).all()
    assert (losses[1].loss[better == 0] >= losses[0].loss[better == 0]).all()
    assert losses[1].backward_passes.tolist() == [20] * 3
