"""Minimum-norm attacks against closed forms: on linear networks the distance to the border is known."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from monai_smia.attacks import CW, DDN, FMN, Attack, DeepFool, DiceBelow, Misclassification, Not

RANKS = {2: (6, 5), 3: (4, 3, 3)}
BOUNDS = (0.0, 1.0)
DUAL = {math.inf: 1, 2: 2, 1: math.inf}
FEW: dict[type[Attack], dict[str, Any]] = {CW: {"steps": 100, "searches": 4, "initial_c": 0.1}}
ROWS = [(FMN, math.inf), (FMN, 2), (FMN, 1), (DDN, 2), (DeepFool, 2), (DeepFool, math.inf), (CW, 2)]
MULTI, SIGMOID = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()

rows = pytest.mark.parametrize(("kind", "norm"), ROWS, ids=lambda value: getattr(value, "__name__", str(value)))
ranks = pytest.mark.parametrize("rank", RANKS)
kinds = pytest.mark.parametrize("kind", [FMN, DDN, DeepFool, CW])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(rank: int, batch: int = 3) -> torch.Tensor:
    """Two channels in the middle of the bounds, so that these stay out of the closed forms."""
    return 0.5 + 0.1 * draw(batch, 2, *RANKS[rank], seed=7).clamp(-2, 2)


def size(delta: torch.Tensor, norm: float) -> torch.Tensor:
    return torch.linalg.vector_norm(delta.flatten(1), ord=norm, dim=1)


def make(kind: type[Attack], loss: nn.Module, norm: float, **arguments: Any) -> Attack:
    return kind(loss, norm=norm, **{"bounds": BOUNDS, **FEW.get(kind, {}), **arguments})


class Linear:
    """``W (x - 0.5)``, three images with the labels that it gives them, and their distances to the nearest border.

    The images are those of two hundred whose distance is over 0.06 in L2 (the first steps of DDN and CW are about that
    long) and under 0.3 in L1 (one voxel alone then stays inside the bounds).

    Attributes:
        weights: ``(K, N)`` for N voxels of all channels together.
    """

    def __init__(self, rank: int, task: str, mask: torch.Tensor | None = None) -> None:
        self.image = images(rank, 200)
        outputs = {"sigmoid": 1, "two": 2, "classes": 5, "labels": 4}[task]
        self.weights = 0.2 * draw(outputs, self.image[0].numel(), seed=3)
        self.loss = MULTI if task in ("two", "classes") else SIGMOID
        scores = self(self.image)
        self.target = scores.argmax(1) if self.loss is MULTI else (scores > 0).double()
        self.free = torch.ones_like(self.image[0]) if mask is None else mask.expand_as(self.image[0])
        kept = ((self.distance(2) > 0.06) & (self.distance(1) < 0.3)).nonzero()[:3, 0]
        assert len(kept) == 3
        self.image, self.target = self.image[kept], self.target[kept]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return (image - 0.5).flatten(1) @ self.weights.T

    def distance(self, norm: float) -> torch.Tensor:
        """``min_k |f_k| / ||w_k||_q``, ``(B,)``."""
        found = []
        for score, label in zip(self(self.image), self.target, strict=True):
            if self.loss is MULTI:
                rival = torch.arange(len(score)) != label
                gap, slope = score[label] - score[rival], (self.weights[label] - self.weights[rival])
            else:
                gap, slope = score.abs(), self.weights
            reach = torch.linalg.vector_norm(slope * self.free.flatten(), ord=DUAL[norm], dim=1)
            found.append((gap / reach).min())
        return torch.stack(found)


@rows
@ranks
@pytest.mark.parametrize("task", ["sigmoid", "two", "classes", "labels"])
def test_the_closed_form_of_a_linear_classifier(kind: type[Attack], norm: float, rank: int, task: str) -> None:
    """Never under the distance, and at most 1.25 times it; every sample succeeds inside the bounds."""
    network = Linear(rank, task)
    result = make(kind, network.loss, norm)(network, network.image, network.target)
    ratio = size(result.adversarial - network.image, norm) / network.distance(norm)
    assert not result.clean_success.any()
    assert result.success.all()
    assert (ratio >= 1 - 1e-9).all()
    assert (ratio <= 1.25).all(), ratio
    assert (result.adversarial >= 0).all()
    assert (result.adversarial <= 1).all()


@ranks
@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("task", ["sigmoid", "two", "classes", "labels"])
def test_deepfool_needs_one_step_on_a_linear_network(rank: int, norm: float, task: str) -> None:
    """Exactly ``1 + overshoot`` times the distance, with one gradient for each border, and again at the end."""
    network = Linear(rank, task)
    result = make(DeepFool, network.loss, norm, overshoot=0.01)(network, network.image, network.target)
    torch.testing.assert_close(
        size(result.adversarial - network.image, norm), 1.01 * network.distance(norm), rtol=1e-9, atol=0
    )
    borders = {"sigmoid": 1, "two": 1, "classes": 4, "labels": 4}[task]
    assert result.backward_passes.tolist() == [2 * borders] * 3
    assert result.forward_passes.tolist() == [3] * 3


@rows
def test_the_closed_form_inside_a_mask(kind: type[Attack], norm: float) -> None:
    mask = torch.zeros(1, 1, 6, 5, dtype=torch.float64)
    mask[:, :, 1:5, 2:] = 1
    network = Linear(2, "classes", mask[0])
    result = make(kind, network.loss, norm)(network, network.image, network.target, mask=mask)
    delta = result.adversarial - network.image
    assert result.success.all()
    assert (delta[mask.expand_as(delta) == 0] == 0).all()
    ratio = size(delta, norm) / network.distance(norm)
    assert ((ratio >= 1 - 1e-9) & (ratio <= 1.25)).all(), ratio


@rows
def test_towards_a_target(kind: type[Attack], norm: float) -> None:
    """Of two classes the other one is as far as any: the target's distance is the label's."""
    network = Linear(2, "two")
    attack = make(kind, network.loss, norm, targeted=True)
    result = attack(network, network.image, 1 - network.target)
    ratio = size(result.adversarial - network.image, norm) / network.distance(norm)
    assert torch.equal(network(result.adversarial).argmax(1), 1 - network.target)
    assert ((ratio >= 1 - 1e-9) & (ratio <= 1.25)).all(), ratio


class Voxelwise(nn.Module):
    """A 1x1(x1) convolution, which gives every voxel a border of its own; all voxels start on its side of it."""

    def __init__(self, rank: int, outputs: int) -> None:
        super().__init__()
        slopes, bias = (
            ([[1.5, -0.7]], [0.55]) if outputs == 1 else ([[1.5, -0.7], [0.0, 0.6], [-0.6, -1.2]], [0, 0.7, 0])
        )
        self.weights, self.bias = (torch.tensor(value, dtype=torch.float64) for value in (slopes, bias))
        self.image = 0.5 + (images(rank) - 0.5) / 2
        scores = self(self.image)
        self.target = torch.ones_like(scores) if outputs == 1 else torch.ones_like(scores[:, :1])
        self.loss = SIGMOID if outputs == 1 else MULTI

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores = torch.einsum("bc...,kc->bk...", image - 0.5, self.weights)
        return scores + self.bias.reshape(-1, *[1] * (image.ndim - 2))

    def distances(self, norm: float) -> torch.Tensor:
        """Each voxel's distance to its nearest border, ascending, ``(B, N)``."""
        scores = self(self.image)
        if len(self.weights) == 1:
            gaps, slopes = scores, self.weights
        else:
            gaps, slopes = scores[:, 1:2] - scores[:, [0, 2]], self.weights[1] - self.weights[[0, 2]]
        reach = torch.linalg.vector_norm(slopes, ord=DUAL[norm], dim=1)
        assert (gaps > 0).all()
        return (gaps / reach.reshape(-1, *[1] * (scores.ndim - 2))).amin(1).flatten(1).sort(1).values


