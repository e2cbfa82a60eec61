"""EoT: the average over draws written out, identities with other attacks, networks that draw by themselves."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import APGD, BIM, DIFGSM, FGSM, MIFGSM, PGD, SMIA, Square, WorstOf
from monai_smia.attacks.bpda import BPDA
from monai_smia.attacks.diversity import RandomResize
from monai_smia.attacks.expectation import EoT
from monai_smia.attacks.random_views import RandomPreprocessing
from monai_smia.inferers import GradientSlidingWindowInferer

CE = nn.CrossEntropyLoss()
GAINS = torch.tensor([0.25, 1.0, 3.0])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gain(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One of three gains for each sample: a finite set of transformations."""
    index = torch.randint(3, (len(image),), generator=generator)
    return image * GAINS.to(image)[index].reshape(-1, *[1] * (image.ndim - 1))


def dropout(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return image * torch.randint(2, image.shape, generator=generator)


def scene(rank: int, dense: bool = False, batch: int = 3):
    shape = (batch, 1, *(9, 7, 5)[:rank])
    image = torch.rand(shape, generator=seeded(1), dtype=torch.float64)
    target = torch.randint(3, shape if dense else (batch,), generator=seeded(2))
    return networks.tiny_network(rank, dense).double(), image, target


@pytest.mark.parametrize("rank", [2, 3])
def test_the_gradient_is_the_mean_over_the_draws(rank: int) -> None:
    """One L2 step goes along the mean of the gradients at the three gains, each weighted by how often it came."""
    network, image, target = scene(rank)
    result = EoT(FGSM(CE, eps=0.5, norm=2), gain, samples=30)(network, image, target, generator=seeded(5))
    source = seeded(5)
    draws = torch.stack([torch.randint(3, (len(image),), generator=source) for _ in range(30)])
    network.eval()
    mean = torch.zeros_like(image)
    for i, factor in enumerate(GAINS.double()):
        leaf = image.clone().requires_grad_()
        loss = F.cross_entropy(network(factor * leaf), target, reduction="none").sum()
        share = (draws == i).double().mean(0).reshape(-1, *[1] * (image.ndim - 1))
        mean = mean + share * torch.autograd.grad(loss, leaf)[0]
    length = mean.flatten(1).norm(dim=1).reshape(-1, *[1] * (image.ndim - 1))
    torch.testing.assert_close(result.adversarial - image, 0.5 * mean / length)


def test_averaging_finds_what_single_draws_hide() -> None:
    """Pixels that each draw drops by chance: a step moves exactly those that some draw kept, of 16 draws all."""
    weight = torch.randn(2, 40, generator=seeded(3))
    image, target = torch.rand(2, 1, 8, 5, generator=seeded(1)) + 0.1, torch.tensor([0, 1])
    for samples in (1, 3, 16):
        attack = EoT(FGSM(CE, eps=0.1), dropout, samples=samples)
        result = attack(lambda x: x.flatten(1) @ weight.T / 40, image, target, generator=seeded(7))
        source = seeded(7)
        kept = sum(torch.randint(2, image.shape, generator=source) for _ in range(samples)) > 0
        assert torch.equal(result.adversarial != image, kept)
        assert bool(kept.all()) == (samples == 16)


@pytest.mark.parametrize(
    "attack",
    [BIM(CE, eps=0.1, steps=3), PGD(CE, eps=0.1, steps=3, restarts=2, keep="best"), SMIA(CE, eps=0.1, steps=3)],
    ids=["BIM", "PGD", "SMIA"],
)
def test_one_sample_without_a_transform_is_the_attack(attack) -> None:
    network, image, target = scene(2)
    expected, found = attack(network, image, target), EoT(attack, samples=1)(network, image, target)
    for name, value in vars(expected).items():
        assert torch.equal(getattr(found, name), value), name
    several = EoT(attack, samples=4)(network, image, target)  # a network that draws nothing: the same gradient
    torch.testing.assert_close(several.loss, expected.loss)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
def test_one_resized_view_is_the_attack_with_diverse_inputs(rank: int, dense: bool) -> None:
    """DI-FGSM is MI-FGSM in expectation over one random resize; dense predictions are brought back."""
    network, image, target = scene(rank, dense)
    resize = RandomResize(0.7, 0.5, fill=0.0)
    di = DIFGSM(CE, eps=0.1, bounds=(0, 1), steps=3, resize_rate=0.7)
    found = EoT(MIFGSM(CE, eps=0.1, bounds=(0, 1), steps=3), resize, samples=1)
    expected = di(network, image, target, generator=seeded(3)).adversarial
    assert torch.equal(found(network, image, target, generator=seeded(3)).adversarial, expected)


def test_views_of_the_attack_and_of_the_expectation_are_both_taken() -> None:
    """DI-FGSM in expectation over one constant gain is DI-FGSM on the network behind that gain."""
    network, image, target = scene(2, dense=True)
    di = DIFGSM(CE, eps=0.1, steps=2, diversity_probability=1.0)
    found = EoT(di, lambda x, _: 2 * x, samples=1)(network, image, target)
    expected = di(lambda x: network.eval()(2 * x), image, target)
    assert torch.equal(found.adversarial, expected.adversarial)


@pytest.mark.parametrize("transform", [gain, None])
def test_passes_are_counted(transform) -> None:
    inner, image, target = scene(2)
    network = networks.Counting(inner)
    result = EoT(PGD(CE, eps=0.1, steps=3, restarts=2), transform, samples=4)(network, image, target)
    assert result.backward_passes.tolist() == [24] * 3 == [network.backwards] * 3
    assert result.forward_passes.tolist() == [network.forwards] * 3


def test_same_seed_same_bits_and_no_global_randomness() -> None:
    network, image, target = scene(3)
    attack = EoT(BIM(CE, eps=0.1, steps=2, norm=2), gain, samples=2)
    assert attack.is_random
    before = torch.get_rng_state()
    one, two, other = (attack(network, image, target, generator=seeded(s)).adversarial for s in (4, 4, 5))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(attack(network, image, target).adversarial, attack(network, image, target).adversarial)
    assert torch.equal(torch.get_rng_state(), before)


def test_budget_and_arguments_are_those_of_the_attack() -> None:
    attack = EoT(PGD(CE, eps=0.1, bounds=(0, 1), targeted=True, keep="best"), gain, samples=2, eps=0.2)
    assert (attack.eps, attack.attack.eps, attack.bounds, attack.targeted) == (0.2, 0.2, (0.0, 1.0), True)
    assert attack.keeps_best
    assert repr(attack).startswith("EoT(PGD(CrossEntropyLoss(), eps=0.2")
    network, image, target = scene(2)
    result = attack(network, image, target)
    assert float((result.adversarial - image).abs().max()) <= 0.2 + 1e-9
    for wrong in (APGD(CE, eps=0.1), Square(CE, eps=0.1), WorstOf([FGSM(CE, eps=0.1)])):
        with pytest.raises(TypeError, match="attack: expected one that steps in the one loop"):
            EoT(wrong, gain)
    with pytest.raises(TypeError, match="transform"):
        EoT(FGSM(CE, eps=0.1), 3)
    with pytest.raises(ValueError, match="samples"):
        EoT(FGSM(CE, eps=0.1), gain, samples=0)


def test_a_network_that_draws_is_attacked_the_same_way_twice() -> None:
    """New draws at each pass, yet an attack leaves the count of passes as found, and two calls give the same bits."""
    inner, image, target = scene(2)
    network = RandomPreprocessing(inner.eval(), dropout, seed=3)
    first = network(image)
    assert not torch.equal(first, network(image))
    assert int(network.passes) == 2
    again = RandomPreprocessing(inner, dropout, seed=3)
    assert torch.equal(again(image), first)
    assert not torch.equal(RandomPreprocessing(inner, dropout, seed=4)(image), first)
    attack = EoT(BIM(CE, eps=0.1, steps=3, norm=2), samples=4)
    results = [attack(network, image, target) for _ in range(2)]
    assert torch.equal(results[0].adversarial, results[1].adversarial)
    assert torch.equal(results[0].loss, results[1].loss)
    assert int(network.passes) == 2
    assert (results[0].backward_passes == 12).all()
    with torch.inference_mode():
        network(image)
    assert int(network.passes) == 3


def test_a_network_behind_a_random_resize_is_undone() -> None:
    resize = RandomResize(0.5, 1.0, fill=0.0)
    image = torch.ones(1, 1, 16, 16)
    back = RandomPreprocessing(nn.Identity(), resize)(image)
    torch.testing.assert_close(back[..., 3:-3, 3:-3], image[..., 3:-3, 3:-3])
    with pytest.raises(TypeError, match="transform"):
        RandomPreprocessing(nn.Identity(), None)
    with pytest.raises(TypeError, match="network"):
        RandomPreprocessing(None, gain)


@pytest.mark.parametrize("beside", [False, True])
def test_windows_meet_the_same_draws_in_both_passes(beside: bool) -> None:
    """The gradient through a sliding window is that of the draws whose prediction was made, to the end."""
    image = torch.rand(1, 1, 8, 12, generator=seeded(3), dtype=torch.float64)
    inferer = GradientSlidingWindowInferer(roi_size=(4, 4), sw_batch_size=2, overlap=0.0, progress=False)
    network = RandomPreprocessing(nn.Identity(), dropout, seed=2)
    leaf = image.clone().requires_grad_()
    prediction = inferer.beside(leaf, image + 1, network)[0] if beside else inferer(leaf, network)
    made = int(network.passes)
    assert made > 1
    (gradient,) = torch.autograd.grad(prediction.sum(), leaf)
    kept = (prediction != 0).double()  # the identity's slope: 1 where a voxel was kept
    assert 0 < float(kept.mean()) < 1
    assert torch.equal(gradient, kept)
    assert int(network.passes) == made


def test_a_rounding_is_seen_through_by_windows() -> None:
    image = torch.rand(2, 1, 9, 7, generator=seeded(3), dtype=torch.float64)
    inferer = GradientSlidingWindowInferer(roi_size=(4, 4), overlap=0.5, progress=False)
    leaf = image.clone().requires_grad_()
    prediction = inferer(leaf, nn.Sequential(BPDA(torch.round, torch.sin)))
    torch.testing.assert_close(prediction, image.round())
    (gradient,) = torch.autograd.grad(prediction.sum(), leaf)
    torch.testing.assert_close(gradient, image.cos())


def test_only_the_mask_changes_and_no_sample_sees_another() -> None:
    """Every sample of a batch draws for itself from the one generator; what may not change does not."""
    network, image, target = scene(2, dense=True)
    mask = torch.zeros(1, 1, 9, 7, dtype=torch.bool)
    mask[..., 2:5, 3:6] = True
    attack = EoT(BIM(CE, eps=0.1, steps=2), gain, samples=3)
    together = attack(network, image, target, mask=mask, generator=seeded(4))
    delta = together.adversarial - image
    assert torch.equal(delta != 0, mask.expand_as(delta))
    mates, labels = torch.rand_like(image), target.clone()
    mates[1], labels[[0, 2]] = image[1], 0
    among = attack(network, mates, labels, mask=mask, generator=seeded(4))
    torch.testing.assert_close(among.adversarial[1], together.adversarial[1], rtol=0, atol=1e-12)
