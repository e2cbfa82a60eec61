"""`APGD`: closed-form optima, algorithm 1 written out, PGD and a peer."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import contract
import networks
import oracles
import pytest
import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import (
    APGD,
    PGD,
    Criterion,
    GaussianNoise,
    LpBall,
)
from monai_smia.attacks.pacing import checkpoints

CE = nn.CrossEntropyLoss()
NORMS = [math.inf, 2.0, 1.0]
SEA = ((0.3, 2.0), (0.3, 1.5), (0.4, 1.0))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# the contract


def _with(**fixed: Any) -> contract.Make:
    return lambda loss, **arguments: APGD(loss, **{"steps": 3, **fixed, **arguments})


ATTACKS = {
    "ce": _with(objective="ce"),
    "fixed-start": _with(random_start=False),
    "restarts-radii-balanced": _with(restarts=2, radii=SEA, objective="mask-ce-balanced"),
    "margin-runner-up": _with(objective="margin", runner_up=1),
    "targeted-js": _with(targeted=True, objective="js", random_start=False),
}


@pytest.mark.parametrize("clause", contract.CHECKS)
@pytest.mark.parametrize("task", ["classification", "multilabel", "segmentation"])
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", ATTACKS)
def test_contract(name: str, rank: int, task: str, clause: str) -> None:
    if clause == "verdict_can_be_recomputed" and "targeted" in name:
        pytest.skip("success of a targeted attack is the opposite")
    contract.CHECKS[clause](contract.Case(ATTACKS[name], rank, task))


@pytest.mark.parametrize("norm", ["inf", 2, 1])
@pytest.mark.parametrize("rank", [2, 3])
def test_every_channel_keeps_a_budget_of_its_own(rank: int, norm: Any) -> None:
    case = contract.Case(_with(), rank, "segmentation", batch=2, channels=3)
    eps = torch.tensor([[0.0, 0.5, 1.0], [0.3, 0.0, 2.0]])
    delta = case.run(attack=case.attack(eps=eps, norm=norm)).adversarial - case.image()
    size = torch.linalg.vector_norm(delta.flatten(2).double(), ord=float(norm), dim=2)
    assert (size <= eps * (1 + 1e-5)).all()
    assert ((size > 0) == (eps > 0)).all()


# algorithm 1


def test_checkpoints_are_those_of_the_paper() -> None:
    """p = 0, 0.22, then wider by the last width less 0.03, by 0.06 at least: 0.41, 0.57, 0.70, 0.80, 0.87, 0.93."""
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(10) == (3, 5, 6, 7, 8, 9, 10)
    shares = [0.0, 0.22]
    while shares[-1] <= 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    for steps in (1, 7, 33, 50, 1000):
        expected = {math.ceil(round(p * steps, 9)) for p in shares[1:] if p <= 1 + 1e-9}
        assert checkpoints(steps) == tuple(sorted(expected))


def algorithm_1(network: nn.Module, image: torch.Tensor, label: torch.Tensor, eps: float, norm: float, steps: int):
    """One sample, cross-entropy, from the image itself: the iterates and the number of halvings."""

    def value(x: torch.Tensor) -> tuple[float, torch.Tensor]:
        leaf = x.clone().requires_grad_()
        loss = F.cross_entropy(network(leaf), label)
        return loss.item(), torch.autograd.grad(loss, leaf)[0]

    def project(x: torch.Tensor) -> torch.Tensor:
        delta = x - image
        delta = delta.clamp(-eps, eps) if norm == math.inf else delta * min(1, eps / max(delta.norm().item(), 1e-30))
        return (image + delta).clamp(0, 1)

    eta, halvings, halved, peak_then = 2 * eps, 0, False, math.inf
    marks, last, rises = checkpoints(steps), 0, 0
    x, before = image, image
    f, gradient = value(x)
    iterates, peak = [(f, x)], (f, x, gradient)
    for k in range(steps):
        if k in marks:
            stale = marks.index(k) > 0 and not halved and peak[0] <= peak_then
            halved = rises < 0.75 * (k - last) or stale
            if halved:
                eta, (f, x, gradient), halvings = eta / 2, peak, halvings + 1
            peak_then, last, rises = peak[0], k, 0
        unit = gradient.sign() if norm == math.inf else gradient / gradient.norm()
        z = project(x + eta * unit)
        x, before = (z if k == 0 else project(x + 0.75 * (z - x) + 0.25 * (x - before))), x
        old, (f, gradient) = f, value(x)
        rises += f > old
        iterates.append((f, x))
        peak = (f, x, gradient) if f > peak[0] else peak
    return iterates, halvings


@pytest.mark.parametrize("norm", [math.inf, 2.0])
@pytest.mark.parametrize("rank", [2, 3])
def test_equals_algorithm_1_sample_by_sample(rank: int, norm: float) -> None:
    network = networks.tiny_network(rank, dense=False).eval().double()
    image = torch.rand(4, 1, *(9, 7, 5)[:rank], generator=seeded(1)).double()
    label = network(image).argmax(1)
    eps, seen = {math.inf: 0.05, 2.0: 0.6}[norm], []
    attack = APGD(CE, eps=eps, norm=norm, bounds=(0.0, 1.0), steps=40, random_start=False)
    result = attack(network, image, label, callback=lambda trial, _: seen.append(trial.adversarial))
    total = 0
    for i in range(4):
        iterates, halvings = algorithm_1(network, image[i : i + 1], label[i : i + 1], eps, norm, 40)
        total += halvings
        for t in range(40):
            torch.testing.assert_close(seen[t][i], iterates[t][1][0], rtol=0, atol=1e-12)
        assert float(result.loss[i]) == pytest.approx(max(f for f, _ in iterates), abs=1e-12)
    assert total > 4  # or nothing of the schedule was tested
    assert int(result.backward_passes[0]) == 40
    assert int(result.forward_passes[0]) == 40 + 2  # the last iterate and the verdict; the clean one was the first


# closed-form optima


@pytest.mark.parametrize("objective", ["loss", "ce", "margin"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(1, 6, 5), (2, 5, 4, 3)])
def test_reaches_the_linear_optimum(shape: tuple[int, ...], norm: float, objective: str) -> None:
    network = oracles.LinearMargin(shape)
    image, target = torch.rand((4, *shape), generator=seeded(3)), torch.tensor([0, 1, 0, 1])
    eps = {math.inf: 0.05, 2.0: 0.5, 1.0: 1.0}[norm]
    attack = APGD(CE, eps=eps, norm=norm, objective=objective, steps=50)
    moved = network.margin(attack(network, image, target).adversarial) - network.margin(image)
    optimum = oracles.largest_margin_change(network.weight, eps, norm)
    away = torch.where(target == 1, -moved, moved)
    assert (away >= optimum / 1.01).all()
    assert (away <= optimum * (1 + 1e-4)).all()


@pytest.mark.parametrize("objective", ["loss", "ce", "margin", "js", "mask-ce", "mask-ce-balanced"])
@pytest.mark.parametrize("rank", [2, 3])
def test_every_voxel_reaches_its_own_optimum(rank: int, objective: str) -> None:
    """A 1x1 convolution, Linf: each voxel's margin changes by ``eps * |w|_1``."""
    network, image = oracles.VoxelMargin(3, rank), torch.rand((2, 3, *(6, 5, 4)[:rank]), generator=seeded(5))
    target = torch.randint(2, (2, 1, *(6, 5, 4)[:rank]), generator=seeded(6))
    eps = 0.1
    if objective.startswith("mask"):  # a voxel that fell stays where it is: all are right, and the budget is too small
        target = (network.margin(image) > 0).long().unsqueeze(1)
        eps = (0.9 * network.margin(image).abs().min() / network.weight.abs().sum()).item()
    result = APGD(CE, eps=eps, objective=objective, steps=50)(network, image, target)
    moved = network.margin(result.adversarial) - network.margin(image)
    optimum = oracles.largest_margin_change(network.weight, eps, math.inf).detach()
    away = torch.where(target[:, 0] == 1, -moved, moved)
    torch.testing.assert_close(away, optimum.expand_as(away), rtol=0.01, atol=0)