@rows
@ranks
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_nearest_voxel_falls(kind: type[Attack], norm: float, rank: int, outputs: int) -> None:
    """Where one wrong voxel is success, the closed form is the nearest voxel's distance."""
    network = Voxelwise(rank, outputs)
    wrong = Misclassification("sigmoid" if outputs == 1 else "softmax")
    result = make(kind, network.loss, norm, criterion=wrong)(network, network.image, network.target)
    ratio = size(result.adversarial - network.image, norm) / network.distances(norm)[:, 0]
    assert result.success.all()
    assert not result.clean_success.any()
    assert ((ratio >= 1 - 1e-9) & (ratio <= 1.25)).all(), ratio


DICE = {(FMN, math.inf): 1.001, (DeepFool, math.inf): 1.25}
"""Under Linf each voxel moves for itself. Else 1.7: the mean moves all voxels alike, the optimum only the cheapest."""


@rows
@ranks
def test_dice_falls_under_its_threshold(kind: type[Attack], norm: float, rank: int) -> None:
    """All N voxels are structure: Dice ``2 (N - k) / (2 N - k)`` is under a half from k > 2 N / 3 lost ones on.

    The k nearest voxels give the closed form, which no attack can beat.
    """
    network = Voxelwise(rank, 1)
    lost = network.distances(norm)
    lost = lost[:, : 2 * lost.shape[1] // 3 + 1]
    result = make(kind, network.loss, norm)(network, network.image, network.target)
    ratio = size(result.adversarial - network.image, norm) / torch.linalg.vector_norm(lost, ord=norm, dim=1)
    assert result.success.all()
    assert (ratio >= 1 - 1e-9).all()
    assert (ratio <= DICE.get((kind, norm), 1.7)).all(), ratio


@rows
@ranks
def test_the_target_of_every_voxel_is_reached(kind: type[Attack], norm: float, rank: int) -> None:
    """Targeted on a dense output: success is a Dice of at least 0.9 with the target, not of any less."""
    network = Voxelwise(rank, 3)
    goal = Not(DiceBelow(0.9))
    attack = make(kind, network.loss, norm, targeted=True, criterion=goal)
    target = torch.full_like(network.target, 2)
    result = attack(network, network.image, target)
    assert result.success.all()
    assert torch.equal(result.success, goal(network(result.adversarial), target))
    assert not result.clean_success.any()


@rows
def test_a_budget_is_kept_and_parts_the_samples(kind: type[Attack], norm: float) -> None:
    """Samples nearer than eps succeed; the others come back on the ball's edge, nearer to the border than they were."""
    network = Linear(2, "two")
    distance = network.distance(norm)
    eps = float(distance.sort().values[:2].mean()) * 1.01
    near = distance < eps
    assert near.any()
    assert not near.all()
    result = make(kind, network.loss, norm, eps=eps)(network, network.image, network.target)
    reach = size(result.adversarial - network.image, norm)
    assert torch.equal(result.success, distance < eps)
    assert (reach <= eps * (1 + 1e-9)).all()
    if kind is not CW:  # whose distance term stops it short where no c was large enough
        torch.testing.assert_close(reach[~result.success], torch.full_like(reach[~result.success], eps))
    assert (result.loss > result.clean_loss).all()


@rows
def test_what_is_already_wrong_is_left_as_it_is(kind: type[Attack], norm: float) -> None:
    """The smallest change of an image that the network gets wrong is none; its batch mates are attacked."""
    network = Linear(2, "classes")
    wrong = network.target.clone()
    wrong[1] = (wrong[1] + 1) % 5
    result = make(kind, network.loss, norm)(network, network.image, wrong)
    alone = make(kind, network.loss, norm)(network, network.image[:1], wrong[:1])
    assert torch.equal(result.adversarial[1], network.image[1])
    assert (size(result.adversarial - network.image, norm) > 0).tolist() == [True, False, True]
    torch.testing.assert_close(result.adversarial[0], alone.adversarial[0], rtol=0, atol=1e-12)


@rows
def test_intensities_of_another_unit_change_nothing_but_the_unit(kind: type[Attack], norm: float) -> None:
    """An image in [-1000, 1000] gives the perturbation of the one in [0, 1] times 2000."""
    network = Linear(2, "classes")
    small = make(kind, network.loss, norm)(network, network.image, network.target).adversarial
    large = make(kind, network.loss, norm, bounds=(-1000.0, 1000.0))(
        lambda x: network(x / 2000 + 0.5), (network.image - 0.5) * 2000, network.target
    )
    torch.testing.assert_close(large.adversarial / 2000 + 0.5, small, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [FMN, DDN])
def test_without_bounds_the_samples_own_range_is_the_unit(kind: type[Attack]) -> None:
    network = Linear(2, "two")
    result = kind(network.loss, norm=2)(network, network.image, network.target)
    ratio = size(result.adversarial - network.image, 2) / network.distance(2)
    assert ((ratio >= 1 - 1e-9) & (ratio <= 1.25)).all(), ratio


@kinds
def test_success_is_judged_in_single_precision(kind: type[Attack]) -> None:
    """With gradients in bfloat16, in which the border is wide, what comes back succeeds in single precision."""
    network = Linear(2, "two")
    layer = nn.Linear(60, 2)
    layer.weight.data, layer.bias.data = network.weights.float(), -0.5 * network.weights.sum(1).float()
    model = nn.Sequential(nn.Flatten(), layer)
    result = make(kind, network.loss, 2, amp="bfloat16")(model, network.image.float(), network.target)
    assert result.success.all()
    assert torch.equal(result.success, model(result.adversarial).argmax(1) != network.target)


@kinds
def test_arguments(kind: type[Attack]) -> None:
    with pytest.raises(ValueError, match=r"loss_function: \w+ crosses the border of a decision"):
        kind(nn.MSELoss(), bounds=BOUNDS)
    with pytest.raises(ValueError, match="steps: expected a whole number >= 1"):
        kind(MULTI, bounds=BOUNDS, steps=0)
    with pytest.raises(ValueError, match="restarts: 2 runs"):
        kind(MULTI, bounds=BOUNDS, restarts=2)
    with pytest.raises(ValueError, match="eps: expected finite numbers >= 0"):
        kind(MULTI, bounds=BOUNDS, eps=-math.inf)
    if kind is not FMN:
        with pytest.raises(ValueError, match=f"norm: {kind.__name__} is for 2.*; got 1"):
            kind(MULTI, bounds=BOUNDS, norm=1)
    config = {"_target_": f"monai_smia.attacks.{kind.__name__}", "loss_function": "$torch.nn.CrossEntropyLoss()"}
    for extra in ({}, {"eps": "inf"}, {"eps": 0.5, "norm": 2}):
        text = json.dumps({"imports": ["$import torch"], "attack": {**config, "bounds": [0, 1], **extra}})
        attack = ConfigParser(json.loads(text)).get_parsed_content("attack")
        assert attack.eps == float(extra.get("eps", "inf"))
        assert repr(eval(repr(attack), {kind.__name__: kind, "CrossEntropyLoss": nn.CrossEntropyLoss})) == repr(attack)


def test_arguments_of_single_attacks() -> None:
    with pytest.raises(ValueError, match=r"bounds: CW moves inside the intensity range; expected \(low, high\)"):
        CW(MULTI)
    with pytest.raises(ValueError, match="initial_c: expected a number > 0; got 0"):
        CW(MULTI, bounds=BOUNDS, initial_c=0)
    with pytest.raises(ValueError, match=r"gamma: expected a number in \(0, 1\); got 1"):
        FMN(MULTI, gamma=1)
    with pytest.raises(ValueError, match="overshoot: expected a number >= 0; got -1"):
        DeepFool(MULTI, overshoot=-1)
    with pytest.raises(ValueError, match="initial_norm: expected a number > 0; got -1"):
        DDN(MULTI, initial_norm=-1)


@pytest.mark.parametrize("initial_c", [0.01, 50.0])
def test_cw_is_its_search_over_c_written_out(initial_c: float) -> None:
    """Two values in numpy, on a linear classifier of two classes: from failures upwards, from successes downwards."""
    weight, offset, size, few, searches = np.array([3.0, -2.0]), 1.1, 0.05, 20, 6
    start = np.array([0.4, 0.6])

    def margin(x: np.ndarray) -> float:
        return float(weight @ x - offset)

    origin = np.arctanh((2 * start - 1) * (1 - 1e-6))
    c, low, high, best, tried = initial_c, 0.0, np.inf, None, []
    for _ in range(searches):
        tried.append(c)
        w, mean, square, reached = origin.copy(), np.zeros(2), np.zeros(2), False
        for t in range(1, few + 1):
            x = np.clip(start + (np.tanh(w) - np.tanh(origin)) / 2, 0, 1)
            if margin(x) > 0:
                reached = True
                if best is None or np.linalg.norm(x - start) < np.linalg.norm(best - start):
                    best = x
            slope = 2 * (x - start) - (c * weight if margin(x) <= 0 else 0)
            slope = slope * (1 - np.tanh(w) ** 2) / 2 / max(c, 1.0)
            mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
            w = w - size * mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        low, high = (low, min(high, c)) if reached else (max(low, c), high)
        c = (low + high) / 2 if np.isfinite(high) else 10 * c
    assert best is not None
    assert (tried[1] > tried[0]) == (initial_c == 0.01)

    def network(image: torch.Tensor) -> torch.Tensor:
        gap = image.flatten(1) @ torch.from_numpy(weight) - offset
        return torch.stack((torch.zeros_like(gap), gap), 1)

    attack = CW(MULTI, bounds=(0.0, 1.0), steps=few, searches=searches, step_size=size, initial_c=initial_c)
    result = attack(network, torch.from_numpy(start)[None, None], torch.tensor([0]))
    assert bool(result.success)
    np.testing.assert_allclose(result.adversarial.flatten().numpy(), best, rtol=0, atol=1e-9)
