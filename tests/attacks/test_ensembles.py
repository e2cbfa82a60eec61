"""`WorstOf`, `Restarts`, `Transfer`: against their members made alone, sample by sample and pass by pass."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import contract
import networks
import pytest
import torch
from detectors import attack_on, copied
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from oracles import LinearMargin
from torch import nn

from monai_smia.attacks import (
    BIM,
    FGSM,
    PGD,
    SMIA,
    VMIFGSM,
    Attack,
    AttackResult,
    Criterion,
    DiceBelow,
    GaussianNoise,
    Restarts,
    Square,
    Transfer,
    WorstOf,
)
from monai_smia.inferers import gradient_inferer

LOSS = nn.CrossEntropyLoss()
EPS = {"classification": 0.05, "multilabel": 0.02, "segmentation": 0.1}
DICE = {2: 0.9, 3: 0.85}
TASKS = ("classification", "multilabel", "segmentation")
ranks = pytest.mark.parametrize("rank", [2, 3])
tasks = pytest.mark.parametrize("task", TASKS)


class Constant(Criterion):
    """Success for everyone, or for none."""

    def __init__(self, everywhere: bool) -> None:
        self.everywhere = everywhere

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        return torch.full((len(prediction),), self.everywhere)


def _worst(loss: Any, **arguments: Any) -> Attack:
    common = {"eps": contract.EPS, **arguments}
    return WorstOf(
        [FGSM(loss, random_start=True, **common), PGD(loss, steps=2, **common), Square(loss, queries=6, **common)]
    )


def _everyone(loss: Any, **arguments: Any) -> Attack:
    return dataclasses.replace(_worst(loss, **arguments), survivors_only=False)


def _restarts(loss: Any, **arguments: Any) -> Attack:
    return Restarts(PGD(loss, steps=2, **arguments), 3)


COMBINATIONS = {"WorstOf": _worst, "WorstOf-everyone": _everyone, "Restarts": _restarts}
FEWER_ROWS = "the clause takes the network's rows for the image's, and here only those that are left come; "
SKIPPED = {
    "pass_counts": "samples that are done make no more passes; counted for each sample below",
    "mask": FEWER_ROWS + "masks are tested below and with everyone",
    "bad_sample": FEWER_ROWS + "tested with everyone",
}


@pytest.mark.parametrize("clause", contract.CHECKS)
@tasks
@ranks
@pytest.mark.parametrize("name", COMBINATIONS)
def test_contract(name: str, rank: int, task: str, clause: str) -> None:
    if clause == "configuration":
        pytest.skip("its arguments are attacks; its own JSON and repr are tested below")
    if clause in SKIPPED and "everyone" not in name:
        pytest.skip(f"{clause}: {SKIPPED[clause]}")
    contract.CHECKS[clause](contract.Case(COMBINATIONS[name], rank, task))


class Problem:
    """A network and images of which an attack of moderate strength turns some, by its own labels."""

    def __init__(self, rank: int, task: str, batch: int = 8) -> None:
        self.case = contract.Case(PGD, rank, task, batch=batch)
        self.network, self.image, self.loss = self.case.network().eval(), self.case.image(), self.case.loss()
        with torch.no_grad():
            output = self.network(self.image)
            middle = output.movedim(1, -1).flatten(0, -2).median(0).values
            self.network[-1].bias -= middle  # decisions near their boundary, of every class
            output = self.network(self.image)
        self.target = output.argmax(1)
        self.eps = EPS[task]
        self.criterion = DiceBelow(DICE[rank]) if task == "segmentation" else None
        self.common: dict[str, Any] = {"eps": self.eps, "bounds": contract.BOUNDS, "criterion": self.criterion}
        if task == "multilabel":
            self.target = (output > 0).float()
        if task == "segmentation":
            self.target = self.target[:, None]

    def run(self, attack: Attack, network: Any = None, **arguments: Any) -> AttackResult:
        return attack(self.network if network is None else network, self.image, self.target, **arguments)

    def members(self) -> list[Attack]:
        common = self.common
        return [
            GaussianNoise(self.loss, **common),
            VMIFGSM(self.loss, steps=1, neighbours=2, step_size=self.eps / 3, **common),
            PGD(self.loss, steps=3, **common),
            Square(self.loss, queries=10, **common),
        ]


def same(one: AttackResult, other: AttackResult, *but: str) -> bool:
    names = [field.name for field in dataclasses.fields(AttackResult) if field.name not in but]
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


@tasks
@ranks
def test_at_least_as_strong_as_each_member_on_every_case(rank: int, task: str) -> None:
    """And made of their images: with everyone, each sample's is that of the member with the most success, then loss."""
    problem = Problem(rank, task)
    alone = [problem.run(member) for member in problem.members()]
    worst, everyone = (problem.run(WorstOf(problem.members(), survivors_only=only)) for only in (True, False))
    for member in alone:
        assert bool((worst.success >= member.success).all())
        assert bool((everyone.success >= member.success).all())
        assert bool(((everyone.loss >= member.loss) | (everyone.success & ~member.success)).all())
    for i in range(len(problem.image)):
        best = max(alone, key=lambda result: (bool(result.success[i]), float(result.loss[i])))
        assert torch.equal(everyone.adversarial[i], best.adversarial[i])
        first = next((result for result in alone if bool(result.success[i])), best)
        torch.testing.assert_close(worst.adversarial[i], first.adversarial[i], rtol=0, atol=1e-6)
    assert bool(everyone.success.any())


