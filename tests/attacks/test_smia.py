"""SMIA against its formula written out, and against what is known about it."""

from __future__ import annotations

import itertools

import networks
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import BIM, SMIA, Gaussian

LOSS = nn.CrossEntropyLoss()
COMMON = {"eps": 0.1, "steps": 4, "bounds": (0.0, 1.0)}


@pytest.fixture(params=[2, 3])
def setup(request):
    source = torch.Generator().manual_seed(1)
    size = (2, 2, 9, 7, 8)[: request.param + 2]
    target = torch.randint(3, (2, 1, *size[2:]), generator=source)
    return networks.tiny_network(request.param, dense=True, channels=2), torch.rand(size, generator=source), target


def blur(x: torch.Tensor, taps: list[float], spacing: int) -> torch.Tensor:
    """Separable filter by scipy, edges replicated."""
    kernel = np.zeros(spacing * (len(taps) - 1) + 1)
    kernel[::spacing] = taps
    result = x.detach().double().numpy()
    for axis in range(2, x.ndim):
        result = ndimage.correlate1d(result, kernel, axis=axis, mode="nearest")
    return torch.from_numpy(result).to(x.dtype)


def taps(sigma: float, size: int) -> list[float]:
    n = np.arange(size) - size // 2
    weights = np.exp(-(n**2) / (2 * sigma**2))
    return list(weights / weights.sum())


def written_out(network, image, target, *, weight, hard, filtered_image, by_gradient, dilation):
    """The method, line by line, on each sample alone."""
    network, eps, alpha = network.eval(), 0.1, 0.0625
    out = []
    for i in range(len(image)):
        x0, y = image[i : i + 1], target[i : i + 1, 0]
        x, previous, step = x0.clone(), None, None
        for t in range(4):
            x = x.detach().requires_grad_()
            logits = network(x)
            deviation = F.cross_entropy(logits, y)
            if t == 0:
                gradient = torch.autograd.grad(deviation, x)[0]
            else:
                moved = (
                    blur(x, taps(1.0, 3), dilation) if filtered_image else previous + blur(step, taps(1.0, 3), dilation)
                )
                twin = (x0 + (moved - x0).clamp(-eps, eps)).clamp(0, 1)
                q = network(twin).detach()
                if hard:
                    divergence = F.cross_entropy(logits, q.argmax(1))
                else:
                    p = logits.softmax(1)
                    divergence = (p * (logits.log_softmax(1) - q.log_softmax(1))).sum(1).mean()
                if by_gradient:
                    g1 = torch.autograd.grad(deviation, x, retain_graph=True)[0]
                    g2 = torch.autograd.grad(-divergence, x)[0]
                    gradient = g1 / g1.abs().sum() + weight * g2 / g2.abs().sum()
                else:
                    gradient = torch.autograd.grad(deviation - weight * divergence, x)[0]
            previous, step = x.detach(), alpha * gradient.sign()
            x = (x0 + (previous + step - x0).clamp(-eps, eps)).clamp(0, 1)
        out.append(x.detach())
    return torch.cat(out)


