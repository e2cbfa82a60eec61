"""Clinical goals of a segmentation: voxel-wise networks, for which the volume after an attack is counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import BIM, PGD, WorstOf
from monai_smia.attacks.clinical import Erase, Insert, ShiftVolume
from monai_smia.attacks.regions import Ball
from monai_smia.attacks.spacing import as_spacing, spacing_of
from monai_smia.attacks.volumes import VolumeLoss, decided, soft_count

EPS, STEPS = 0.125, 8  # steps of exactly 1/64
SPACING = {2: (0.5, 3.0), 3: (0.5, 2.0, 3.0)}
SIZE = {2: 1.5, 3: 0.003}  # mm², ml
HEADS = ("softmax", "sigmoid", "none")


def voxelwise(head: str):
    """The structure is where a voxel is above 0.5, whatever the head."""

    def network(x: torch.Tensor) -> torch.Tensor:
        logit = 4 * (x - 0.5)
        if head == "softmax":  # a third class that is never the likeliest
            return torch.cat((0 * logit, logit, -9 + 0 * logit), 1)
        return logit if head == "sigmoid" else logit.sigmoid()

    return network


def structure_of(head: str) -> int:
    return 1 if head == "softmax" else 0


def loss_of(head: str) -> nn.Module:
    return {"softmax": nn.CrossEntropyLoss(), "sigmoid": nn.BCEWithLogitsLoss(), "none": nn.BCELoss()}[head]


def scene(rank: int, batch: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand(batch, 1, *(9, 7, 5)[:rank], generator=torch.Generator().manual_seed(seed))
    return image, (image > 0.5).long()


def counts(image: torch.Tensor, shift: float) -> torch.Tensor:
    return ((image + shift) > 0.5).flatten(1).sum(1)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("head", HEADS)
def test_erase_leaves_the_voxels_beyond_the_budget(head: str, rank: int) -> None:
    """What is left is what lies more than eps above the threshold; success where that is within the tolerance."""
    image, label = scene(rank)
    left = counts(image, -EPS)
    tolerance = int(left.sort().values[1]) * SIZE[rank]  # the third sample has more left
    goal = Erase(structure_of(head), spacing=SPACING[rank], tolerance=tolerance, activation=head)
    attack = BIM(goal.loss(loss_of(head)), eps=EPS, steps=STEPS, targeted=True, criterion=goal)
    network = voxelwise(head)
    result = attack(network, image, goal.target(label))
    torch.testing.assert_close(goal.measure(network(image)), counts(image, 0) * SIZE[rank])
    torch.testing.assert_close(goal.measure(network(result.adversarial)), left * SIZE[rank])
    assert torch.equal(result.success, left <= left.sort().values[1])
    assert result.success.any() != result.success.all()
    assert not result.clean_success.any()
    assert goal.unit == {2: "mm2", 3: "ml"}[rank]


def test_erase_one_of_two_lesions() -> None:
    """Only the lesion in the ball is erased from the target, and only that is measured."""
    label = torch.zeros(1, 1, 3, 9, dtype=torch.long)
    label[..., 0, :2], label[..., 2, 6:] = 1, 1
    ball = Ball(at=(2, 7), radius_mm=2.0, spacing=(1.0, 1.0))
    goal = Erase(1, spacing=(1.0, 1.0), within=ball)
    logits = F.one_hot(label[:, 0], 2).movedim(-1, 1).float()
    target = goal.target(label)
    assert target[..., 0, :2].eq(1).all()
    assert int(target.sum()) == 2
    assert goal.measure(logits).tolist() == [3.0]
    attack = PGD(goal.loss(nn.CrossEntropyLoss()), eps=2.0, targeted=True, criterion=goal)
    result = attack(lambda x: torch.cat((0 * x, x - 0.5), 1), label.float(), target, mask=ball(label))
    assert result.success.tolist() == [True]
    assert torch.equal(result.adversarial[..., 0, :2], label.float()[..., 0, :2])


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("head", HEADS)
def test_insert_fills_the_voxels_within_the_budget(head: str, rank: int) -> None:
    image, label = scene(rank, seed=3)
    ball = Ball(at=(4, 3, 2)[:rank], radius_mm=6.0, spacing=SPACING[rank])
    where = ball(image)
    share = (((image + EPS) > 0.5) & where).flatten(1).sum(1) / where.flatten(1).sum(1)
    fraction = float(share.sort().values[1])
    goal = Insert(structure_of(head), region=ball, fraction=fraction, activation=head)
    network = voxelwise(head)
    target = goal.target(label, network(image))
    assert torch.equal(target.bool(), label.bool() | where)
    attack = BIM(goal.loss(loss_of(head)), eps=EPS, steps=STEPS, targeted=True, criterion=goal)
    result = attack(network, image, target, mask=where)
    torch.testing.assert_close(goal.measure(network(result.adversarial)), share)
    assert torch.equal(result.success, share >= fraction)
    assert result.success.any() != result.success.all()
    assert torch.equal(Insert(structure_of(head), region=where, activation=head).target(label), target)


def test_a_ball_is_measured_in_millimetres() -> None:
    """By hand: 4 voxels each way along an axis of 0.5 mm, none along one of 3 mm; a centre between two voxels."""
    ball = Ball(at=[(5, 2), (5.0, 2.5)], radius_mm=2.0, spacing=(0.5, 3.0))
    inside = ball(torch.zeros(2, 4, 11, 5))
    assert inside.shape == (2, 1, 11, 5)
    assert inside[0, 0].nonzero().tolist() == [[i, 2] for i in range(1, 10)]
    assert inside[1, 0].nonzero().tolist() == [[i, j] for i in range(3, 8) for j in (2, 3)]  # sqrt(2² - 1.5²) = 1.32
    with pytest.raises(ValueError, match="no voxel of sample 1"):
        Ball(at=[(5, 2), (50, 2)], radius_mm=2.0, spacing=(0.5, 3.0))(torch.zeros(2, 1, 11, 5))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("head", HEADS)
def test_shift_stops_at_the_first_step_that_is_enough(head: str, rank: int, sign: int) -> None:
    """All voxels move by 1/64 a step until the volume has changed enough; one more voxel than there are fails."""
    image, label = scene(rank)
    reach = (counts(image, sign * EPS) - counts(image, 0)).abs()
    network = voxelwise(head)
    for voxels in (int(reach.min()) // 2 + 1, int(reach.min()) + 1):
        by = sign * voxels * SIZE[rank]
        goal = ShiftVolume(structure_of(head), by=by, spacing=SPACING[rank], activation=head)
        target = goal.target(label)
        assert torch.equal(target, goal.target(torch.zeros_like(label), network(image)))  # before the label
        assert target[:, 0].tolist() == (counts(image, 0) + sign * voxels).tolist()
        attack = BIM(goal.loss(), eps=EPS, steps=STEPS, step_size=EPS / STEPS, targeted=True, criterion=goal)
        result = attack(network, image, target)
        course = torch.stack([counts(image, sign * EPS * t / STEPS) for t in range(STEPS + 1)])
        enough = (course - course[0]) * sign >= voxels
        stop = torch.where(enough.any(0), enough.long().argmax(0), STEPS)
        expected = course.gather(0, stop[None])[0]
        torch.testing.assert_close(goal.measure(network(result.adversarial)), expected * SIZE[rank])
        assert torch.equal(result.success, reach >= voxels)
        missing = (voxels - (expected - course[0]) * sign).clamp_min(0) * SIZE[rank]
        torch.testing.assert_close(result.loss, missing.square())
        torch.testing.assert_close(result.clean_loss, torch.full((3,), by * by))
    assert not result.success.all()


def test_shift_of_samples_with_their_own_spacing() -> None:
    """The same 12 mm³ are four voxels of one sample and one of the other, alone and in a combination of attacks."""
    spacing = ((0.5, 2.0, 3.0), (2.0, 2.0, 3.0))
    affine = torch.stack([torch.diag(torch.tensor([*row, 1.0])) for row in spacing])
    values = torch.linspace(0.45, 0.6, 60).reshape(1, 1, 5, 4, 3).repeat(2, 1, 1, 1, 1)
    image = MetaTensor(values, affine=affine)
    assert spacing_of(image).rows == spacing
    goal = ShiftVolume(1, by=-0.012, spacing=image)
    network = voxelwise("softmax")
    above = int((values[0] > 0.5).sum())
    target = goal.target((values > 0.5).long())
    torch.testing.assert_close(target, torch.tensor([[above - 4, 0.003], [above - 1, 0.012]]))
    torch.testing.assert_close(goal.measure(network(values)), above * torch.tensor([0.003, 0.012]))
    attacks = [
        BIM(goal.loss(), eps=0.004, steps=1, step_size=0.004, targeted=True, criterion=goal),
        BIM(goal.loss(), eps=0.004, steps=2, step_size=0.002, targeted=True, criterion=goal),
    ]
    assert 1 <= above - int((values[0] - 0.004 > 0.5).sum()) < 4
    assert attacks[0](network, image, target).success.tolist() == [False, True]
    assert WorstOf(attacks)(network, image, target).success.tolist() == [False, True]


def test_a_rotated_affine_and_a_plain_tensor() -> None:
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]) @ torch.diag(
        torch.tensor([0.5, 2.0, 3.0])
    )
    affine = torch.eye(4)
    affine[:3, :3] = turn
    affine[:3, 3] = 7.0
    assert as_spacing(MetaTensor(torch.zeros(1, 1, 2, 2, 2), affine=affine)).rows == ((0.5, 2.0, 3.0),)
    assert spacing_of(torch.zeros(1, 1, 2, 2)) is None


def test_volumes_that_are_exactly_on_a_limit_count() -> None:
    """Millilitres that are so many voxels, whatever their rounding."""
    logits = torch.zeros(1, 2, 6, 6, 6)
    for voxels in range(1, 60):
        logits[0, 1].view(-1)[:voxels] = 1.0
        for size in (0.001, 0.003, 0.0007):
            spacing = (1.0, 1.0, size * 1000)
            assert bool(Erase(1, spacing=spacing, tolerance=voxels * size)(logits, None))
            assert not bool(Erase(1, spacing=spacing, tolerance=(voxels - 0.01) * size)(logits, None))
            goal = ShiftVolume(1, by=voxels * size, spacing=spacing)
            assert bool(goal(logits, goal.target(torch.zeros(1, 1, 6, 6, 6))))


@pytest.mark.parametrize("head", HEADS)
def test_soft_count_is_the_sum_of_probabilities(head: str) -> None:
    image, _ = scene(2)
    prediction = voxelwise(head)(image)
    k = structure_of(head)
    p = {"softmax": prediction.softmax(1), "sigmoid": prediction.sigmoid(), "none": prediction}[head][:, k]
    torch.testing.assert_close(soft_count(prediction, k, head), p.flatten(1).sum(1))
    assert torch.equal(decided(prediction, k, head), image[:, 0] > 0.5)
    several = torch.cat((1 - p[:, None], p[:, None]), 1)  # probabilities that exclude each other
    torch.testing.assert_close(soft_count(several, 1, "none"), p.flatten(1).sum(1))


def test_the_gradient_is_that_of_the_soft_volume_and_survives_certainty() -> None:
    """2 (n - n*) v² p (1 - p), n the decided count; at logits of 30 a sigmoid's own slope is 0 in single precision."""
    logits = torch.tensor([[[[1.0, 2.0, -1.0]]]], requires_grad=True)
    target = torch.tensor([[1.0, 0.5]])
    p = logits.detach().sigmoid()
    for soft, count in ((False, 2.0), (True, float(p.sum()))):
        value = VolumeLoss(0, grow=False, activation="sigmoid", soft=soft)(logits, target)
        assert value.item() == pytest.approx(((count - 1) * 0.5) ** 2)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        torch.testing.assert_close(gradient, 2 * (count - 1) * 0.25 * p * (1 - p))
    for head, sure in (("sigmoid", torch.full((1, 1, 1, 4), 30.0)), ("softmax", torch.zeros(1, 2, 1, 4))):
        sure[:, -1] = 30.0
        sure.requires_grad_()
        k = structure_of(head)
        value = VolumeLoss(k, grow=False, activation=head)(sure, torch.tensor([[1.0, 1.0]]))
        assert (torch.autograd.grad(value.sum(), sure)[0][:, k] > 0).all()
        plain = sure.sigmoid() if head == "sigmoid" else sure.softmax(1)
        assert (torch.autograd.grad(plain[:, k].sum(), sure)[0][:, k] == 0).all()