@pytest.mark.parametrize("rank", [2, 3])
def test_the_mean_margin_of_voxels_reaches_its_l2_optimum(rank: int) -> None:
    """The sum over n voxels has the gradient w at each of them, of length ``sqrt(n) |w|``."""
    network, shape = oracles.VoxelMargin(3, rank), (6, 5, 4)[:rank]
    image = torch.rand((2, 3, *shape), generator=seeded(5))
    target = torch.randint(2, (2, 1, *shape), generator=seeded(6))
    result = APGD(CE, eps=0.5, norm=2, objective="margin", steps=50)(network, image, target)
    moved = network.margin(result.adversarial) - network.margin(image)
    away = torch.where(target[:, 0] == 1, -moved, moved).flatten(1).sum(1)
    optimum = 0.5 * network.weight.norm() * math.sqrt(math.prod(shape))
    assert (away >= optimum / 1.01).all()
    assert (away <= optimum * (1 + 1e-4)).all()


@dataclass(frozen=True)
class Under(Criterion):
    """The margin is under a threshold."""

    threshold: float

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        return prediction[:, 1] < self.threshold


def test_a_point_that_succeeds_is_kept_over_one_of_higher_loss() -> None:
    """The loss drives the margin up at once; only the drawn start, under the threshold, counts as success."""
    network, image = oracles.LinearMargin((1, 6, 5)), torch.rand((1, 1, 6, 5), generator=seeded(7))
    start = LpBall(0.1).init(image, seeded(0))
    threshold = network.margin(start).item() + 1e-3
    for criterion, expected in ((Under(threshold), start), (None, image + 0.1 * network.weight.sign())):
        result = APGD(CE, eps=0.1, steps=10, criterion=criterion)(network, image, torch.tensor([0]))
        torch.testing.assert_close(result.adversarial, expected.detach(), rtol=0, atol=1e-6)
        assert result.success.all() or criterion is None


