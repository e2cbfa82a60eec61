"""Towards: the ordinary label in, a clinical goal out; geometry, heads, windows and configurations."""

from __future__ import annotations

import json
import math
from typing import Any

import contract
import networks
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from torch import nn

import monai_smia.attacks
from monai_smia.attacks import (
    BIM,
    CW,
    DAG,
    DDN,
    FGSM,
    FMN,
    PGD,
    SMIA,
    Ball,
    CosPGD,
    CrossGrade,
    DeepFool,
    EoT,
    Erase,
    Insert,
    Restarts,
    SegPGD,
    ShiftVolume,
    Towards,
    Transfer,
    WorstOf,
)
from monai_smia.attacks.spacing import Spacing, spacing_of
from monai_smia.inferers import GradientSlidingWindowInferer

BCE = nn.BCEWithLogitsLoss()
OTHERWISE = {
    "verdict_can_be_recomputed": "loss and success are the goal's; recomputed below",
    "configuration": "its arguments are objects; its own JSON and repr are tested below",
}


@pytest.mark.parametrize("clause", [name for name in contract.CHECKS if name not in OTHERWISE])
@pytest.mark.parametrize("rank", [2, 3])
def test_contract(rank: int, clause: str) -> None:
    """All of the contract that does not speak of the attack's own loss; segmentation, as the goal is one."""

    def make(loss, **arguments):
        goal = Erase(1, spacing=(1.0, 2.0, 3.0)[:rank])
        return Towards(BIM(loss, steps=3, **arguments), goal)

    contract.CHECKS[clause](contract.Case(make, rank, "segmentation"))


def values(rank: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 1, *(9, 7, 5)[:rank], generator=torch.Generator().manual_seed(4))


def voxelwise(x: torch.Tensor) -> torch.Tensor:
    """A voxel is of the structure above 0.5."""
    return 4 * (x - 0.5)


