"""`VAFA`: the cosine transform and SSIM against SciPy, one step written out, the size of the change, the contract."""

from __future__ import annotations

import dataclasses
from typing import Any

import contract
import networks
import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss
from scipy.fft import dctn, idctn
from scipy.ndimage import uniform_filter
from torch import nn

import monai_smia.attacks
from monai_smia.attacks import LpBall
from monai_smia.attacks.frequency import BlockDCT
from monai_smia.attacks.similarity import structural_similarity
from monai_smia.attacks.vafa import VAFA, QuantizedBlocks, soft_round

TASKS = ("classification", "multilabel", "segmentation")
# eps is no Lp radius of the image: two clauses are replaced by `test_budget_bounds_and_autocast`, and as the attack
# starts from the quantised image the one of a bad sample by `test_a_bad_sample_is_quantised_and_spoils_no_other`
CLAUSES = sorted({*contract.CHECKS} - {"budget_and_bounds", "grad_modes", "bad_sample"})


def make(**fixed: Any) -> contract.Make:
    """Built for Linf whatever norm a clause asks for."""
    return lambda loss, **arguments: VAFA(loss, **{"steps": 3, "block_size": 4, **fixed, **arguments, "norm": "inf"})


ROWS = {
    "VAFA": make(),
    "VAFA-random-best": make(random_start=True, keep="best", restarts=2, ssim_weight=0.0, floor=0.1, block_size=32),
}
CASES = [("VAFA", rank, task) for rank in (2, 3) for task in TASKS]
CASES += [("VAFA-random-best", 2, "segmentation"), ("VAFA-random-best", 3, "classification")]


@pytest.mark.parametrize("clause", CLAUSES)
@pytest.mark.parametrize(("name", "rank", "task"), CASES)
def test_contract(name: str, rank: int, task: str, clause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monai_smia.attacks, "VAFA", VAFA, raising=False)
    contract.CHECKS[clause](contract.Case(ROWS[name], rank, task))