@tasks
@ranks
def test_passes_are_those_of_the_attacks_that_a_sample_went_through(rank: int, task: str) -> None:
    """And the network is given no other samples."""
    problem = Problem(rank, task)
    alone = [problem.run(member) for member in problem.members()]
    rows, backward = [], []

    def counted(x: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        if x.requires_grad:
            x.register_hook(lambda gradient: backward.append(len(gradient)))
        return problem.network(x)

    result = problem.run(WorstOf(problem.members()), counted)
    gone = torch.stack([member.success for member in alone]).long().cumsum(0) > 0
    going = torch.cat((torch.ones_like(gone[:1]), ~gone[:-1])).long()
    assert 0 < int(going[-1].sum()) < len(problem.image)
    expected = sum(member.forward_passes * left for member, left in zip(alone, going, strict=True))
    assert bool((result.forward_passes <= expected).all())  # Square ends early where all that are left have succeeded
    if task == "segmentation":
        assert torch.equal(result.forward_passes, expected)
    assert bool(
        (result.forward_passes >= sum(m.forward_passes * g for m, g in zip(alone[:3], going, strict=False))).all()
    )
    assert sum(rows) == int(result.forward_passes.sum())
    assert sum(backward) == int(result.backward_passes.sum())
    expected = sum(member.backward_passes * left for member, left in zip(alone, going, strict=True))
    assert torch.equal(result.backward_passes, expected)


@tasks
@ranks
def test_one_restart_is_the_attack(rank: int, task: str) -> None:
    problem = Problem(rank, task)
    for attack in problem.members():
        source = [torch.Generator().manual_seed(3) for _ in range(2)]
        runs = [problem.run(a, generator=g) for a, g in zip((attack, Restarts(attack, 1)), source, strict=True)]
        assert same(*runs)
        assert torch.equal(source[0].get_state(), source[1].get_state())


def test_more_restarts_only_help_and_differ() -> None:
    """Runs are prefixes: the first of five are those of two, so success never falls. All are inside one budget."""
    problem = Problem(2, "classification", batch=32)
    attack = GaussianNoise(LOSS, eps=0.05, bounds=contract.BOUNDS)
    runs = [problem.run(Restarts(attack, n, survivors_only=False)) for n in (1, 2, 5, 20)]
    for less, more in itertools.pairwise(runs):
        assert bool((more.success >= less.success).all())
        assert bool(((more.loss >= less.loss) | (more.success > less.success)).all())
    assert int(runs[-1].success.sum()) > int(runs[0].success.sum())
    assert (runs[-1].adversarial - problem.image).abs().flatten(1).amax(1).max() <= 0.05 + 1e-6


def test_the_callers_generator_moves_on_by_the_same_whatever_succeeds() -> None:
    """Otherwise a batch's draws would depend on how the batch before it ended."""
    problem = Problem(2, "classification")
    for make in (
        lambda common: WorstOf([FGSM(LOSS, **common), PGD(LOSS, **common)]),
        lambda common: WorstOf([PGD(LOSS, **common), Square(LOSS, queries=5, **common)]),
        lambda common: Restarts(Square(LOSS, queries=5, **common), 3),
    ):
        states = []
        for everywhere in (False, True):
            source = torch.Generator().manual_seed(3)
            attack = make({**problem.common, "criterion": Constant(everywhere)})
            assert bool(problem.run(attack, generator=source).success.all()) == everywhere
            states.append(source.get_state())
        assert torch.equal(*states)
        assert not torch.equal(states[0], torch.Generator().manual_seed(3).get_state())


@tasks
@ranks
def test_transfer_to_itself_is_the_attack(rank: int, task: str) -> None:
    problem = Problem(rank, task)
    for attack in problem.members():
        alone, transferred = problem.run(attack), problem.run(Transfer(attack, problem.network))
        assert same(alone, transferred, "forward_passes")
        assert torch.equal(transferred.forward_passes, alone.forward_passes + 2)


@tasks
@ranks
def test_transfer_takes_the_image_of_one_and_the_verdict_of_the_other(rank: int, task: str) -> None:
    problem = Problem(rank, task)
    other = networks.tiny_network(rank, problem.case.dense, seed=5)
    attack = PGD(problem.loss, steps=3, **problem.common)
    counting = networks.Counting(problem.network)
    with contract.unchanged(other), contract.unchanged(problem.network):
        made, result = problem.run(attack, other), problem.run(Transfer(attack, other), counting)
    assert torch.equal(result.adversarial, made.adversarial)
    assert (counting.forwards, counting.backwards) == (2, 0)
    there = problem.run(Transfer(attack, other))
    assert same(result, there)
    judged = GaussianNoise(
        problem.loss, eps=0.0, criterion=problem.criterion
    )  # an attack that changes nothing tells what the network says
    clean = problem.run(judged)
    adversarial = judged(problem.network, made.adversarial, problem.target)
    assert torch.equal(result.clean_loss, clean.loss)
    assert torch.equal(result.loss, adversarial.loss)
    assert torch.equal(result.success, adversarial.success)
    assert not torch.equal(result.loss, made.loss)


@pytest.mark.parametrize("given", ["mask", "everything"])
def test_each_sample_keeps_its_own_mask_budget_and_step_when_others_leave(given: str) -> None:
    """The members alone are the oracle; the inferer, windows narrowed by the mask included, sees the same samples."""
    problem = Problem(3, "segmentation", batch=4)
    samples = torch.tensor([[0.3], [1e-4], [0.3], [0.15]])
    common: dict[str, Any] = {"eps": samples if given == "everything" else 0.3, "bounds": contract.BOUNDS}
    common["criterion"] = DiceBelow(0.75 if given == "mask" else 0.8)
    step = (samples / 2).tolist() if given == "everything" else None
    mask = torch.zeros(4, 1, 9, 7, 5)
    for i in range(4):
        mask[i, :, 2 * i : 2 * i + 3] = 1
    mask[2] = 1
    inferer = SlidingWindowInferer((6, 6, 5), sw_batch_size=2, overlap=0.5)
    arguments = {"mask": mask, "inferer": gradient_inferer(inferer)}
    members = [
        PGD(problem.loss, steps=2, step_size=step, **common),
        SMIA(problem.loss, steps=3, step_size=step, **common),
    ]
    alone = [problem.run(member, **arguments) for member in members]
    assert 0 < int(alone[0].success.sum()) < 4
    result = problem.run(WorstOf(members), **arguments)
    for i in range(4):
        best = alone[0] if alone[0].success[i] else max(alone, key=lambda r: (bool(r.success[i]), float(r.loss[i])))
        torch.testing.assert_close(result.adversarial[i], best.adversarial[i], rtol=0, atol=1e-6)


def test_an_inferer_that_may_hold_something_per_sample_gets_the_whole_batch() -> None:
    problem = Problem(2, "classification")
    shift, seen = torch.zeros(8, 1, 1, 1), []

    def inferer(inputs: torch.Tensor, network: Any) -> torch.Tensor:
        seen.append(len(inputs))
        return network(inputs + shift)

    members = problem.members()
    result = problem.run(WorstOf(members), inferer=inferer)
    assert set(seen) == {8}
    assert result.forward_passes.tolist() == [len(seen)] * 8
    assert torch.equal(result.success, problem.run(WorstOf(members)).success)


@tasks
def test_combinations_of_combinations(task: str) -> None:
    """Restarts in a WorstOf in a WorstOf, with one transferred: what each adds on its own is what it adds inside."""
    problem = Problem(2, task)
    noise, pgd = GaussianNoise(problem.loss, **problem.common), PGD(problem.loss, steps=3, **problem.common)
    inner = WorstOf([Restarts(noise, 3), Transfer(pgd, networks.tiny_network(2, problem.case.dense, seed=5).eval())])
    result = problem.run(WorstOf([noise, inner, pgd]))
    alone = [problem.run(attack) for attack in (noise, *inner.attacks, pgd)]
    assert torch.equal(result.success, torch.stack([member.success for member in alone]).any(0))
    for i in range(len(problem.image)):
        candidates = [member.adversarial[i] for member in alone]
        assert any(torch.allclose(result.adversarial[i], image, rtol=0, atol=1e-6) for image in candidates)


def test_the_first_members_loss_and_criterion_judge_all() -> None:
    """A member with another loss is judged again, for one pass; the criterion is the first's."""
    problem = Problem(2, "segmentation")
    other = nn.CrossEntropyLoss()
    common = {"eps": problem.eps, "bounds": contract.BOUNDS}
    strict = DiceBelow(0.9)
    first = FGSM(problem.loss, criterion=strict, **common)
    second = PGD(other, steps=3, **common)
    alone = problem.run(second)
    result = problem.run(WorstOf([first, second], survivors_only=False))
    one = problem.run(first)
    judged = GaussianNoise(problem.loss, eps=0.0, criterion=strict)(problem.network, alone.adversarial, problem.target)
    assert torch.equal(result.loss, torch.maximum(one.loss, judged.loss))
    assert torch.equal(result.success, one.success | judged.success)
    assert not torch.equal(judged.success, alone.success)
    assert torch.equal(result.forward_passes, one.forward_passes + alone.forward_passes + 1)
    assert torch.equal(result.clean_loss, one.clean_loss)


def test_targeted_members_lower_the_loss() -> None:
    network = LinearMargin((1, 4, 4))
    image, target = torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])
    with torch.no_grad():
        network.bias.fill_(0.3)
    members = [kind(LOSS, eps=0.05, targeted=True) for kind in (GaussianNoise, FGSM)]
    result = WorstOf(members, survivors_only=False)(network, image, target)
    alone = [member(network, image, target) for member in members]
    assert torch.equal(result.loss, torch.minimum(alone[0].loss, alone[1].loss))
    assert result.success.tolist() == [True, True]


