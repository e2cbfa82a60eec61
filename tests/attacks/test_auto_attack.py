"""`AutoAttack`: closed-form robust accuracy, its members alone, and passes counted."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import contract
import networks
import pytest
import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from oracles import LinearMargin, VoxelMargin
from torch import nn

from monai_smia.attacks import AttackResult, AutoAttack, Criterion, DiceBelow, Restarts, Transfer, WorstOf
from monai_smia.bundle import attack_grid

CE, BCE = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()
DICE = DiceCELoss(to_onehot_y=True, softmax=True)
SEA = ((0.3, 2.0), (0.3, 1.5), (0.4, 1.0))
NORMS = [math.inf, 2.0, 1.0]
HEADS: dict[str, tuple[Any, int]] = {
    "one": (BCE, 1),
    "two": (CE, 2),
    "three": (CE, 3),
    "four": (CE, 4),
    "ten": (CE, 10),
    "labels": (BCE, 3),
    "dense": (DICE, 3),
    "dense-sigmoid": (DiceCELoss(sigmoid=True), 2),
}
CLASSIFIERS = [name for name in HEADS if not name.startswith("dense")]
ranks = pytest.mark.parametrize("rank", [2, 3])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Never(Criterion):
    """No sample succeeds, so that all attacks are made on all."""

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        return torch.zeros(len(prediction), dtype=torch.bool)


# the contract: with survivors, and where a clause takes the network's rows for the image's with everyone

FEW = {"steps": 2, "queries": 3}
EVERYONE = {"pass_counts", "mask", "bad_sample"}


@pytest.mark.parametrize("clause", contract.CHECKS)
@pytest.mark.parametrize("task", ["classification", "multilabel", "segmentation"])
@ranks
def test_contract(rank: int, task: str, clause: str) -> None:
    few = {**FEW, "survivors_only": clause not in EVERYONE}
    contract.CHECKS[clause](contract.Case(lambda loss, **given: AutoAttack(loss, **{**few, **given}), rank, task))


# closed forms


class Linear(nn.Module):
    """Logits ``W x + b`` of the voxels."""

    def __init__(self, outputs: int, rank: int) -> None:
        super().__init__()
        self.shape = (1, *(4, 3, 2)[:rank])
        size = math.prod(self.shape)
        self.weight = nn.Parameter(torch.randn(outputs, size, generator=seeded(outputs)))
        self.bias = nn.Parameter(torch.randn(outputs, generator=seeded(outputs + 1)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.flatten(1) @ self.weight.T + self.bias

    @torch.no_grad()
    def radius(self, image: torch.Tensor, norm: float, binary: bool) -> torch.Tensor:
        """The smallest Lp norm that turns a decision of each sample: ``min |margin| / ||w||_q``, ``(B,)``."""
        dual = {math.inf: 1.0, 2.0: 2.0, 1.0: math.inf}[norm]
        scores = self(image)
        if binary:
            return (scores.abs() / torch.linalg.vector_norm(self.weight, ord=dual, dim=1)).amin(1)
        top = scores.argmax(1)
        slope = torch.linalg.vector_norm(self.weight[top][:, None] - self.weight, ord=dual, dim=2)
        lead = scores.gather(1, top[:, None]) - scores
        return (lead / slope).masked_fill(lead == 0, math.inf).amin(1)


def decisions(loss: Any, output: torch.Tensor) -> torch.Tensor:
    """Labels that the network is right about."""
    if isinstance(loss, nn.BCEWithLogitsLoss) or (output.ndim > 2 and loss is not DICE):
        return (output > 0).float()
    return output.argmax(1, keepdim=output.ndim > 2)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("head", CLASSIFIERS)
@ranks
def test_robust_accuracy_of_a_linear_network_is_the_closed_form(rank: int, head: str, norm: float) -> None:
    """A sample falls exactly if its smallest margin over the dual norm of its weights is under eps.

    eps lies between the radii of two of the samples, next to each other.
    """
    loss, outputs = HEADS[head]
    network = Linear(outputs, rank)
    image = torch.randn(8, *network.shape, generator=seeded(3))
    with torch.no_grad():
        target = decisions(loss, network(image))
    radius = network.radius(image, norm, loss is BCE)
    around = radius.sort().values[3:5]
    eps = float(around.mean())
    assert float(around[0]) < 0.995 * eps
    result = AutoAttack(loss, eps=eps, norm=norm, steps=20, queries=10)(network, image, target)
    assert torch.equal(result.success, radius < eps)
    assert not result.clean_success.any()


@pytest.mark.parametrize("norm", NORMS)
def test_a_target_of_the_users_is_reached_where_the_closed_form_says_so(norm: float) -> None:
    network = LinearMargin((1, 4, 3))
    image = torch.randn(8, 1, 4, 3, generator=seeded(3))
    with torch.no_grad():
        margin = network.margin(image)
    dual = {math.inf: 1, 2.0: 2, 1.0: math.inf}[norm]
    radius = margin.abs() / torch.linalg.vector_norm(network.weight.detach().flatten(), ord=dual)
    eps = float(radius.sort().values[3:5].mean())
    attack = AutoAttack(CE, eps=eps, norm=norm, steps=10, queries=10, targeted=True)
    assert torch.equal(attack(network, image, (margin < 0).long()).success, radius < eps)


@ranks
def test_every_voxel_that_can_fall_falls(rank: int) -> None:
    """A 1x1 convolution in Linf: the lowest Dice is known, and met, but not undercut."""
    network = VoxelMargin(2, rank)
    image = torch.randn(1, 2, *(6, 5, 4)[:rank], generator=seeded(1))
    with torch.no_grad():
        margin = network.margin(image)
    y, falls = margin > 0, margin.abs() < 0.5 * network.weight.abs().sum()
    p = y ^ falls
    lowest = float(2 * (p & y).sum() / (p.sum() + y.sum()))
    assert 0.1 < lowest < 0.9
    for threshold, reached in ((lowest + 1e-4, True), (lowest - 1e-4, False)):
        attack = AutoAttack(CE, eps=0.5, steps=20, queries=5, criterion=DiceBelow(threshold))
        assert bool(attack(network, image, y[:, None].long()).success) is reached


# its members


class Problem:
    """A network of a head, and images near its borders with its own labels, of which a small budget turns some."""

    def __init__(self, head: str, rank: int) -> None:
        self.loss, outputs = HEADS[head]
        dense = head.startswith("dense")
        self.network = networks.tiny_network(rank, dense, outputs=outputs).eval()
        self.image = torch.rand(8, 1, *(9, 7, 5)[:rank], generator=seeded(1))
        with torch.no_grad():
            output = self.network(self.image)
            self.network[-1].bias -= output.movedim(1, -1).flatten(0, -2).median(0).values
            self.prediction = self.network(self.image)
        self.target = decisions(self.loss, self.prediction)
        self.eps, self.criterion = 0.03, None
        if dense:
            self.eps = 0.2
            self.criterion = DiceBelow(0.64) if self.loss is DICE else DiceBelow(0.805, "sigmoid")

    def attack(self, **arguments: Any) -> AutoAttack:
        common = {"eps": self.eps, "bounds": (0.0, 1.0), "criterion": self.criterion, "steps": 3, "queries": 8}
        return AutoAttack(self.loss, **{**common, **arguments})

    def run(self, attack: Any, network: Any = None) -> AttackResult:
        return attack(network or self.network, self.image, self.target)


def described(attack: WorstOf) -> list[tuple[Any, ...]]:
    kinds = []
    for member in attack.attacks:
        some = [getattr(member, name, None) for name in ("objective", "runner_up", "radii")]
        kinds.append((type(member).__name__, *(value for value in some if value not in (None, ()))))
    return kinds


def apgd(*objectives: Any) -> list[tuple[Any, ...]]:
    return [("APGD", *(each if isinstance(each, tuple) else (each,))) for each in objectives]


LAST = [("FMN",), ("Square",)]
BINARY = [*apgd("ce", "margin"), *LAST]
SEGMENTED = [*apgd(("mask-ce-balanced", SEA), ("mask-ce", SEA), ("js", SEA)), ("Square",)]
MEMBERS = {
    "one": BINARY,
    "two": BINARY,
    "labels": BINARY,
    "three": [*apgd("ce", "dlr", ("margin", 1), ("margin", 2)), *LAST],
    "four": [*apgd("ce", ("dlr", 1), ("dlr", 2), ("dlr", 3)), *LAST],
    "ten": [*apgd("ce", *(("dlr", k) for k in range(1, 10))), *LAST],
    "dense": SEGMENTED,
    "dense-sigmoid": SEGMENTED,
}


@ranks
@pytest.mark.parametrize("head", HEADS)
def test_at_least_as_strong_as_each_member_on_every_case(head: str, rank: int) -> None:
    """The members of the head, and with everyone each sample's image is that of the worst of them."""
    problem = Problem(head, rank)
    members = problem.attack().ensemble(problem.prediction, problem.target)
    assert described(members) == MEMBERS[head]
    alone = [problem.run(member) for member in members.attacks]
    worst, everyone = (problem.run(problem.attack(survivors_only=only)) for only in (True, False))
    for member in alone:
        assert (worst.success >= member.success).all()
        assert (everyone.success >= member.success).all()
        assert ((everyone.loss >= member.loss) | (everyone.success & ~member.success)).all()
    assert torch.equal(worst.success, everyone.success)
    assert int(worst.success.sum()) > 0
    for i in range(len(problem.image)):
        best = max(alone, key=lambda result: (bool(result.success[i]), float(result.loss[i])))
        assert torch.equal(everyone.adversarial[i], best.adversarial[i])


