"""Certificates of linear classifiers, whose smoothed decisions and radii are known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from oracles import LinearMargin
from scipy.stats import binom, norm
from torch import nn

from monai_smia.certificates import ABSTAIN, certify, lower_confidence_bound
from monai_smia.intensity import IntensityScale

SHAPE = (1, 4, 4)


def quiet(network: Any, image: torch.Tensor, *loss_function: Any, **options: Any) -> Any:
    return certify(network, image, *loss_function, **{"sigma": 0.5, "batch_size": 500, "progress": False, **options})


def at_distance(network: LinearMargin, distances: list[float]) -> torch.Tensor:
    """Images whose margin over ``||w||`` is the distance, with its sign."""
    weight = network.weight.detach()
    return torch.stack([weight * distance / weight.norm() for distance in distances])


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 3, 4, 2)])
def test_radius_is_under_the_distance_and_comes_near_it(shape: tuple[int, ...]) -> None:
    network = LinearMargin(shape)
    distances = torch.tensor([0.1, -0.4, 0.9])
    image = at_distance(network, distances.tolist())
    torch.testing.assert_close(network.margin(image).detach() / network.weight.norm().detach(), distances)
    few = quiet(network, image, samples=200, first_samples=1000).radius
    many = quiet(network, image, samples=20_000, first_samples=1000)
    assert many.prediction.tolist() == [1, 0, 1]
    assert (many.radius < distances.abs()).all()
    assert (few < many.radius).all()
    # The best that n samples can do: Phi(distance / sigma) less three standard deviations of the vote and the bound.
    p = norm.cdf(distances.abs().double().numpy() / 0.5)
    least = 0.5 * norm.ppf(p - 6.5 * (p * (1 - p) / 20_000) ** 0.5)
    assert (many.radius.numpy() > least).all()
    torch.testing.assert_close(many.radius, distances.abs().double(), atol=0.05, rtol=0)


def test_no_attack_in_the_radius_changes_the_decision() -> None:
    network = LinearMargin(SHAPE)
    image = at_distance(network, [0.3, -0.7])
    certificate = quiet(network, image, samples=2000)
    direction = network.weight.detach() / network.weight.detach().norm()
    toward = torch.tensor([-1.0, 1.0]) * certificate.radius.float()
    attacked = image + toward.reshape(-1, 1, 1, 1) * direction  # the smoothed decision is the sign of the margin
    assert ((network.margin(attacked) > 0).int() == certificate.prediction).all()


def test_the_failure_rate_is_at_most_alpha() -> None:
    """The radius exceeds the true distance in at most alpha of repeated certifications, and not in far fewer."""
    network, alpha, runs, distance = LinearMargin(SHAPE), 0.2, 400, 0.3
    image = at_distance(network, [distance] * runs)
    source = torch.Generator().manual_seed(5)
    certificate = quiet(network, image, samples=100, first_samples=20, alpha=alpha, generator=source)
    failures = int((certificate.radius > distance).sum())
    assert failures <= binom.ppf(0.999, runs, alpha)
    assert failures > 0.25 * alpha * runs


def test_it_abstains_on_the_boundary() -> None:
    certificate = quiet(LinearMargin(SHAPE), torch.zeros(4, *SHAPE), samples=500)
    assert certificate.prediction.tolist() == [ABSTAIN] * 4
    assert certificate.radius.tolist() == [0.0] * 4
    assert certificate.abstain_rate.tolist() == [1.0] * 4
    assert (certificate.p_lower <= 0.5).all()


def test_votes_and_bound_belong_together() -> None:
    certificate = quiet(LinearMargin(SHAPE), at_distance(LinearMargin(SHAPE), [0.4]), samples=300)
    bound = lower_confidence_bound(certificate.votes, 300, 0.001)
    assert torch.equal(certificate.p_lower, bound)
    assert certificate.radius.item() == pytest.approx(0.5 * norm.ppf(bound.item()), rel=1e-12)


class Scores(nn.Module):
    """Sigmoid channels: margins of two linear classifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = LinearMargin(SHAPE, 1), LinearMargin(SHAPE, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.stack((self.first.margin(image), self.second.margin(image)), 1)


def test_each_sigmoid_channel_is_a_decision() -> None:
    network = Scores()
    image = 0.15 * torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    margins = network(image).detach()
    distances = margins / torch.stack((network.first.weight.norm(), network.second.weight.norm())).detach()
    certificate = quiet(network, image, nn.BCEWithLogitsLoss(), samples=4000)
    assert certificate.binary
    certified = ~certificate.abstained
    assert certified.any()
    assert (certificate.prediction == (margins > 0).int())[certified].all()
    assert (certificate.radius <= distances.abs())[certified].all()
    label = (margins > 0).float()
    share = certified.double().mean(1)
    assert torch.equal(certificate.certified_accuracy(label), share)
    assert torch.equal(certificate.certified_accuracy(1 - label), torch.zeros(5).double())
    # The channels share alpha, so that both hold together.
    single = quiet(network, image, nn.BCEWithLogitsLoss(), samples=4000, correction="none")
    half = quiet(network, image, nn.BCEWithLogitsLoss(), samples=4000, correction="none", alpha=0.0005)
    assert torch.equal(certificate.radius, half.radius)
    assert (certificate.radius <= single.radius).all()


def test_one_channel_is_yes_or_no() -> None:
    base = LinearMargin(SHAPE)

    def network(image: torch.Tensor) -> torch.Tensor:
        return base.margin(image).unsqueeze(1)

    def probability(image: torch.Tensor) -> torch.Tensor:
        return network(image).sigmoid()

    image = at_distance(base, [0.6, -0.6])
    raw, given = quiet(network, image), quiet(probability, image, activation="none")
    assert raw.prediction.tolist() == [[1], [0]]
    assert torch.equal(raw.radius, given.radius)
    two = quiet(base, image)  # the same votes from a head of two classes
    assert torch.equal(two.radius, raw.radius[:, 0])


def test_certified_accuracy_falls_with_the_radius() -> None:
    network = LinearMargin(SHAPE)
    image = at_distance(network, [0.2, 0.5, -0.5, 0.0])
    certificate = quiet(network, image, samples=5000)
    label = torch.tensor([1, 1, 1, 1])
    assert certificate.certified_accuracy(label, 0.0).tolist() == [1, 1, 0, 0]
    assert certificate.certified_accuracy(label, 0.3).tolist() == [0, 1, 0, 0]
    assert certificate.certified_accuracy(label, 0.5).tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="radius: expected a number >= 0"):
        certificate.certified_accuracy(label, -0.1)
    with pytest.raises(ValueError, match="expected a segmentation"):
        certificate.certified_dice(label)