def test_metadata_halves_and_modes_are_as_in_any_attack() -> None:
    problem = Problem(2, "classification")
    image = MetaTensor(
        problem.image, affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])), meta={"patient": "phantom"}
    )
    surrogate = networks.tiny_network(2, dense=False, seed=5)
    members = [*problem.members(), Transfer(problem.members()[2], surrogate)]
    with contract.unchanged(surrogate), torch.inference_mode():
        result = WorstOf(members)(problem.network, image, problem.target)
    assert type(result.adversarial) is MetaTensor
    assert result.adversarial.meta["patient"] == "phantom"
    half = problem.network.bfloat16(), problem.image.bfloat16()
    low = WorstOf(problem.members())(*half, problem.target)
    assert low.adversarial.dtype == torch.bfloat16


def test_a_schedule_of_the_budget_reaches_the_members() -> None:
    """`dataclasses.replace`, as the handlers do it, nested; the rest of the members stays."""
    loss, bounds = nn.CrossEntropyLoss(), (0.0, 1.0)
    inner = Restarts(PGD(loss, eps=0.1, steps=7, bounds=bounds), 2)
    worst = WorstOf([FGSM(loss, eps=0.1, bounds=bounds), inner, Transfer(BIM(loss, eps=0.1, bounds=bounds), abs)])
    again = dataclasses.replace(worst, eps=0.2)
    assert repr(again) == repr(worst).replace("eps=0.1", "eps=0.2")
    assert (again.eps, again.norm, again.bounds, again.loss_function) == (0.2, float("inf"), bounds, loss)
    assert again.attacks[1].attack.steps == 7
    assert dataclasses.replace(worst, norm=2).attacks[1].attack.norm == 2.0
    assert worst.eps == 0.1