@pytest.mark.parametrize("head", ["three", "four", "labels", "dense"])
def test_towards_a_target_there_are_no_runners_up(head: str) -> None:
    problem = Problem(head, 2)
    target = problem.target.roll(1, 0)
    attack = problem.attack(targeted=True, criterion=None, eps=0.3)
    members = attack.ensemble(problem.prediction, target)
    margin = "dlr" if head == "four" else "margin"
    assert described(members) == (SEGMENTED if head == "dense" else [*apgd("ce", margin), *LAST])
    result = attack(problem.network, problem.image, target)
    for member in members.attacks:
        assert (result.success >= member(problem.network, problem.image, target).success).all()
    assert (result.loss <= result.clean_loss).all()


def test_more_classes_have_nine_runners_up_and_l1_three_radii() -> None:
    attack = AutoAttack(CE, eps=0.1, norm=1)
    l1 = ((0.3, 3.0), (0.3, 2.0), (0.4, 1.0))
    many = attack.ensemble(torch.zeros(2, 12), torch.tensor([0, 1]))
    assert described(many) == [*apgd(("ce", l1), *(("dlr", k, l1) for k in range(1, 10))), *LAST]


def test_names_and_versions_are_the_users_choice() -> None:
    problem = Problem("four", 2)
    given = problem.attack(members=["fmn", "apgd-margin-t", "apgd-js"])
    members = given.ensemble(problem.prediction, problem.target)
    assert described(members) == [("FMN",), *apgd(("margin", 1), ("margin", 2), ("margin", 3), ("js", SEA))]
    dense = problem.attack(version="dense").ensemble(problem.prediction, problem.target)
    assert described(dense) == SEGMENTED
    segmentation = Problem("dense", 2)
    flat = segmentation.attack(version="standard").ensemble(segmentation.prediction, segmentation.target)
    assert described(flat) == MEMBERS["three"]
    assert not AutoAttack(CE, eps=0.1, members=["fmn"]).is_random
    assert AutoAttack(CE, eps=0.1).is_random


