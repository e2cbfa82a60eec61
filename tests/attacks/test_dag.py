"""`DAG`: the method written out, voxels that are wrong already, a linear network, and the contract."""

from __future__ import annotations

from typing import Any

import contract
import networks
import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss
from oracles import VoxelMargin
from torch import nn

import monai_smia.attacks
from monai_smia.attacks import Attack
from monai_smia.attacks.dag import DAG

TASKS = ("classification", "multilabel", "segmentation")


class CorrectCase(contract.Case):
    """Labels that the network gives itself: a sample that is wrong from the start is nothing to DAG."""

    def target(self, seed: int = 2) -> torch.Tensor:
        if self.dense:
            return super().target(seed)
        with torch.no_grad():
            output = self.network().eval()(self.image(seed - 1))
        return output.argmax(1) if self.task == "classification" else (output > 0).float()


def make(**fixed: Any) -> contract.Make:
    return lambda loss, **arguments: DAG(loss, **{"steps": 3, **fixed, **arguments})


ROWS = {"DAG": make(), "DAG-likeliest": make(wrong_class="likeliest")}
CASES = [("DAG", rank, task) for rank in (2, 3) for task in TASKS]
CASES += [("DAG-likeliest", 2, "segmentation"), ("DAG-likeliest", 3, "classification")]


@pytest.mark.parametrize("clause", contract.CHECKS)
@pytest.mark.parametrize(("name", "rank", "task"), CASES)
def test_contract(name: str, rank: int, task: str, clause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monai_smia.attacks, "DAG", DAG, raising=False)
    batch = 8 if clause == "randomness" else 3  # three draws of two classes may agree by chance
    contract.CHECKS[clause](CorrectCase(ROWS[name], rank, task, batch=batch))


def scene(rank: int, seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 1, *(9, 7, 5)[:rank], generator=source, dtype=torch.float64)
    label = torch.randint(3, (2, 1, *(9, 7, 5)[:rank]), generator=source)
    return networks.tiny_network(rank, dense=True).eval().double(), image, label