def test_repr_and_json() -> None:
    names = {
        "CrossEntropyLoss": nn.CrossEntropyLoss,
        "FGSM": FGSM,
        "PGD": PGD,
        "WorstOf": WorstOf,
        "Restarts": Restarts,
    }
    text = (
        "WorstOf([FGSM(CrossEntropyLoss(), eps=0.1, norm=2.0), Restarts(PGD(CrossEntropyLoss(), eps=0.1, norm=2.0), 3, "
        "eps=0.1, norm=2.0)], eps=0.1, norm=2.0, survivors_only=False)"
    )
    assert repr(eval(text, names)) == text
    config = {
        "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
        "network": {"_target_": "torch.nn.Flatten"},
        "pgd": {"_target_": "monai_smia.attacks.PGD", "loss_function": "@loss", "eps": 0.1},
        "attack": {
            "_target_": "monai_smia.attacks.WorstOf",
            "attacks": [
                "@pgd",
                {"_target_": "monai_smia.attacks.Restarts", "attack": "@pgd", "n": 3},
                {"_target_": "monai_smia.attacks.Transfer", "attack": "@pgd", "surrogate": "@network"},
            ],
        },
    }
    built = ConfigParser(json.loads(json.dumps(config))).get_parsed_content("attack")
    assert repr(built) == (
        "WorstOf([PGD(CrossEntropyLoss(), eps=0.1), Restarts(PGD(CrossEntropyLoss(), eps=0.1), 3, eps=0.1), "
        "Transfer(PGD(CrossEntropyLoss(), eps=0.1), Flatten, eps=0.1)], eps=0.1)"
    )