def test_targets_in_every_layout_of_labels() -> None:
    index = torch.tensor([[[[0, 1, 2, 1]]]])
    one_hot = F.one_hot(index[:, 0], 3).movedim(-1, 1)
    channels = torch.tensor([[[[1, 1, 0, 0]], [[0, 1, 1, 0]]]]).bool()  # two overlapping structures
    region = torch.tensor([[[[0, 1, 1, 0]]]])
    erase = Erase(1, spacing=(1, 1), into=2)
    insert = Insert(1, region=region)
    erased, inserted = torch.tensor([[[[0, 2, 2, 2]]]]), torch.tensor([[[[0, 1, 1, 1]]]])
    for goal, expected in ((erase, erased), (insert, inserted)):
        assert torch.equal(goal.target(index), expected)
        assert torch.equal(goal.target(MetaTensor(index)), expected)
        assert torch.equal(goal.target(index[:, 0].float()), expected[:, 0].float())
        assert torch.equal(goal.target(one_hot), F.one_hot(expected[:, 0], 3).movedim(-1, 1))
        assert torch.equal(goal.target(0 * index, one_hot.float()), expected)  # from the prediction
    erase = Erase(1, spacing=(1, 1), within=region, activation="sigmoid")
    insert = Insert(1, region=region, activation="sigmoid")
    assert erase.target(channels).int().tolist() == [[[[1, 1, 0, 0]], [[0, 0, 0, 0]]]]
    assert insert.target(channels & False).int().tolist() == [[[[0, 0, 0, 0]], [[0, 1, 1, 0]]]]
    assert erase.target(index).tolist() == [[[[0, 0, 2, 1]]]]  # indices, for a head of several sigmoid channels
    assert insert.target(channels).dtype == torch.bool