@pytest.mark.parametrize("by_gradient", [False, True])
@pytest.mark.parametrize("filtered_image", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_equals_the_method_written_out(setup, hard, filtered_image, by_gradient):
    network, image, target = (value.double() if value is not setup[2] else value for value in setup)
    attack = SMIA(
        LOSS,
        stabilization_weight=0.7,
        smooth="image" if filtered_image else "perturbation",
        divergence="hard" if hard else "kl",
        combine="gradient" if by_gradient else "loss",
        **COMMON,
    )
    expected = written_out(
        network,
        image,
        target,
        weight=0.7,
        hard=hard,
        filtered_image=filtered_image,
        by_gradient=by_gradient,
        dilation=1,
    )
    result = attack(network, image, target)
    torch.testing.assert_close(result.adversarial, expected, rtol=0, atol=1e-12)
    passes = 2 if by_gradient else 1
    assert result.backward_passes.tolist() == [1 + 3 * passes] * 2
    assert result.forward_passes.tolist() == [4 + 3 + 1] * 2


def test_the_stabilization_changes_the_outcome(setup):
    plain = BIM(LOSS, **COMMON)(*setup).adversarial
    for extra in ({}, {"divergence": "hard"}, {"combine": "gradient"}, {"smooth": "image"}):
        assert not torch.equal(SMIA(LOSS, stabilization_weight=5.0, **extra, **COMMON)(*setup).adversarial, plain)


def test_preset_of_the_authors(setup):
    network, image, target = (value.double() if value is not setup[2] else value for value in setup)
    attack = SMIA.authors(LOSS, stabilization_weight=0.7, **COMMON)
    assert (attack.smooth, attack.divergence, attack.kernel_size, attack.sigma, attack.dilation) == (
        "perturbation",
        "hard",
        3,
        1.0,
        2,
    )
    expected = written_out(
        network, image, target, weight=0.7, hard=True, filtered_image=False, by_gradient=False, dilation=2
    )
    torch.testing.assert_close(attack(network, image, target).adversarial, expected, rtol=0, atol=1e-12)
    assert SMIA.authors(LOSS, eps=0.1, dilation=1).dilation == 1


def test_hard_form_while_the_twin_is_still_right():
    """While the twin is predicted as the truth the hard loss is (1 - weight) J: BIM's steps, or none at 1."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.stack([torch.linspace(-1, 1, 12), -torch.linspace(-1, 1, 12)]))
        network[1].bias.copy_(torch.tensor([50.0, -50.0]))
    image, target = torch.full((1, 1, 3, 4), 0.5), torch.tensor([0])
    common = {"eps": 0.1, "steps": 3, "step_size": 0.03, "bounds": (0.0, 1.0)}
    loss = nn.MultiMarginLoss(margin=200.0)  # not saturated: its gradient is the same everywhere
    bim = BIM(loss, **common)(network, image, target)
    half = SMIA(loss, divergence="hard", stabilization_weight=0.5, **common)(network, image, target)
    assert torch.equal(half.adversarial, bim.adversarial)
    stalled = SMIA(loss, divergence="hard", stabilization_weight=1.0, **common)(network, image, target)
    one_step = BIM(loss, **{**common, "steps": 1})(network, image, target)
    assert torch.equal(stalled.adversarial, one_step.adversarial)


def test_gradients_are_weighed_inside_the_mask():
    """What the network does far from the mask changes nothing: each term's norm is taken where the image may change."""
    image = torch.rand(1, 1, 8, 16, generator=torch.Generator().manual_seed(5))
    target = torch.randint(3, (1, 1, 8, 16), generator=torch.Generator().manual_seed(6))
    mask = torch.zeros(1, 1, 8, 16)
    mask[..., :6] = 1
    conv = nn.Conv2d(1, 3, 1)
    gain = torch.ones(16)
    attack = SMIA(LOSS, combine="gradient", stabilization_weight=0.9, **COMMON)
    first = attack(lambda x: conv(x) * gain, image, target, mask=mask).adversarial
    gain[10:] = 30.0
    assert torch.equal(attack(lambda x: conv(x) * gain, image, target, mask=mask).adversarial, first)


def test_sigmoid_heads_use_the_binary_divergence():
    network = networks.tiny_network(2, dense=True)
    image = torch.rand(1, 1, 9, 7, generator=torch.Generator().manual_seed(2))
    target = torch.randint(2, (1, 3, 9, 7), generator=torch.Generator().manual_seed(3)).float()
    seen = []

    def binary(prediction, twin, labels):
        p, q = prediction.sigmoid(), twin.sigmoid()
        value = p * (p.log() - q.log()) + (1 - p) * ((1 - p).log() - (1 - q).log())
        seen.append(value)
        return value.flatten(1).mean(1)

    loss = nn.BCEWithLogitsLoss()
    expected = SMIA(loss, divergence=binary, stabilization_weight=3.0, **COMMON)(network, image, target)
    result = SMIA(loss, stabilization_weight=3.0, **COMMON)(network, image, target)
    assert len(seen) == 3
    assert (result.adversarial - expected.adversarial).abs().gt(1e-6).float().mean() < 0.02


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("shape", [(2, 3, 11), (1, 2, 8, 9), (2, 1, 7, 8, 9)])
def test_gaussian_equals_scipy(shape, dilation):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(4))
    for sigma, size in ((1.0, 3), (0.7, 5)):
        result = Gaussian(sigma, size, dilation)(image)
        torch.testing.assert_close(result, blur(image, taps(sigma, size), dilation), rtol=0, atol=1e-6)
    constant = torch.full(shape, 3.0)
    torch.testing.assert_close(Gaussian(1.0)(constant), constant)