def test_restarts_are_of_the_random_members() -> None:
    problem = Problem("two", 2)
    several = problem.attack(restarts=3)
    members = several.ensemble(problem.prediction, problem.target).attacks
    assert [type(member).__name__ for member in members] == ["Restarts", "Restarts", "FMN", "Restarts"]
    assert all(member.n == 3 for member in members if isinstance(member, Restarts))
    assert (problem.run(several).success >= problem.run(problem.attack()).success).all()


# cost


@pytest.mark.parametrize(
    ("head", "norm", "runs", "runners_up", "rest"),
    [("ten", math.inf, 10, 9, 2), ("two", 2, 2, 0, 2), ("two", 1, 2, 0, 6), ("dense", math.inf, 3, 0, 6)],
)
def test_passes_of_a_sample_that_stands_are_as_stated(
    head: str, norm: float, runs: int, runners_up: int, rest: int
) -> None:
    """`rest`: FMN's two beyond its steps or none, and two for each APGD run with radii."""
    problem, (steps, queries) = Problem(head, 2), (5, 7)
    counting = networks.Counting(problem.network)
    result = problem.run(problem.attack(criterion=Never(), norm=norm, steps=steps, queries=queries), counting)
    fmn = steps if head != "dense" else 0
    forward = 1 + runs * (steps + 3) + runners_up + fmn + rest + queries + 2
    assert result.forward_passes.tolist() == [forward] * 8
    assert result.backward_passes.tolist() == [runs * steps + fmn] * 8
    assert (counting.forwards, counting.backwards) == (forward, runs * steps + fmn)