def test_a_multilabel_segmenter_is_attacked_channel_by_channel() -> None:
    """The second channel is the complement of the first: what one gains the other loses."""
    image, label = scene(2)

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x - 0.5, 0.5 - x), 1)

    goal = ShiftVolume(1, by=3 * SIZE[2], spacing=SPACING[2], activation="sigmoid")
    attack = PGD(goal.loss(), eps=EPS, targeted=True, criterion=goal)
    result = attack(network, image, goal.target(torch.cat((label, 1 - label), 1)))
    assert result.success.all()
    grown = (goal.measure(network(result.adversarial)) - goal.measure(network(image))) / SIZE[2]
    assert torch.equal(grown, (counts(image, 0) - counts(result.adversarial, 0)).float())


def test_an_ordinary_loss_of_monai_reaches_the_empty_mask() -> None:
    image, label = scene(3, batch=2)
    goal = Erase(1, spacing=SPACING[3])
    loss = goal.loss(DiceCELoss(to_onehot_y=True, softmax=True))
    result = PGD(loss, eps=0.6, targeted=True, criterion=goal)(voxelwise("softmax"), image, goal.target(label))
    assert result.success.all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Erase(1, spacing=(1.0, 0.0)), "spacing"),
        (lambda: Erase(1, spacing=1.0), "spacing"),
        (lambda: Erase(1, spacing=((1.0, 1.0), (1.0, 1.0, 1.0))), "spacing"),
        (lambda: Erase(-1, spacing=(1.0, 1.0)), "structure"),
        (lambda: Erase(1, spacing=(1.0, 1.0), into=1), "into"),
        (lambda: Erase(1, spacing=(1.0, 1.0), tolerance=-1.0), "tolerance: expected ml or mm2"),
        (lambda: Insert(1, region=torch.ones(1, 1, 2, 2), fraction=0.0), "fraction"),
        (lambda: Insert(1, region=(1, 2)), "region"),
        (lambda: Ball(at=(1, 2, 3), radius_mm=1.0, spacing=(1.0, 1.0)), "at"),
        (lambda: Ball(at=(1, 2), radius_mm=0.0, spacing=(1.0, 1.0)), "radius_mm"),
        (lambda: ShiftVolume(1, by=0.0, spacing=(1.0, 1.0, 1.0)), "by: expected ml or mm2"),
        (lambda: ShiftVolume(1, by=math.nan, spacing=(1.0, 1.0, 1.0)), "by"),
        (lambda: Erase(1, spacing=(1.0, 1.0)).loss(), "loss_function"),
    ],
)
def test_arguments_are_refused_by_name(make, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_data_that_does_not_fit_is_refused_by_name() -> None:
    logits = torch.zeros(2, 2, 3, 3)
    goal = Erase(1, spacing=(1.0, 1.0))
    for call, message in (
        (lambda: goal.measure(torch.zeros(2, 2)), "prediction"),
        (lambda: goal.measure(torch.zeros(2, 2, 3, 3, 3)), "spacing"),
        (lambda: Erase(1, spacing=[(1.0, 1.0)] * 3).measure(logits), "spacing"),
        (lambda: Erase(2, spacing=(1.0, 1.0)).measure(logits), "structure"),
        (lambda: goal.measure(logits[:, :1]), "structure"),
        (lambda: goal.target(torch.zeros(2, 3)), "label"),
        (lambda: Insert(1, region=torch.ones(1, 1, 4, 3)).measure(logits), "region"),
        (lambda: Insert(1, region=torch.zeros(1, 1, 3, 3)).measure(logits), "region"),
        (lambda: ShiftVolume(1, by=-1.0, spacing=(1.0, 1.0)).target(torch.zeros(2, 1, 3, 3)), "by: sample 0"),
        (lambda: ShiftVolume(1, by=99.0, spacing=(1.0, 1.0)).target(torch.zeros(2, 1, 3, 3)), "by: sample 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