@pytest.mark.parametrize("rank", [2, 3])
def test_equals_the_method_written_out(rank: int) -> None:
    """Logits of one sample at a time, loops over classes, no log-probabilities."""
    network, image, label = scene(rank)
    eps, gamma, steps = 0.1, 0.04, 4
    wrong = (label[:, 0] + torch.randint(1, 3, label.shape, generator=torch.Generator().manual_seed(3))[:, 0]) % 3
    expected = []
    for x0, truth, other in zip(image, label[:, 0], wrong, strict=True):
        x = x0
        for _ in range(steps):
            leaf = x.clone().requires_grad_()
            logits = network(leaf[None])[0]
            correct = logits.argmax(0) == truth
            value = sum((logits[k] * ((other == k).double() - (truth == k).double()))[correct].sum() for k in range(3))
            (r,) = torch.autograd.grad(value, leaf)
            x = (x0 + (x + gamma * r / r.abs().max() - x0).clamp(-eps, eps)).clamp(0, 1)
        expected.append(x)
    attack = DAG(DiceCELoss(to_onehot_y=True, softmax=True), eps=eps, bounds=(0, 1), steps=steps, step_size=gamma)
    result = attack(network, image, label, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(result.adversarial, torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_linear_network_flips_what_it_must_and_nothing_else_moves(rank: int) -> None:
    """Every voxel a linear classifier: it flips at ``|margin| / ||w||_1`` if at all, and is then left alone."""
    network = VoxelMargin(channels=2, rank=rank).double()
    source = torch.Generator().manual_seed(1)
    image = torch.randn(3, 2, *(8, 7, 6)[:rank], generator=source, dtype=torch.float64)
    margin = network.margin(image).detach()
    label = torch.where(torch.rand(margin.shape, generator=source) < 0.3, margin < 0, margin > 0).long().unsqueeze(1)
    right = (margin > 0) == (label[:, 0] == 1)
    weight = network.weight.detach()
    # the Linf-normalised step moves the voxel's strongest channel by gamma, all voxels alike
    gain = float(weight.square().sum() / weight.abs().max())  # of |margin|, per unit of step size
    gamma, steps = 0.05, 6
    attack = DAG(nn.CrossEntropyLoss(), eps=10.0, steps=steps, step_size=gamma)
    result = attack(network, image, label)
    after = network.margin(result.adversarial).detach()
    needed = (margin.abs() / (gamma * gain)).floor() + 1  # steps until the sign changes
    assert bool((needed <= steps).any() and (needed[right] > steps).any())
    flipped = (after > 0) != (margin > 0)
    assert torch.equal(flipped, right & (needed <= steps))
    moved = (margin - after).abs() / (gamma * gain)
    torch.testing.assert_close(moved, torch.where(right, needed.clamp_max(steps), 0.0), rtol=0, atol=1e-9)
    assert bool((result.adversarial == image).movedim(1, -1)[~right].all())


def test_targeted_drives_the_voxels_that_have_not_arrived() -> None:
    """The linear network again, towards a label drawn at random: every voxel arrives, and then stands still."""
    network = VoxelMargin(channels=1, rank=3).double()
    source = torch.Generator().manual_seed(2)
    image = torch.randn(2, 1, 6, 5, 4, generator=source, dtype=torch.float64)
    goal = torch.randint(2, image.shape, generator=source)
    there = (network.margin(image).detach() > 0) == (goal[:, 0] == 1)
    attack = DAG(nn.CrossEntropyLoss(), eps=10.0, steps=80, step_size=0.05, targeted=True)
    assert not attack.is_random
    result = attack(network, image, goal)
    assert torch.equal(network.margin(result.adversarial).detach() > 0, goal[:, 0] == 1)
    assert torch.equal(result.adversarial[:, 0] == image[:, 0], there)
    distance = (image / network.weight.detach().sign()).abs()[:, 0]  # one channel: |x| to its boundary at 0
    assert bool(((result.adversarial - image).abs()[:, 0] <= torch.where(there, 0.0, distance + 0.05 + 1e-9)).all())


def test_the_likeliest_wrong_class_and_ignored_voxels() -> None:
    """Three classes with scores x, 0.5 and 0: the drive is towards 0.5; an ignored voxel stands still."""
    image = torch.tensor([[[1.0, 1.0, 1.0]]])

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, torch.full_like(x, 0.5), 0 * x), 1)

    attack = DAG(nn.CrossEntropyLoss(ignore_index=9), eps=1.0, steps=2, step_size=0.3, wrong_class="likeliest")
    result = attack(network, image, torch.tensor([[[0, 9, 1]]]), generator=torch.Generator())
    torch.testing.assert_close(result.adversarial, torch.tensor([[[0.4, 1.0, 1.0]]]))


def test_which_attacks_are_random() -> None:
    def of(loss: Any, **arguments: Any) -> Attack:
        return DAG(loss, eps=0.1, **arguments)

    assert of(nn.CrossEntropyLoss()).is_random
    assert of(nn.CrossEntropyLoss(), restarts=2).restarts == 2
    assert not of(nn.CrossEntropyLoss(), wrong_class="likeliest").is_random
    assert not of(DiceLoss(sigmoid=True)).is_random
    assert of(DiceLoss(sigmoid=True), random_start=True).is_random


def test_errors() -> None:
    with pytest.raises(ValueError, match="wrong_class: expected one of 'random', 'likeliest'; got 'next'"):
        DAG(nn.CrossEntropyLoss(), eps=0.1, wrong_class="next")
    with pytest.raises(ValueError, match="loss_function: DAG compares classes; got the regression loss MSELoss"):
        DAG(nn.MSELoss(), eps=0.1)
    with pytest.raises(ValueError, match="activation: expected one of"):
        DAG(nn.CrossEntropyLoss(), eps=0.1, activation="tanh")