def test_radius_in_hu_and_for_each_voxel() -> None:
    network = LinearMargin(SHAPE)
    scale = IntensityScale(-1000, 400)
    certificate = quiet(network, at_distance(network, [0.5]), intensity=scale)
    assert certificate.unit == "HU"
    assert certificate.physical_radius.item() == pytest.approx(1400 * certificate.radius.item())
    eps = certificate.per_voxel_radius.item() / 1400
    assert math.sqrt(eps**2 * 16) == pytest.approx(certificate.radius.item())  # the corner of the Linf ball


def test_same_generator_same_bits_in_batches_of_any_size() -> None:
    network = LinearMargin(SHAPE)
    image = at_distance(network, [0.2, -0.3])
    state = torch.get_rng_state()
    runs = [
        quiet(network, image, samples=101, batch_size=size, generator=torch.Generator().manual_seed(3))
        for size in (7, 7, 64)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    for run in runs[1:]:
        assert torch.equal(run.votes, runs[0].votes)
        assert torch.equal(run.radius, runs[0].radius)
    assert torch.equal(quiet(network, image).votes, quiet(network, image).votes)
    other = quiet(network, image, samples=101, generator=torch.Generator().manual_seed(4))
    assert not torch.equal(other.votes, runs[0].votes)


def test_the_network_and_the_image_are_as_before() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 3))
    network.train()
    network[1].eval()
    network[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = MetaTensor(torch.randn(2, *SHAPE))
    kept = image.clone()
    certify(network, image, sigma=0.1, samples=20, first_samples=5, progress=False)

    def broken(*args: Any) -> None:
        raise RuntimeError("broken")

    handle = network[4].register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        certify(network, image, sigma=0.1, samples=20, progress=False)
    handle.remove()
    assert [part.training for part in network] == [True, False, True, True, True]
    assert [value.requires_grad for value in network.parameters()] == [False] + [True] * 5
    assert all(value.grad is None for value in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(image, kept)


def test_inference_mode_and_half_precision() -> None:
    network = LinearMargin(SHAPE)
    image = at_distance(network, [0.5])
    expected = quiet(network, image)
    with torch.inference_mode():
        inside = quiet(network, image.clone())
    assert torch.equal(inside.votes, expected.votes)
    assert not inside.radius.is_inference()
    seen = []

    def half(noisy: torch.Tensor) -> torch.Tensor:
        seen.append(noisy.dtype)
        return network(noisy.float())

    assert quiet(half, image.half()).prediction.tolist() == [1]
    assert set(seen) == {torch.float16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma: expected a number above 0"),
        ({"samples": 0}, "samples: expected a whole number"),
        ({"samples": 9}, "samples: expected at least 10"),
        ({"first_samples": 1.5}, "first_samples: expected a whole number"),
        ({"alpha": 1.0}, r"alpha: expected a number in \(0, 1\)"),
        ({"alpha": [0.1]}, r"alpha: expected a number in \(0, 1\)"),
        ({"tau": 0.4}, r"tau: expected a number in \[0.5, 1\)"),
        ({"correction": "fdr"}, "correction: expected one of"),
        ({"activation": "relu"}, "activation: expected one of"),
        ({"loss_function": nn.MSELoss()}, "loss_function: expected one over classes"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quiet(LinearMargin(SHAPE), torch.zeros(1, *SHAPE), **options)


def test_predictions_of_which_nothing_can_be_decided_are_refused() -> None:
    image = torch.zeros(1, *SHAPE)
    with pytest.raises(ValueError, match="without NaN under noise of sigma 0.5"):
        quiet(lambda noisy: torch.full((len(noisy), 2), math.nan), image)
    with pytest.raises(ValueError, match="network: expected 100 predictions for 100 images; got 1"):
        quiet(lambda noisy: torch.zeros(1, 2), image)


def test_a_squeezed_logit_is_one_decision() -> None:
    image = torch.full((1, *SHAPE), 0.1)
    squeezed = quiet(lambda noisy: noisy.flatten(1).sum(1), image)
    with_axis = quiet(lambda noisy: noisy.flatten(1).sum(1, keepdim=True), image)
    assert squeezed.radius.isfinite().all()
    assert torch.equal(squeezed.radius, with_axis.radius)
    assert torch.equal(squeezed.guess, with_axis.guess)