@pytest.mark.parametrize("head", ["three", "dense"])
def test_only_survivors_go_on(head: str) -> None:
    """The network is given as many samples as the passes say; those that fell at once took the first attack's."""
    problem = Problem(head, 2)
    rows: list[int] = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return problem.network(x)

    attack = problem.attack()
    result = problem.run(attack, counted)
    first = problem.run(attack.ensemble(problem.prediction, problem.target).attacks[0])
    assert 0 < int(first.success.sum()) < 8
    assert sum(rows) == int(result.forward_passes.sum())
    assert torch.equal(result.forward_passes == first.forward_passes + 1, first.success)
    assert torch.equal(result.backward_passes == first.backward_passes, first.success)


def test_inside_other_combinations() -> None:
    problem = Problem("four", 2)
    plain = problem.run(problem.attack())
    for other in (WorstOf([problem.attack()]), Transfer(problem.attack(), problem.network)):
        assert torch.equal(problem.run(other).adversarial, plain.adversarial)
    again = problem.run(WorstOf([problem.attack(members=["apgd-ce"]), problem.attack()]))
    assert torch.equal(again.success, plain.success)


def test_what_is_wrong_without_an_attack_stays_so() -> None:
    """A bump with only the image's own value on top of it: APGD's two iterates lie beside it, the image does not."""

    def bump(x: torch.Tensor) -> torch.Tensor:
        inside = 1 - 1e4 * (x - 0.5).square().flatten(1).mean(1)  # > 0 only within 0.01 of 0.5
        return torch.stack((-inside, inside), 1)

    image, label = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1])
    attack = AutoAttack(CE, eps=0.3, members=["apgd-ce"], steps=1)
    alone = attack.ensemble(bump(image), label).attacks[0](bump, image, label)
    result = attack(bump, image, label)
    assert (alone.success.tolist(), alone.clean_success.tolist()) == ([False, True], [True, False])
    assert (result.success.tolist(), result.clean_success.tolist()) == ([True, True], [True, False])
    assert torch.equal(result.adversarial[0], image[0])
    assert torch.equal(result.adversarial[1], alone.adversarial[1])
    assert torch.equal(result.loss, torch.stack((result.clean_loss[0], alone.loss[1])))