def oblique(angle: float, sizes: tuple[float, ...], shear: float = 0.0) -> torch.Tensor:
    turn = torch.eye(4, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    slant = torch.eye(4, dtype=torch.float64)
    slant[1, 2] = shear
    return turn @ slant @ torch.diag(torch.tensor([*sizes, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("shear", [0.0, 0.4])
def test_millilitres_of_an_oblique_and_of_a_slanted_grid(shear: float) -> None:
    """A voxel is as large as the determinant of its affine says, whatever the orientation and the gantry's tilt."""
    affine = torch.stack([oblique(0.3, (-0.5, 2.0, 3.0), shear), oblique(1.2, (1.0, -1.5, 2.0), shear)])
    image = MetaTensor(values(3), affine=affine)
    volumes = [abs(float(torch.linalg.det(one[:3, :3]))) for one in affine]
    assert spacing_of(image).volumes == pytest.approx(volumes)
    lengths = affine[:, :3, :3].square().sum(1).sqrt()
    torch.testing.assert_close(torch.tensor(spacing_of(image).rows, dtype=torch.float64), lengths)
    goal = ShiftVolume(0, by=0.006)
    result = Towards(BIM(BCE, eps=0.1, steps=8), goal)(voxelwise, image, (image > 0.5).float())
    counts = [(x.as_tensor() > 0.5).flatten(1).sum(1) for x in (image, result.adversarial)]
    for measured, count in zip((result.clean_measured, result.measured), counts, strict=True):
        torch.testing.assert_close(measured, count * torch.tensor(volumes) / 1000)
    assert torch.equal(result.success, result.measured - result.clean_measured >= 0.006 - 1e-7)
    assert result.unit == "ml"
    assert type(result.adversarial) is MetaTensor


def test_a_slice_with_an_affine_of_a_volume_has_an_area() -> None:
    image = MetaTensor(torch.zeros(1, 1, 4, 4), affine=oblique(0.7, (0.5, 3.0, 9.0)))
    assert spacing_of(image).volumes == pytest.approx((1.5,))
    assert spacing_of(image).rows[0] == pytest.approx((0.5, 3.0))


@pytest.mark.parametrize("rank", [2, 3])
def test_it_is_the_targeted_attack_written_by_hand(rank: int) -> None:
    """Bit for bit, with the target made of the clean prediction; two passes more, counted by the network itself."""
    network, image = networks.tiny_network(rank, True), values(rank)
    label = torch.zeros_like(image).long()
    spacing = (0.5, 2.0, 3.0)[:rank]
    network.eval()
    clean = network(image).detach()
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    region = Ball(at=(4, 3, 2)[:rank], radius_mm=4.0)
    for goal, own in (
        (Erase(1, spacing=spacing), loss),
        (Insert(2, region=region.located(Spacing((spacing,), (math.prod(spacing),)))), loss),
        (ShiftVolume(1, by=-2 * math.prod(spacing) / (1000 if rank == 3 else 1), spacing=spacing), loss),
    ):
        plain = BIM(goal.loss(own), eps=0.2, steps=4, targeted=True, criterion=goal)
        expected = plain(network, image, goal.target(label, clean))
        counted = networks.Counting(network)
        found = Towards(BIM(own, eps=0.2, steps=4), goal)(counted, image, label)
        for name, value in vars(expected).items():
            if name != "forward_passes":
                assert torch.equal(getattr(found, name), value), name
        assert found.forward_passes.tolist() == [counted.forwards] * 2 == (expected.forward_passes + 2).tolist()
        torch.testing.assert_close(found.clean_measured, goal.measure(clean))
        torch.testing.assert_close(found.measured, goal.measure(network(found.adversarial)))
        assert not any(value.requires_grad for value in vars(found).values() if isinstance(value, torch.Tensor))


def test_the_spacing_is_the_images_and_the_head_the_losss() -> None:
    """Two channels, each a decision of its own, which the shapes alone would take for a softmax."""
    image = MetaTensor(values(2), affine=torch.diag(torch.tensor([0.5, 3.0, 1.0, 1.0])))

    def both(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((voxelwise(x), voxelwise(x) + 9), 1)

    result = Towards(FGSM(BCE, eps=0.0), ShiftVolume(0, by=1.5))(both, image, torch.zeros(2, 2, 9, 7))
    count = (image.as_tensor() > 0.5).flatten(1).sum(1)  # a softmax would decide for the second channel everywhere
    torch.testing.assert_close(result.clean_measured, count * 1.5)
    with pytest.raises(ValueError, match="spacing: expected millimetres per voxel; got None"):
        Towards(FGSM(BCE, eps=0.0), ShiftVolume(0, by=1.5))(both, image.as_tensor(), torch.zeros(2, 2, 9, 7))
    ball = Ball(at=(4, 3), radius_mm=3.0)
    assert int(ball(image)[0].sum()) == 9 + 2  # all of a column of 0.5 mm, one voxel to each side at 3 mm
    result = Towards(FGSM(BCE, eps=1.0), Insert(0, region=ball, fraction=1.0))(
        voxelwise, image, image.as_tensor() > 0.5
    )
    assert result.success.all()


def test_only_the_mask_changes_and_the_lesion_in_it_goes() -> None:
    image = values(2)
    mask = torch.zeros(1, 1, 9, 7, dtype=torch.bool)
    mask[..., :4, :] = True
    goal = Erase(0, spacing=(1.0, 1.0), within=mask)
    result = Towards(BIM(BCE, eps=0.6), goal)(voxelwise, image, (image > 0.5).long(), mask=mask)
    assert result.success.all()
    assert torch.equal(result.adversarial[~mask.expand_as(image)], image[~mask.expand_as(image)])
    torch.testing.assert_close(result.clean_measured, ((image > 0.5) & mask).flatten(1).sum(1).float())


@pytest.mark.parametrize("rank", [2, 3])
def test_through_a_sliding_window_it_is_the_whole_image(rank: int) -> None:
    """A network of 1x1 convolutions sees the same through windows of any size."""
    image = values(rank).double()
    goal = ShiftVolume(0, by=0.02 if rank == 3 else 9.0, spacing=(1.0, 2.0, 3.0)[:rank])
    attack = Towards(BIM(BCE, eps=0.1, steps=5), goal)
    window = GradientSlidingWindowInferer(roi_size=(4, 4, 4)[:rank], sw_batch_size=2, overlap=0.25, progress=False)
    expected = attack(voxelwise, image, image > 0.5)
    found = attack(voxelwise, image, image > 0.5, inferer=window)
    torch.testing.assert_close(found.adversarial, expected.adversarial)
    torch.testing.assert_close(found.measured, expected.measured)
    assert torch.equal(found.success, expected.success)


def test_combinations_inside_it() -> None:
    """The worst of two attacks and of restarts, and a surrogate's: each judged by the goal, none by the label."""
    image, label = values(2, 3), None
    label = image > 0.5
    goal = ShiftVolume(0, by=-9.0, spacing=(1.0, 1.0))
    weak, strong = BIM(BCE, eps=0.2, steps=1, step_size=0.01), BIM(BCE, eps=0.2, steps=5)
    both = Towards(WorstOf([weak, strong]), goal)(voxelwise, image, label)
    alone = Towards(strong, goal)(voxelwise, image, label)
    assert alone.success.all()
    assert torch.equal(both.success, alone.success)
    torch.testing.assert_close(both.adversarial, alone.adversarial)
    restarts = Towards(Restarts(PGD(BCE, eps=0.2, random_start=True), 2), goal)(voxelwise, image, label)
    assert restarts.success.all()
    moved = Towards(Transfer(strong, voxelwise), goal)(lambda x: 2 * voxelwise(x), image, label)
    assert moved.success.all()
    averaged = Towards(EoT(strong, samples=2), goal)(voxelwise, image, label)
    assert torch.equal(averaged.adversarial, alone.adversarial)
    with pytest.raises(TypeError, match="makes its own target; put it around"):
        WorstOf([Towards(strong, goal), strong])
    with pytest.raises(TypeError, match="goal: expected a ClinicalGoal"):
        Towards(strong, BCE)
    with pytest.raises(ValueError, match="by: sample 0 holds"):
        Towards(strong, ShiftVolume(0, by=-999.0, spacing=(1.0, 1.0)))(voxelwise, image, label)


def test_samples_do_not_know_each_other() -> None:
    network, image = networks.tiny_network(3, True).double(), values(3, 3).double()
    attack = Towards(SMIA(DiceCELoss(to_onehot_y=True, softmax=True), eps=0.1, steps=3), Erase(1, spacing=(1, 1, 1)))
    label = torch.zeros_like(image)
    together, alone = attack(network, image, label), attack(network, image[1:2], label[1:2])
    torch.testing.assert_close(alone.adversarial[0], together.adversarial[1], rtol=0, atol=1e-12)
    assert alone.measured[0] == together.measured[1]


def test_a_grader_is_turned_by_the_ordinary_label() -> None:
    """The chest X-ray's one logit: the diagnosis crosses its threshold where the budget allows."""
    image = torch.tensor([0.52, 0.7]).reshape(2, 1, 1, 1).expand(2, 1, 3, 4).contiguous()
    goal = CrossGrade(1, direction="down", reading="count")
    result = Towards(BIM(BCE, eps=0.1), goal)(lambda x: x.flatten(1).mean(1, True) - 0.5, image, torch.ones(2, 1))
    assert result.success.tolist() == [True, False]
    assert (result.clean_measured.tolist(), result.measured.tolist(), result.unit) == ([1, 1], [0, 1], "grade")


@pytest.mark.parametrize(
    "goal",
    [
        Erase(1, tolerance=0.5, within=Ball(at=(1, 2), radius_mm=3.0, spacing=(1.0, 2.0))),
        Insert(2, region=Ball(at=((1, 2), (3, 4)), radius_mm=3.0), fraction=0.25, activation="sigmoid"),
        ShiftVolume(1, by=-0.3, spacing=[(1.0, 2.0), (3.0, 4.0)], soft=True),
        CrossGrade(1.5, direction="up", reading="expected", probabilities=True),
    ],
    ids=lambda goal: type(goal).__name__,
)
def test_repr_rebuilds_a_goal_and_its_attack(goal) -> None:
    names = {**vars(monai_smia.attacks), "CrossEntropyLoss": nn.CrossEntropyLoss}
    again = eval(repr(goal), names)
    assert type(again) is type(goal)
    assert repr(again) == repr(goal)
    assert vars(again) == vars(goal)
    attack = Towards(PGD(nn.CrossEntropyLoss(), eps=0.1, norm=2), goal)
    assert repr(eval(repr(attack), names)) == repr(attack)


def test_built_from_a_configuration() -> None:
    config = {
        "loss": {"_target_": "torch.nn.BCEWithLogitsLoss"},
        "ball": {"_target_": "monai_smia.attacks.Ball", "at": [4, 3], "radius_mm": 2.5, "spacing": [1, 1]},
        "attack": {
            "_target_": "monai_smia.attacks.Towards",
            "attack": {"_target_": "monai_smia.attacks.PGD", "loss_function": "@loss", "eps": 0.6, "bounds": [0, 1]},
            "goal": {"_target_": "monai_smia.attacks.Insert", "structure": 0, "region": "@ball", "fraction": 0.9},
        },
        "seen_through": {
            "_target_": "monai_smia.attacks.EoT",
            "attack": {"_target_": "monai_smia.attacks.PGD", "loss_function": "@loss", "eps": 0.6},
            "transform": {"_target_": "monai_smia.attacks.RandomResize", "rate": 0.8, "probability": 1.0, "fill": 0.0},
            "samples": 3,
        },
        "rounding": {"_target_": "monai_smia.attacks.straight_through_round", "step": 0.5},
    }
    parser = ConfigParser(json.loads(json.dumps(config)))
    attack = parser.get_parsed_content("attack")
    assert (attack.eps, attack.bounds, attack.targeted) == (0.6, (0.0, 1.0), True)
    image = values(2)
    assert attack(voxelwise, image, image > 0.5).success.all()
    through = parser.get_parsed_content("seen_through")
    names = {**vars(monai_smia.attacks), "BCEWithLogitsLoss": nn.BCEWithLogitsLoss}
    assert repr(eval(repr(through), names)) == repr(through)
    assert parser.get_parsed_content("rounding")(torch.tensor([0.6])).tolist() == [0.5]


def test_attacks_that_have_no_target_are_refused() -> None:
    with pytest.raises(TypeError, match="attack"):
        Towards(BCE, Erase(0))


@pytest.mark.parametrize("kind", [CW, DAG, DDN, FMN, CosPGD, DeepFool, SegPGD])
def test_attacks_on_labels_are_refused_towards_a_volume(kind: Any) -> None:
    arguments: dict[str, Any] = {"bounds": (0.0, 1.0)} if kind is CW else {}
    if kind in (CosPGD, DAG, SegPGD):
        arguments["eps"] = 0.2
    attack = Towards(kind(BCE, **arguments), ShiftVolume(0, by=-2.0, spacing=(1.0, 1.0)))
    image = torch.tensor([[[[0.6, 0.65, 0.9, 0.1]]]])
    with pytest.raises(ValueError, match=rf"attack: expected one that follows its loss .*{kind.__name__} reads labels"):
        attack(lambda x: x - 0.5, image, (image > 0.5).float())
