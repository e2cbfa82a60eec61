"""What the smoothed network is shown: noise as drawn, image by image, a few copies at a time; and a peer's counting."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from oracles import LinearMargin, VoxelMargin
from scipy.stats import beta
from torch import nn
from tqdm.auto import tqdm

from monai_smia.certificates import ABSTAIN, binomial_tail, certify, lower_confidence_bound

SHAPE = (1, 6, 6)


class Watched(nn.Module):
    """A network that remembers what it was given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, list[torch.Tensor]()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(image)
        return self.network(image)


def quiet(network: Any, image: torch.Tensor, *loss_function: Any, **options: Any) -> Any:
    return certify(network, image, *loss_function, **{"sigma": 0.5, "batch_size": 50, "progress": False, **options})


@pytest.mark.parametrize("inferer", [None, SlidingWindowInferer((6, 6), overlap=0)], ids=["none", "window"])
def test_the_noise_is_gaussian_and_not_clipped(inferer: Any) -> None:
    """An image at the upper end of its range, where a clip would halve the noise."""
    network = Watched(LinearMargin(SHAPE) if inferer is None else VoxelMargin(1, 2))
    image = torch.ones(1, *SHAPE)
    quiet(network, MetaTensor(image), samples=400, first_samples=100, inferer=inferer)
    assert not any(isinstance(seen, MetaTensor) for seen in network.seen)
    noise = (torch.cat(network.seen[1:]) - image) / 0.5  # the first pass is of the clean image
    assert len(noise) == 500
    assert torch.equal(network.seen[0], image)
    count = noise.numel()
    assert abs(noise.mean()) < 5 / count**0.5
    assert abs(noise.square().mean() - 1) < 5 * (2 / count) ** 0.5
    assert abs((noise > 0).double().mean() - 0.5) < 5 / (4 * count) ** 0.5
    assert abs((noise.abs() > 1.959964).double().mean() - 0.05) < 5 * (0.05 * 0.95 / count) ** 0.5
    covariance = torch.cov(noise.flatten(1).T) - torch.eye(36)  # of voxels
    assert covariance.abs().max() < 6 / 500**0.5 * 2**0.5
    lagged = (noise[1:] * noise[:-1]).flatten(1).mean()  # of copies
    assert abs(lagged) < 5 / count**0.5


def test_guess_and_test_share_no_noise() -> None:
    network = Watched(LinearMargin(SHAPE))
    quiet(network, torch.zeros(2, *SHAPE), samples=60, first_samples=40)
    copies = torch.cat([seen for seen in network.seen[1:]]).flatten(1)
    assert len(copies) == 200
    assert len(copies.unique(dim=0)) == 200


def test_a_coin_is_not_certified_for_having_been_guessed() -> None:
    """The guess is always the more frequent side of its own samples; tested on these, alpha would be exceeded."""
    network = LinearMargin(SHAPE)
    certificate = quiet(network, torch.zeros(400, *SHAPE), samples=25, first_samples=25, alpha=0.3)
    certified = int((certificate.prediction != ABSTAIN).sum())
    tail = binomial_tail(25, 0.5)
    least = int((lower_confidence_bound(torch.arange(26), 25, 0.3) > 0.5).nonzero()[0])
    rate = float(tail[least])
    assert rate <= 0.3
    sd = (400 * rate * (1 - rate)) ** 0.5
    assert abs(certified - 400 * rate) < 4 * sd
    assert 400 * 2 * rate - 4 * sd > 400 * rate + 4 * sd  # what selection on the same samples would give


def test_batch_mates_do_not_matter() -> None:
    network = VoxelMargin(1, 2)
    source = torch.Generator().manual_seed(0)
    one, two, three = (torch.randn(1, *SHAPE, generator=source) for _ in range(3))
    both = quiet(network, torch.cat((one, two)), samples=100)
    alone, other = quiet(network, one, samples=100), quiet(network, torch.cat((50 * three, two)), samples=100)
    assert torch.equal(both.votes[:1], alone.votes)
    assert torch.equal(both.prediction[:1], alone.prediction)
    assert torch.equal(both.votes[1], other.votes[1])
    assert not torch.equal(both.votes[0], other.votes[0])


def test_memory_does_not_grow_with_the_samples() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = []

    def network(noisy: torch.Tensor) -> torch.Tensor:
        assert len(noisy) <= 10
        output = torch.cat((noisy, -noisy), 1)
        most.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(output))
        return output

    quiet(network, torch.zeros(1, *SHAPE), samples=200, batch_size=10)
    assert len(most) == 1 + 10 + 20
    assert max(most) <= 1  # the output before


def test_probabilities_of_several_labels_are_decisions_each() -> None:
    """`BCELoss` takes probabilities, several of which may be over one half."""
    base = LinearMargin(SHAPE)

    def scores(image: torch.Tensor) -> torch.Tensor:
        margin = base.margin(image)
        return torch.stack((margin, 2 * margin, -margin), 1)

    def probabilities(image: torch.Tensor) -> torch.Tensor:
        return scores(image).sigmoid()

    image = 0.8 * base.weight.detach()[None] / base.weight.detach().norm()
    raw = quiet(scores, image, nn.BCEWithLogitsLoss(), samples=500)
    given = quiet(probabilities, image, nn.BCELoss(), samples=500)
    assert given.binary
    assert given.prediction.tolist() == [[1, 1, 0]]
    assert torch.equal(given.votes, raw.votes)
    assert torch.equal(given.radius, raw.radius)
    assert not quiet(probabilities, image, activation="none").binary  # nothing says that they are labels


def test_the_bar_counts_every_pass(capsys: pytest.CaptureFixture[str]) -> None:
    getattr(tqdm, "_instances", set()).clear()  # below a bar that another test left open this one would not stay
    quiet(LinearMargin(SHAPE), torch.zeros(2, *SHAPE), samples=30, first_samples=20, progress=True)
    assert "100/100" in capsys.readouterr().err


def test_the_peer_gives_the_same_radius_for_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """ART's `certify` (Cohen's algorithm) on the counts of this one's noise."""
    smoothing = pytest.importorskip("art.estimators.certification.randomized_smoothing")
    network = LinearMargin(SHAPE)
    weight = network.weight.detach() / network.weight.detach().norm()
    image = torch.stack([weight * distance for distance in (0.6, -0.3, 0.0, 1.0)])
    alpha, first, samples = 0.01, 30, 400
    ours = quiet(network, image, samples=samples, first_samples=first, alpha=alpha)
    peer = smoothing.PyTorchRandomizedSmoothing(
        model=network,
        loss=nn.CrossEntropyLoss(),
        input_shape=SHAPE,
        nb_classes=2,
        sample_size=first,
        scale=0.5,
        alpha=alpha,
        device_type="cpu",
    )
    source = torch.Generator().manual_seed(0)

    def noisy(x: np.ndarray, n: int | None = None) -> np.ndarray:
        copies = [torch.randn(1, *SHAPE, generator=source) for _ in range(first if n is None else n)]
        return x + 0.5 * torch.cat(copies).numpy()

    monkeypatch.setattr(peer, "_noisy_samples", noisy)
    monkeypatch.setattr(peer, "_lower_confidence_bound", lambda k, n: beta.ppf(alpha, k, n - k + 1))  # spares a package
    prediction, radius = peer.certify(image.numpy(), n=samples)
    assert ours.prediction.tolist() == [int(value) for value in prediction]
    assert ours.radius.tolist() == pytest.approx([float(value) for value in radius], abs=1e-6)