# construction


def test_repr_json_grid() -> None:
    text = (
        "AutoAttack(CrossEntropyLoss(), eps=0.1, norm=2.0, bounds=(0.0, 1.0), steps=7, queries=9, "
        "members=('apgd-ce', 'fmn'), survivors_only=False)"
    )
    attack = eval(text, {"AutoAttack": AutoAttack, "CrossEntropyLoss": nn.CrossEntropyLoss})
    assert repr(attack) == text
    assert repr(dataclasses.replace(attack, eps=0.2)) == text.replace("0.1", "0.2")
    config = {
        "attack": {
            "_target_": "monai_smia.attacks.AutoAttack",
            "loss_function": {"_target_": "torch.nn.CrossEntropyLoss"},
            "eps": 0.1,
            "norm": 2,
            "bounds": [0.0, 1.0],
            "steps": 7,
            "queries": 9,
            "members": ["apgd-ce", "fmn"],
            "survivors_only": False,
        }
    }
    assert repr(ConfigParser(json.loads(json.dumps(config))).get_parsed_content("attack")) == text
    grid = attack_grid(["AutoAttack"], [0.1, 0.2], CE, steps=3, options={"AutoAttack": {"queries": 4}})
    assert {name: repr(attack) for name, attack in grid.items()} == {
        f"AutoAttack_{eps}": f"AutoAttack(CrossEntropyLoss(), eps={eps}, steps=3, queries=4)" for eps in (0.1, 0.2)
    }


def test_errors() -> None:
    for members in ([], "fmn", ["fab"], ["fmn", "fmn"], 3):
        with pytest.raises(ValueError, match="members: expected names among 'apgd-ce', .* each once, or None; got"):
            AutoAttack(CE, eps=0.1, members=members)
    with pytest.raises(ValueError, match="members: expected None with version='dense'"):
        AutoAttack(CE, eps=0.1, members=["fmn"], version="dense")
    with pytest.raises(ValueError, match="members: expected no runners-up"):
        AutoAttack(CE, eps=0.1, members=["apgd-dlr-t"], targeted=True)
    with pytest.raises(ValueError, match="version: expected one of 'auto', 'standard', 'dense'; got 'rand'"):
        AutoAttack(CE, eps=0.1, version="rand")
    with pytest.raises(ValueError, match="loss_function: AutoAttack turns decisions; got the regression loss MSELoss"):
        AutoAttack(nn.MSELoss(), eps=0.1)
    for name in ("steps", "queries", "restarts"):
        with pytest.raises(ValueError, match=f"{name}: expected a whole number >= 1; got 0"):
            AutoAttack(CE, eps=0.1, **{name: 0})
    with pytest.raises(ValueError, match="restarts: 2 runs"):
        AutoAttack(CE, eps=0.1, members=["fmn"], restarts=2)
    image, label = torch.zeros(2, 1, 4, 4), torch.zeros(2).long()
    with pytest.raises(ValueError, match="network: expected at least 2 classes of a softmax head; got 1"):
        AutoAttack(CE, eps=0.1)(lambda x: x.flatten(1)[:, :1], image, label)
    with pytest.raises(ValueError, match="DLR needs at least 3 classes; got 2"):
        AutoAttack(CE, eps=0.1, members=["apgd-dlr"])(lambda x: x.flatten(1)[:, :2], image, label)
    with pytest.raises(ValueError, match="target: expected class indices under 3"):
        AutoAttack(CE, eps=0.1)(lambda x: x.flatten(1)[:, :3], image, label + 5)
    with pytest.raises(TypeError, match=r"got dict\. The ensemble for a detector is WorstOf"):
        AutoAttack(lambda prediction, target: prediction["a"].sum(), eps=0.1)(lambda x: {"a": x}, image, label)
