"""`SAP`: BIM where nothing is filtered, the gradient by hand, its spectrum, its budget, and the contract."""

from __future__ import annotations

from typing import Any

import contract
import networks
import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from oracles import LinearMargin
from scipy.ndimage import correlate1d
from torch import nn

import monai_smia.attacks
from monai_smia.attacks import BIM, Gaussian, LpBall
from monai_smia.attacks.smooth_perturbations import SAP, SmoothedBall

TASKS = ("classification", "multilabel", "segmentation")


def make(**fixed: Any) -> contract.Make:
    return lambda loss, **arguments: SAP(loss, **{"steps": 3, **fixed, **arguments})


ROWS = {
    "SAP": make(),
    "SAP-random-best": make(random_start=True, restarts=2, keep="best", sigmas=(1.0,), step_size=0.02),
}
CASES = [("SAP", rank, task) for rank in (2, 3) for task in TASKS]
CASES += [("SAP-random-best", 2, "segmentation"), ("SAP-random-best", 3, "classification")]


@pytest.mark.parametrize("clause", contract.CHECKS)
@pytest.mark.parametrize(("name", "rank", "task"), CASES)
def test_contract(name: str, rank: int, task: str, clause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monai_smia.attacks, "SAP", SAP, raising=False)
    contract.CHECKS[clause](contract.Case(ROWS[name], rank, task))


