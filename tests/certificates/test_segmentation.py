"""Certificates of voxel-wise linear networks: which voxels may be certified is known in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from oracles import VoxelMargin
from scipy.stats import binom, norm
from torch import nn

from monai_smia.certificates import ABSTAIN, certify

SIGMA, TAU = 0.5, 0.75
RADIUS = SIGMA * norm.ppf(TAU)


def quiet(network: Any, image: torch.Tensor, *loss_function: Any, **options: Any) -> Any:
    return certify(
        network, image, *loss_function, **{"sigma": SIGMA, "tau": TAU, "batch_size": 100, "progress": False, **options}
    )


def sample(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def distances(network: VoxelMargin, image: torch.Tensor) -> torch.Tensor:
    return (network.margin(image) / network.weight.norm()).detach()


@pytest.mark.parametrize("shape", [(2, 2, 10, 12), (2, 1, 6, 5, 4)])
def test_only_voxels_beyond_the_radius_are_certified(shape: tuple[int, ...]) -> None:
    network = VoxelMargin(shape[1], len(shape) - 2)
    image = sample(shape)
    certificate = quiet(network, image, samples=2000)
    distance = distances(network, image)
    assert certificate.radius.tolist() == pytest.approx([RADIUS] * 2, rel=1e-12)
    certified = ~certificate.abstained
    assert (distance.abs()[certified] > RADIUS).all()  # the strongest attack puts the whole radius on one voxel
    assert (certificate.prediction == (distance > 0).int())[certified].all()
    assert torch.equal(certificate.prediction[~certified], torch.full_like(certificate.guess, ABSTAIN)[~certified])
    # A voxel whose votes are six standard deviations above what Bonferroni asks for is certified.
    p = torch.from_numpy(norm.cdf(distance.abs().double().numpy() / SIGMA))
    needed = binom.isf(0.001 / certificate.votes[0].numel(), 2000, TAU) + 1
    sure = 2000 * p - 6 * (2000 * p * (1 - p)).sqrt() > needed
    assert sure.any()
    assert certified[sure].all()
    assert torch.equal(certificate.abstain_rate, (~certified).flatten(1).double().mean(1))


def test_depth_one_is_the_plane() -> None:
    flat, deep = VoxelMargin(1, 2), VoxelMargin(1, 3)
    deep.weight.data = flat.weight.data.unsqueeze(-1)
    image = sample((1, 1, 8, 8))
    plane, volume = quiet(flat, image), quiet(deep, image.unsqueeze(-1))
    assert torch.equal(volume.votes.squeeze(-1), plane.votes)
    assert torch.equal(volume.prediction.squeeze(-1), plane.prediction)
    assert torch.equal(volume.radius, plane.radius)
    assert torch.equal(volume.per_voxel_radius, plane.per_voxel_radius)


@pytest.mark.parametrize(("correction", "most"), [("holm", 0.1), ("bonferroni", 0.1), ("none", 1.0)])
def test_an_image_fails_at_most_as_often_as_alpha(correction: str, most: float) -> None:
    """Every voxel exactly at tau, where certifying any of them is wrong, in 200 repetitions."""
    network, runs = VoxelMargin(1, 2), 200
    unit = float(network.weight.detach().sign())
    image = torch.full((runs, 1, 5, 5), unit * RADIUS)
    options = {"samples": 60, "first_samples": 60, "alpha": 0.1, "batch_size": 120, "correction": correction}
    failed = (~quiet(network, image, **options).abstained).flatten(1).any(1).sum()
    assert failed <= binom.ppf(0.999, runs, most)
    if correction == "none":
        assert failed > binom.ppf(0.999, runs, 0.1)  # the test can tell


def test_corrections_are_ordered() -> None:
    network, image = VoxelMargin(1, 2), sample((1, 1, 12, 12))
    rates = [
        float(quiet(network, image, samples=200, correction=name).abstain_rate)
        for name in ("none", "holm", "bonferroni")
    ]
    assert rates[0] < rates[1] <= rates[2]


class Bits(nn.Module):
    """Sigmoid channels that overlap: signs of the image and of its shifted copy."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat((image, image - 0.5), 1)


def test_sigmoid_channels_are_one_family() -> None:
    image = sample((2, 1, 6, 6))
    certificate = quiet(Bits(), image, nn.BCEWithLogitsLoss(), samples=1000)
    distance = Bits()(image)
    assert certificate.prediction.shape == (2, 2, 6, 6)
    certified = ~certificate.abstained
    assert certified.any()
    assert (distance.abs()[certified] > RADIUS).all()
    assert (certificate.prediction == (distance > 0).int())[certified].all()