def test_radii_start_wide_and_end_inside_the_ball() -> None:
    network, image = oracles.LinearMargin((1, 6, 5)), torch.rand((2, 1, 6, 5), generator=seeded(7))
    reach: list[float] = []
    attack = APGD(CE, eps=0.1, steps=10, radii=SEA)
    result = attack(
        network,
        image,
        torch.tensor([0, 1]),
        callback=lambda trial, _: reach.append(float((trial.adversarial - image).abs().max())),
    )
    for stage, factor in ((reach[1:3], 2.0), (reach[4:6], 1.5), (reach[7:], 1.0)):
        assert max(stage) == pytest.approx(0.1 * factor, rel=1e-5)
    assert len(reach) == 10
    assert float((result.adversarial - image).abs().max()) <= 0.1 * (1 + 1e-6)


@pytest.mark.parametrize("objective", ["loss", "ce", "dlr", "margin", "mask-ce", "mask-ce-balanced", "js"])
@pytest.mark.parametrize("rank", [2, 3])
def test_every_objective_attacks_a_dense_output(rank: int, objective: str) -> None:
    """Of the voxels that the network was right about, each brings down more than noise of the same size does."""
    network = networks.tiny_network(rank, dense=True).eval()
    image = torch.rand(2, 1, *(9, 7, 5)[:rank], generator=seeded(1))
    label = network(image).argmax(1, keepdim=True)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    still = [
        (network(attack(network, image, label).adversarial).argmax(1, keepdim=True) == label).flatten(1).float().mean(1)
        for attack in (GaussianNoise(loss, eps=1.0), APGD(loss, eps=1.0, steps=20, objective=objective))
    ]
    assert (still[1] < still[0] - 0.1).all()


# against PGD, and a peer