@pytest.mark.parametrize("norm", ["inf", 2, 1])
@pytest.mark.parametrize("rank", [2, 3])
def test_without_a_filter_it_is_bim_bit_for_bit(rank: int, norm: float | str) -> None:
    network = networks.tiny_network(rank, dense=True)
    image = torch.rand(2, 1, *(9, 7, 5)[:rank], generator=torch.Generator().manual_seed(1))
    label = torch.randint(3, image.shape, generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(image)
    mask[:, :, :3] = 0
    arguments: dict[str, Any] = {"eps": 0.3, "norm": norm, "bounds": (0.0, 1.0), "steps": 6}
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    ours = SAP(loss, sigmas=(0.0, 0.0), **arguments)(network, image, label, mask=mask)
    theirs = BIM(loss, **arguments)(network, image, label, mask=mask)
    assert torch.equal(ours.adversarial, theirs.adversarial)
    assert torch.equal(ours.forward_passes, theirs.forward_passes)
    assert not torch.equal(ours.adversarial, image)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_linear_network_in_closed_form(rank: int) -> None:
    """The margin falls by ``eps * ||W w||_1`` of the filtered weights: theta is eps times their sign; scipy filters."""
    shape = (1, 12, 9, 7)[: rank + 1]
    network = LinearMargin(shape).double()
    image = torch.zeros(2, *shape, dtype=torch.float64)
    sigmas, sizes = (1.0, 2.0), (3, 7)
    filtered = 0
    for sigma, size in zip(sigmas, sizes, strict=True):
        n = torch.arange(size) - size // 2
        taps = torch.exp(-(n**2) / (2 * sigma**2)).double()
        part = network.weight.detach()[0].numpy()
        for axis in range(rank):
            part = correlate1d(part, (taps / taps.sum()).numpy(), axis=axis, mode="constant")
        filtered = filtered + torch.as_tensor(part) / 2
    attack = SAP(nn.CrossEntropyLoss(), eps=0.1, sigmas=sigmas, kernel_sizes=sizes, steps=5)
    result = attack(network, image, torch.ones(2, dtype=torch.long))
    reached = network.margin(result.adversarial).detach()
    torch.testing.assert_close(reached, -0.1 * filtered.abs().sum().expand(2), rtol=1e-5, atol=0)
    other = attack(network, image, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(other.adversarial, -result.adversarial, rtol=0, atol=1e-12)


def test_no_energy_above_the_band_of_the_filter() -> None:
    """A Gaussian of sigma s passes ``exp(-2 (pi f s)^2)`` of frequency f: next to nothing above 0.25."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.Tanh(), nn.Conv2d(4, 2, 5, padding=2)).double()
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    label = torch.randint(2, image.shape, generator=torch.Generator().manual_seed(2))

    def share_above(attack: Any) -> float:
        delta = (attack(network, image, label).adversarial - image)[0, 0]
        window = torch.hann_window(64, dtype=torch.float64)
        power = torch.fft.fft2(delta * window[:, None] * window).abs() ** 2
        f = torch.fft.fftfreq(64).abs()
        high = torch.maximum(f[:, None], f[None, :]) > 0.25
        return float(power[high].sum() / power.sum())

    loss = nn.CrossEntropyLoss()
    smooth, plain = (share_above(a) for a in (SAP(loss, eps=0.1, sigmas=(2.0, 3.0)), BIM(loss, eps=0.1)))
    assert plain > 0.05
    # taps end at 3 sigma, where a Gaussian is 1 % of its peak: what passes is of that order, squared
    assert smooth < 1e-4


def test_the_pulled_back_gradient_is_the_filtered_one() -> None:
    """Autograd through `apply` against the filter itself, which is its own adjoint, except at a bound."""
    image = torch.rand(2, 3, 6, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = image + 0.1 * torch.rand(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kernels = (Gaussian(1.0, 5, padding="zeros"), Gaussian(2.0, 3, padding="zeros"))
    model = SmoothedBall(LpBall(eps=0.1, bounds=(0.0, 0.9)), kernels)
    leaf = z.requires_grad_()
    out = model.apply(image.clamp(max=0.9), leaf)
    weights = torch.randn(image.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((out * weights).sum(), leaf)
    free = weights * (out < 0.9)
    assert 0.1 < float((out < 0.9).double().mean()) < 0.95
    torch.testing.assert_close(gradient, (kernels[0](free) + kernels[1](free)) / 2, rtol=1e-6, atol=1e-8)


def test_millimetres_are_voxels_of_one_millimetre_and_follow_the_affine() -> None:
    network = networks.tiny_network(3, dense=True)
    image = torch.rand(1, 1, 9, 8, 7, generator=torch.Generator().manual_seed(1))
    label = torch.zeros(image.shape)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)

    def run(spacing: tuple[float, ...], unit: str) -> torch.Tensor:
        attack = SAP(loss, eps=0.1, sigmas=(1.0, 2.0), sigma_unit=unit, steps=3)
        meta = MetaTensor(image, affine=torch.diag(torch.tensor([*spacing, 1.0])))
        return attack(network, meta, label).adversarial.as_tensor()

    torch.testing.assert_close(run((1, 1, 1), "mm"), run((1, 1, 1), "voxel"), rtol=0, atol=1e-6)
    assert not torch.allclose(run((1, 1, 5), "mm"), run((1, 1, 1), "mm"), atol=1e-3)
    with pytest.raises(TypeError, match="sigma_unit: 'mm' needs the voxel size"):
        SAP(loss, eps=0.1, sigma_unit="mm")(network, image, label)


def test_the_authors_filters_and_errors() -> None:
    loss = nn.CrossEntropyLoss()
    authors = SAP.authors(loss, eps=10.0)
    assert len(authors.sigmas) == 25
    assert {*authors.kernel_sizes} == {5, 7, 11, 15, 19}
    assert {*authors.sigmas} == {1, 3, 5, 7, 10}
    with pytest.raises(ValueError, match="sigmas: expected a sequence of one or more numbers; got 2.0"):
        SAP(loss, eps=0.1, sigmas=2.0)
    with pytest.raises(ValueError, match="kernel_sizes: expected 3 numbers, one per sigma, or None; got \\(3,\\)"):
        SAP(loss, eps=0.1, kernel_sizes=(3,))
    with pytest.raises(ValueError, match="kernel_size: expected an odd number of taps"):
        SAP(loss, eps=0.1, sigmas=(1.0,), kernel_sizes=(4,))
    with pytest.raises(ValueError, match="kernel_sizes: taps are voxels"):
        SAP(loss, eps=0.1, sigmas=(1.0,), kernel_sizes=(3,), sigma_unit="mm")
    with pytest.raises(ValueError, match="sigmas: expected finite numbers >= 0"):
        SAP(loss, eps=0.1, sigmas=(-1.0,))