def test_gaussian_in_millimetres_is_isotropic_in_the_patient():
    """The same width in mm on 1 mm and on 5 mm voxels: the measured variance of a spread impulse agrees."""
    image = torch.zeros(1, 1, 41, 41, 21)
    image[0, 0, 20, 20, 10] = 1
    spread = Gaussian(sigma=5.0, spacing=((1.0, 2.5, 5.0),))(image)[0, 0]
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    for axis, size in enumerate((1.0, 2.5, 5.0)):
        profile = spread.sum([a for a in range(3) if a != axis])
        position = (torch.arange(len(profile)) - len(profile) // 2) * size
        assert float((profile * position**2).sum()) ** 0.5 == pytest.approx(5.0, rel=0.03)


def test_millimetres_come_from_the_affine(setup):
    network, image, target = setup
    rank = image.ndim - 2
    affine = torch.diag(torch.tensor([*[0.5, 2.0, 4.0][:rank], *[1.0] * (4 - rank)]))
    meta = MetaTensor(image, affine=affine)
    attack = SMIA(LOSS, sigma=1.0, sigma_unit="mm", stabilization_weight=5.0, **COMMON)
    result = attack(network, meta, target)
    each = Gaussian(1.0, spacing=((0.5, 2.0, 4.0)[:rank],))
    probe = torch.rand(image.shape)
    kernels = []
    attack(network, meta, target, callback=lambda trial, prediction: kernels.append(trial.update))
    assert kernels[0] is None
    assert kernels[1] is not None
    expected = probe.double().numpy()
    for axis, size in enumerate((0.5, 2.0, 4.0)[:rank]):
        sigma = 1.0 / size
        count = 2 * int(np.ceil(3 * sigma)) + 1
        expected = ndimage.correlate1d(expected, taps(sigma, count), axis=axis + 2, mode="nearest")
    torch.testing.assert_close(each(probe), torch.from_numpy(expected).float(), rtol=0, atol=1e-6)
    stacked = MetaTensor(image)
    stacked.meta["affine"] = torch.stack([affine.double(), torch.eye(4).double()])
    mixed = attack(network, stacked, target).adversarial
    torch.testing.assert_close(mixed[0].as_tensor(), result.adversarial[0].as_tensor(), rtol=0, atol=1e-6)
    with pytest.raises(TypeError, match="sigma_unit.*affine"):
        attack(network, image, target)


def test_trace_of_the_predictions(setup):
    """A callback can follow KL(f(x_{t+1}) || f(x_t)), the paper's second claim."""
    predictions = []
    SMIA(LOSS, **COMMON)(*setup, callback=lambda trial, prediction: predictions.append(prediction))
    assert len(predictions) == 4
    trace = [F.kl_div(b.log_softmax(1), a.softmax(1)) for a, b in itertools.pairwise(predictions)]
    assert all(float(value) > 0 for value in trace)