def test_errors() -> None:
    attack = PGD(LOSS, eps=0.1)
    for value in ([], "PGD", attack, LOSS):
        with pytest.raises(ValueError, match="attacks: expected a sequence of at least one attack; got"):
            WorstOf(value)
    with pytest.raises(TypeError, match="attacks: expected an Attack; got CrossEntropyLoss"):
        WorstOf([attack, LOSS])
    with pytest.raises(
        ValueError, match="attacks: expected each once, as one attack gives the same twice; use Restarts"
    ):
        WorstOf([attack, attack])
    for name, value in {"eps": 0.2, "norm": 2, "bounds": (0.0, 1.0), "targeted": True}.items():
        with pytest.raises(ValueError, match=f"attacks: expected the same {name} in all of them; got"):
            WorstOf([attack, dataclasses.replace(attack, **{name: value})])
    with pytest.raises(TypeError, match="attack: expected an Attack; got CrossEntropyLoss"):
        Restarts(LOSS, 2)
    with pytest.raises(ValueError, match="n: expected a whole number >= 1; got 0"):
        Restarts(attack, 0)
    with pytest.raises(ValueError, match="n: 2 runs of an attack without randomness are all the same; expected 1"):
        Restarts(BIM(LOSS, eps=0.1), 2)
    with pytest.raises(TypeError, match="surrogate: expected a callable from image to prediction; got int"):
        Transfer(attack, 3)
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ValueError, match="target: expected class indices under 2"):
        WorstOf([attack])(wrong, torch.zeros(1, 1, 4, 4), torch.tensor([5]))


@ranks
def test_classification_dice_and_detectors_share_the_fill(rank: int) -> None:
    """Predictions of any nesting come back with the whole batch, gradients for those kept only."""
    from monai_smia.attacks.survivors import Survivors

    image = torch.rand(4, 1, *[3] * rank, requires_grad=True)
    keep = torch.tensor([False, True, False, True])

    def network(x: torch.Tensor) -> Any:
        return {"a": x * 2, "b": (x.sum(), [x.flatten(1)])}

    prediction = Survivors(None, keep)(image, network)
    assert torch.equal(prediction["a"][keep], image[keep] * 2)
    assert prediction["b"][0].ndim == 0
    (gradient,) = torch.autograd.grad(prediction["a"].sum(), image)
    assert torch.equal(gradient, 2.0 * keep.reshape(4, *[1] * (rank + 1)).expand_as(image))


def test_loss_of_dense_outputs_with_deep_supervision() -> None:
    """A tuple of predictions at two resolutions is filled as one tensor is."""
    problem = Problem(2, "segmentation")

    class Deep(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            output = problem.network(x)
            return output, output[..., ::2, ::2]

    def loss(prediction: Any, target: torch.Tensor) -> torch.Tensor:
        dice = DiceCELoss(to_onehot_y=True, softmax=True)
        return dice(prediction[0], target) + dice(prediction[1], target[..., ::2, ::2])

    members = [PGD(loss, steps=steps, **problem.common) for steps in (1, 3)]
    alone = [problem.run(member, Deep()) for member in members]
    result = problem.run(WorstOf(members), Deep())
    assert torch.equal(result.success, alone[0].success | alone[1].success)


def test_a_detectors_boxes_stay_with_their_images() -> None:
    """Targets as a list with a dictionary per image, predictions as nested heads: the members alone are the oracle."""
    heads, images, targets = copied(2)
    like = attack_on(heads)
    common: dict[str, Any] = {"bounds": (0.0, 1.0), "criterion": like.criterion, "eps": [[0.8], [0.02], [0.8], [0.25]]}
    members = [PGD(like.loss_function, steps=2, **common), Square(like.loss_function, queries=8, **common)]
    alone = [member(heads, images, targets) for member in members]
    result = WorstOf(members)(heads, images, targets)
    assert 0 < int(alone[0].success.sum()) < 4
    assert torch.equal(result.success, alone[0].success | alone[1].success)
    for i in range(4):
        left = alone[:1] if alone[0].success[i] else alone
        best = max(left, key=lambda r: (bool(r.success[i]), float(r.loss[i])))
        torch.testing.assert_close(result.adversarial[i], best.adversarial[i], rtol=0, atol=1e-5)
        assert int(result.forward_passes[i]) == sum(int(member.forward_passes[i]) for member in left)