class Trained:
    """A small network trained on four noisy patterns, and 48 images that it is right about."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(),
                nn.Linear(128, 4),
            )  # fmt: skip
            label = torch.randint(4, (256,))
            patterns = F.interpolate(torch.rand(4, 1, 4, 4), scale_factor=2)
            image = (0.5 * patterns[label] + 0.25 + 0.3 * (torch.rand(256, 1, 8, 8) - 0.5)).clamp(0, 1)
            optimizer = torch.optim.Adam(self.network.parameters(), 0.01)
            for _ in range(60):
                optimizer.zero_grad()
                CE(self.network(image), label).backward()
                optimizer.step()
        right = self.network.eval()(image).argmax(1) == label
        self.image, self.label = image[right][:48], label[right][:48]


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained()


EPS = {math.inf: 0.09, 2.0: 0.6, 1.0: 1.8}


@pytest.mark.parametrize("norm", NORMS)
def test_is_not_weaker_than_pgd(trained: Trained, norm: float) -> None:
    size: dict[str, Any] = {"eps": EPS[norm], "norm": norm, "bounds": (0.0, 1.0), "steps": 30}
    plain = PGD(CE, keep="best", **size)(trained.network, trained.image, trained.label)
    auto = APGD(CE, **size)(trained.network, trained.image, trained.label)
    assert 5 <= int(auto.success.sum()) <= 43  # a budget that tells attacks apart
    assert int(auto.success.sum()) >= int(plain.success.sum())
    assert auto.loss.mean() >= plain.loss.mean()


@pytest.mark.parametrize("objective", ["dlr", "margin"])
def test_runners_up_reach_their_classes(trained: Trained, objective: str) -> None:
    """Nearly all that fall fall to the class that they were driven to; together they find what PGD finds, and more."""
    size: dict[str, Any] = {"eps": EPS[math.inf], "bounds": (0.0, 1.0), "steps": 30}
    order = trained.network(trained.image).argsort(1, descending=True)
    fallen = torch.zeros(48, dtype=torch.bool)
    for k in (1, 2, 3):
        attack = APGD(CE, objective=objective, runner_up=k, **size)
        result = attack(trained.network, trained.image, trained.label)
        reached = trained.network(result.adversarial).argmax(1) == order[:, k]
        assert result.success.any()
        assert reached[result.success].float().mean() >= 0.9
        fallen |= result.success
    plain = PGD(CE, keep="best", **size)(trained.network, trained.image, trained.label)
    assert int(fallen.sum()) > int(plain.success.sum())


@pytest.mark.peers
@pytest.mark.parametrize("objective", ["ce", "dlr"])
@pytest.mark.parametrize(("norm", "name"), [(math.inf, "Linf"), (2.0, "L2")])
def test_is_as_strong_as_torchattacks(trained: Trained, norm: float, name: str, objective: str) -> None:
    """Other random starts and other ties: the robust accuracies agree within one of 48 samples."""
    torchattacks = pytest.importorskip("torchattacks")
    peer = torchattacks.APGD(trained.network, norm=name, eps=EPS[norm], steps=50, loss=objective)
    with torch.random.fork_rng(devices=[]):
        theirs = trained.network(peer(trained.image, trained.label)).argmax(1) == trained.label
    attack = APGD(CE, eps=EPS[norm], norm=norm, bounds=(0.0, 1.0), steps=50, objective=objective)
    ours = ~attack(trained.network, trained.image, trained.label).success
    assert 5 <= int(theirs.sum()) <= 43
    assert abs(int(ours.sum()) - int(theirs.sum())) <= 1


# arguments


def test_repr_rebuilds_it_and_json_builds_it() -> None:
    attack = APGD(CE, eps=0.1, steps=20, objective="dlr", runner_up=2, radii=SEA, rho=0.5, momentum=1.0)
    names = {"APGD": APGD, "CrossEntropyLoss": nn.CrossEntropyLoss}
    assert repr(eval(repr(attack), names)) == repr(attack)
    assert f"radii={SEA!r}" in repr(attack)
    config = {
        "_target_": "monai_smia.attacks.APGD",
        "loss_function": {"_target_": "torch.nn.CrossEntropyLoss"},
        "eps": 0.1,
        "steps": 20,
        "objective": "dlr",
        "runner_up": 2,
        "radii": SEA,
        "rho": 0.5,
        "momentum": 1.0,
    }
    parser = ConfigParser({"attack": json.loads(json.dumps(config))})
    assert repr(parser.get_parsed_content("attack")) == repr(attack)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "cw"}, "objective: expected one of 'loss', 'ce'"),
        ({"steps": 0}, "steps: expected a whole number >= 1; got 0"),
        ({"rho": 1.5}, "rho: expected a share"),
        ({"momentum": 0}, "momentum: expected a number in"),
        ({"activation": "tanh"}, "activation: expected one of"),
        ({"runner_up": 0, "objective": "dlr"}, "runner_up: expected a whole number >= 1; got 0"),
        ({"runner_up": 1}, "runner_up: expected None, or an untargeted attack on 'dlr' or 'margin'"),
        ({"runner_up": 1, "objective": "dlr", "targeted": True}, "runner_up: expected None"),
        ({"radii": ((0.5, 2.0), (0.4, 1.0))}, "radii: expected pairs"),
        ({"radii": ((0.5, 2.0), (0.5, 1.5))}, "radii: expected pairs"),
        ({"radii": ((0.5, 0.5), (0.5, 1.0))}, "radii: expected pairs"),
        ({"radii": (0.5, 0.5)}, "radii: expected pairs"),
        ({"radii": "sea"}, "radii: expected pairs"),
        ({"restarts": 2, "random_start": False}, "restarts"),
    ],
)
def test_refuses_what_contradicts_itself(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        APGD(CE, eps=0.1, **arguments)


def test_refuses_heads_that_an_objective_is_not_defined_for() -> None:
    with pytest.raises(ValueError, match="objective: 'margin' reads classes"):
        APGD(nn.MSELoss(), eps=0.1, objective="margin")
    image, label = torch.rand(2, 1, 4, 4), torch.zeros(2).long()
    for outputs, extra, message in (
        (2, {"objective": "dlr"}, "DLR needs at least 3 classes; got 2"),
        (3, {"objective": "dlr", "runner_up": 1}, "DLR towards a class needs at least 4 classes; got 3"),
        (3, {"objective": "dlr", "targeted": True}, "DLR towards a class needs at least 4 classes; got 3"),
        (3, {"objective": "margin", "runner_up": 3}, "runner_up: expected at most 2"),
    ):
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, outputs))
        with pytest.raises(ValueError, match=message):
            APGD(CE, eps=0.1, **extra)(network, image, label)