@pytest.mark.parametrize(("name", "rank", "task"), CASES)
def test_budget_bounds_and_autocast(name: str, rank: int, task: str) -> None:
    """At most eps / 2 root mean square over the padded image; bounds; the same bits in every grad mode."""
    case = contract.Case(ROWS[name], rank, task)
    image, network = case.image(), case.network()
    block = case.attack().block_size
    padded = np.prod([-(-size // min(size, block)) * min(size, block) for size in image.shape[2:]])

    def check(adversarial: torch.Tensor, eps: torch.Tensor | float) -> torch.Tensor:
        assert bool((adversarial >= contract.BOUNDS[0]).all() and (adversarial <= contract.BOUNDS[1]).all())
        size = (adversarial - image).flatten(1).square().sum(1)
        assert bool((size.sqrt() <= eps / 2 * padded**0.5 + 1e-6).all())
        return size

    expected = case.run(network)
    assert bool((check(expected.adversarial, contract.EPS) > 0).all())
    eps = torch.tensor([0.0, 0.1, 0.4])
    size = check(case.run(network, case.attack(eps=eps[:, None])).adversarial, eps)
    assert size[0] == 0
    assert size[2] > size[1] > 0
    with torch.inference_mode():
        assert torch.equal(case.run(network).adversarial, expected.adversarial)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = case.run(network)
    for result in (cast, case.run(network, case.attack(amp="bfloat16"))):
        assert not result.adversarial.requires_grad
        check(result.adversarial, contract.EPS)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_bad_sample_is_quantised_and_spoils_no_other(rank: int) -> None:
    case = contract.Case(ROWS["VAFA"], rank, "segmentation")
    network, image = case.network().eval(), case.image()

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            gradient = gradient.clone()
            gradient[0] = torch.nan
            return gradient

    healthy, poisoned = case.run(network, image=image), case.run(lambda x: network(Poison.apply(x)), image=image)
    assert torch.equal(poisoned.adversarial[1:], healthy.adversarial[1:])
    assert poisoned.nonfinite_gradients.tolist() == [3, 0, 0]
    model = QuantizedBlocks(contract.EPS, 0.25, BlockDCT((4,) * rank), 0.5, 0.0, LpBall(1.0, bounds=contract.BOUNDS))
    quantised = model.apply(image, model.init(image, None))
    torch.testing.assert_close(poisoned.adversarial[0], quantised[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 8, 6), (1, 2, 8, 6, 4), (1, 2, 7, 5, 3), (1, 1, 9, 4, 2)])
@pytest.mark.parametrize("block", [1, 2, 4, 16])
def test_transform_is_scipys_in_every_block_and_has_an_inverse(shape: tuple[int, ...], block: int) -> None:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blocks = (block, 3, 2)[: len(shape) - 2]
    dct = BlockDCT(blocks)
    coefficients = dct.forward(image)
    torch.testing.assert_close(dct.inverse(coefficients, shape), image, rtol=0, atol=1e-12)
    sizes = [min(b, s) for b, s in zip(blocks, shape[2:], strict=True)]
    pad = [(0, 0), (0, 0), *((0, -s % b) for b, s in zip(sizes, shape[2:], strict=True))]
    padded = np.pad(image.numpy(), pad, mode="edge")
    assert coefficients.shape == padded.shape
    axes = tuple(range(2, len(shape)))
    for corner in np.ndindex(*[size // b for b, size in zip(sizes, padded.shape[2:], strict=True)]):
        where = (..., *(slice(i * b, (i + 1) * b) for i, b in zip(corner, sizes, strict=True)))
        theirs = dctn(padded[where], norm="ortho", axes=axes)
        np.testing.assert_allclose(coefficients[where].numpy(), theirs, rtol=0, atol=1e-12)
    energy = float(torch.as_tensor(padded).square().sum())
    assert float(coefficients.square().sum()) == pytest.approx(energy, rel=1e-12)


@pytest.mark.parametrize("rank", [2, 3])
def test_ssim_is_the_formula_over_scipys_moments(rank: int) -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.rand(2, 2, *(9, 8, 7)[:rank], generator=source, dtype=torch.float64)
    y = x + 0.1 * torch.randn(x.shape, generator=source, dtype=torch.float64)

    def mean(values: torch.Tensor) -> Any:
        return uniform_filter(values.numpy(), size=(1, 1, *[3] * rank), mode="nearest")

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.02**2, 0.06**2
    expected = ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    ours = structural_similarity(x, y, 2.0)
    np.testing.assert_allclose(ours.numpy(), expected.reshape(2, -1).mean(1), rtol=1e-6)
    assert bool((ours < 0.99).all())
    torch.testing.assert_close(structural_similarity(x, x, 2.0), torch.ones(2, dtype=torch.float64))


def test_soft_rounding() -> None:
    v = torch.linspace(-3, 3, 1201, dtype=torch.float64)
    for softness in (0.5, 0.1, 1e-3):
        rounded = soft_round(v, softness)
        assert float((rounded - v).abs().max()) <= 0.5 + 1e-12
        assert bool((rounded.diff() > -1e-12).all())
        torch.testing.assert_close(rounded[::100], v[::100], rtol=0, atol=1e-12)  # integers and halves
    assert torch.equal(soft_round(v, 0.0), torch.floor(v + 0.5))
    off = (v - v.floor() - 0.5).abs() > 0.01
    torch.testing.assert_close(soft_round(v, 2e-4)[off], soft_round(v, 0.0)[off], rtol=0, atol=0.48)
    torch.autograd.gradcheck(lambda x: soft_round(x, 0.2), torch.tensor([0.3, -1.2, 2.6]).double().requires_grad_())


def test_one_step_written_out_with_scipy() -> None:
    """Hard rounding of a table that one signed step of finite differences chose."""
    network = networks.tiny_network(2, dense=True).eval().double()
    image = torch.rand(1, 1, 4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    label = torch.randint(3, image.shape, generator=torch.Generator().manual_seed(6))
    loss, eps, h = DiceCELoss(to_onehot_y=True, softmax=True), 0.4, 1e-7
    attack = VAFA(loss, eps=eps, steps=1, step_size=0.1, block_size=4, ssim_weight=0.7)
    result = attack(network, image, label)
    coefficients = dctn(image[0, 0].numpy(), norm="ortho")

    def quantised(table: np.ndarray, softness: float) -> torch.Tensor:
        v = coefficients / table
        inner = np.tanh(np.log(2 / softness - 1) * (v - np.floor(v) - 0.5)) / (1 - softness) if softness else 0
        rounded = np.floor(v) + (1 + inner) / 2 if softness else np.round(v)
        return torch.as_tensor(idctn(table * rounded, norm="ortho"))[None, None]

    def value(table: np.ndarray) -> float:
        x = quantised(table, 0.1)
        width = float(image.max() - image.min())
        with torch.no_grad():
            return float(loss(network(x), label) + 0.7 * structural_similarity(image, x, width)[0])

    table = np.full((4, 3), eps)
    slope = np.zeros_like(table)
    for index in np.ndindex(table.shape):
        low, high = table.copy(), table.copy()
        low[index] -= h
        high[index] += h
        slope[index] = (value(high) - value(low)) / (2 * h)
    assert (np.abs(slope) > 1e-5).all()
    table = np.clip(table + 0.1 * np.sign(slope), 0.25 * eps, eps)
    assert 0 < (table < eps).sum() < 12
    torch.testing.assert_close(result.adversarial, quantised(table, 0.0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("rank", [2, 3])
def test_beats_its_own_first_table(rank: int) -> None:
    case = contract.Case(ROWS["VAFA"], rank, "segmentation", batch=4)
    network, image, target = case.network(), case.image(), case.target()
    losses = [
        VAFA(case.loss(), eps=0.5, steps=10, block_size=4, bounds=contract.BOUNDS, step_size=step)(
            network, image, target
        )
        for step in (0.0, None)
    ]
    assert bool((losses[1].loss > losses[0].loss).all())


def test_errors() -> None:
    loss = nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match="norm: the budget of VAFA is the largest quantisation step"):
        VAFA(loss, eps=0.1, norm=2)
    with pytest.raises(ValueError, match="floor: expected a number in \\(0, 1\\]; got 0"):
        VAFA(loss, eps=0.1, floor=0)
    with pytest.raises(ValueError, match="softness: expected a number in \\[0, 1\\)"):
        VAFA(loss, eps=0.1, softness=1.0)
    with pytest.raises(ValueError, match="block_size: expected a whole number >= 1; got 0"):
        VAFA(loss, eps=0.1, block_size=(8, 0))
    with pytest.raises(ValueError, match="block_size: expected 2 numbers, one per spatial axis"):
        VAFA(loss, eps=0.1, block_size=(8, 8, 4))(nn.Flatten(), torch.ones(1, 1, 4, 4), torch.tensor([0]))


def test_the_similarity_is_over_the_range_of_each_image() -> None:
    """Without bounds, beside one of fifty times the range: its table is the one that it gets alone."""
    network = networks.tiny_network(2, dense=True).eval().double()
    image = torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    image[1] *= 50
    label = torch.randint(3, image.shape, generator=torch.Generator().manual_seed(6))
    attack = VAFA(DiceCELoss(to_onehot_y=True, softmax=True), eps=0.4, steps=4, block_size=4, ssim_weight=5.0)
    together = attack(network, image, label).adversarial
    for i in range(2):
        alone = attack(network, image[i : i + 1], label[i : i + 1]).adversarial[0]
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-9)
    without = dataclasses.replace(attack, ssim_weight=0.0)(network, image, label).adversarial
    assert bool((without[0] != together[0]).any())