def test_classes_are_counted_as_by_one_hot_sums() -> None:
    """Several classes, against sums over all noisy decisions at once."""
    network = nn.Conv2d(1, 4, 3, padding=1).requires_grad_(False)
    network.weight.copy_(sample(tuple(network.weight.shape)))
    network.bias.copy_(sample((4,), 1))
    image = sample((1, 1, 7, 7), 2)
    certificate = quiet(network, image, samples=60, first_samples=40, generator=torch.Generator().manual_seed(1))
    source = torch.Generator().manual_seed(1)
    noise = torch.cat([torch.randn(image.shape, generator=source) for _ in range(100)])
    decided = nn.functional.one_hot(network(image + SIGMA * noise).argmax(1), 4)
    first, second = decided[:40].sum(0), decided[40:].sum(0)
    guess = certificate.guess[0].long().unsqueeze(-1)
    assert torch.equal(first.gather(-1, guess)[..., 0], first.max(-1).values)
    assert torch.equal(second.gather(-1, guess)[..., 0].int(), certificate.votes[0])


def test_through_a_sliding_window() -> None:
    network, image = VoxelMargin(1, 2), sample((1, 1, 8, 8))
    windows = SlidingWindowInferer(roi_size=(4, 4), sw_batch_size=4, overlap=0.0)
    options = {"samples": 100, "batch_size": 25}
    assert torch.equal(quiet(network, image, inferer=windows, **options).votes, quiet(network, image, **options).votes)


def test_too_few_samples_for_so_many_voxels_are_refused() -> None:
    passes = []

    def network(noisy: torch.Tensor) -> torch.Tensor:
        passes.append(len(noisy))
        return torch.cat((noisy, -noisy), 1)

    with pytest.raises(ValueError, match="samples: expected at least 39, .* over 64 decisions an image; got 38"):
        quiet(network, torch.zeros(1, 1, 8, 8), samples=38)
    assert passes == [1]  # before anything is computed in vain
    assert 0.75**39 <= 0.001 / 64 < 0.75**38


@pytest.mark.parametrize("shape", [(1, 1, 9, 9), (1, 1, 4, 5, 4)])
def test_no_attack_brings_dice_under_the_certified_one(shape: tuple[int, ...]) -> None:
    """Smoothed decisions are the sign of the margin, so the Dice under any change of the radius can be computed."""
    network, image = VoxelMargin(1, len(shape) - 2), sample(shape)
    label = (distances(network, image + 0.2 * sample(shape, 1)) > 0).long()
    certificate = quiet(network, image, samples=1000)
    dice, iou = certificate.certified_dice(label)[0], certificate.certified_iou(label)[0]
    torch.testing.assert_close(iou, dice / (2 - dice))
    assert (dice > 0.3).all()
    source = torch.Generator().manual_seed(7)
    weakest = torch.ones(2).double()
    margin = distances(network, image)
    greedy = margin.abs().flatten().argsort()[: margin.numel() // 10]  # those next to the boundary, pushed over it
    for trial in range(200):
        change = torch.randn(image.shape, generator=source)
        if trial % 2:
            change = torch.zeros(image.numel())
            count = 1 + trial // 20
            change[greedy[:count]] = -(image.flatten()[greedy[:count]]).sign()
            change = change.reshape(image.shape)
        attacked = distances(network, image + RADIUS * change / change.norm()) > 0
        for k in (0, 1):
            own, true = attacked == bool(k), label == k
            value = 2 * (own & true).sum().double() / (own.sum() + true.sum())
            assert value >= dice[k]
            weakest[k] = torch.minimum(weakest[k], value)
    assert (weakest < 1).all()


def test_overlap_by_hand() -> None:
    class Fixed(nn.Module):
        """A row of five voxels: sure of 1, sure of 1, tossed, tossed, sure of 0."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            margin = image + torch.tensor([90.0, 90.0, 0.0, 0.0, -90.0])
            return torch.cat((torch.zeros_like(margin), margin), 1)

    label = torch.tensor([[[1, 0, 1, 0, 0]]])
    certificate = quiet(Fixed(), torch.zeros(1, 1, 1, 5))
    assert certificate.prediction.tolist() == [[[1, 1, ABSTAIN, ABSTAIN, 0]]]
    assert certificate.certified_accuracy(label).tolist() == [2 / 5]
    # class 1: right 1; invented 1 and possibly 1; missed possibly 1. class 0: right 1; possibly invented 1; missed 2.
    assert certificate.certified_dice(label).tolist() == [[2 / 5, 2 / 5]]
    assert certificate.certified_iou(label).tolist() == [[1 / 4, 1 / 4]]
    onehot = nn.functional.one_hot(label, 2).movedim(-1, 1)
    assert torch.equal(certificate.certified_dice(onehot), certificate.certified_dice(label.unsqueeze(1)))
    beyond = certificate.certified_dice(label, 2 * RADIUS)
    assert beyond.tolist() == [[0.0, 0.0]]
    assert certificate.certified_accuracy(label, 2 * RADIUS).tolist() == [0.0]


def test_a_class_that_cannot_come_is_undefined() -> None:
    def network(noisy: torch.Tensor) -> torch.Tensor:
        return torch.cat((noisy + 90, noisy, noisy), 1)

    certificate = quiet(network, torch.zeros(1, 1, 4, 4))
    dice = certificate.certified_dice(torch.zeros(1, 4, 4))
    assert dice[0, 0] == 1
    assert dice[0, 1:].isnan().all()
