# SPDX-License-Identifier: Apache-2.0
"""The same attacks in torchattacks, foolbox and ART give the same images: bit for bit where the formulas are the same.

The batch is a power of two, so that a peer's mean over it scales every gradient exactly, and one thread computes, so
that every sum is taken in one order. Each tolerance says why the bits may differ.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import BIM, FGSM, MIFGSM, NIFGSM, PGD, TIFGSM, Attack

pytestmark = pytest.mark.peers

EPS, STEP, STEPS, CLASSES = 16 / 255, 4 / 255, 10, 3
LOSS = nn.CrossEntropyLoss()
FIXED: dict[str, Any] = {"random_start": False}
LINF: dict[str, Any] = {"eps": EPS, "bounds": (0.0, 1.0)}
ITERATED: dict[str, Any] = {**LINF, "steps": STEPS, "step_size": STEP}
L2: dict[str, Any] = {"eps": 1.0, "norm": 2, "bounds": (0.0, 1.0), "steps": STEPS, "step_size": 0.25}
PEER_ITERATED: dict[str, Any] = {"eps": EPS, "alpha": STEP, "steps": STEPS}

ranks = pytest.mark.parametrize("rank", [2, 3])
targets = pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])


@pytest.fixture
def torchattacks() -> ModuleType:
    return pytest.importorskip("torchattacks")


@pytest.fixture
def foolbox() -> ModuleType:
    return pytest.importorskip("foolbox")


@pytest.fixture
def art() -> SimpleNamespace:
    attacks = pytest.importorskip("art.attacks.evasion")
    return SimpleNamespace(attacks=attacks, models=pytest.importorskip("art.estimators.classification"))


class Problem:
    """A seeded classifier in evaluation mode, as the peers want it, and four images in [0, 1], partly on the bounds.

    Attributes:
        network: convolutions and BatchNorm with a history.
        image: ``(4, 3, 16, 16)`` or ``(4, 1, 8, 8, 8)``, blocks with noise.
        label: the classes that the network gives them, ``(4,)``.
        other: other classes, ``(4,)``.
    """

    def __init__(self, rank: int) -> None:
        channels, size = (3, 16) if rank == 2 else (1, 8)
        conv, norm, pool = (
            (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d)
            if rank == 2
            else (nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d)
        )
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(3)
            norms = [norm(8), norm(8)]
            for module in norms:
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 2.0)
            body = [conv(channels, 8, 3, padding=1), norms[0], nn.ReLU(), conv(8, 8, 3, 2, padding=1), norms[1]]
            last = nn.Linear(8 * 4**rank, CLASSES)
            last.weight.normal_(std=0.3)
            self.network = nn.Sequential(*body, nn.Tanh(), pool(4), nn.Flatten(), last).eval()
            blocks = F.interpolate(torch.rand(4, channels, *[2] * rank), scale_factor=size // 2)
            self.image = (blocks * 1.2 - 0.1 + 0.2 * (torch.rand(4, channels, *[size] * rank) - 0.5)).clamp(0, 1)
            last.bias -= self.network(self.image).mean(0)
            self.label = self.network(self.image).argmax(1)
        self.other = (self.label + 1) % CLASSES

    def ours(self, attack: Attack, **arguments: Any) -> torch.Tensor:
        """Our adversarial images, each of them changed: attacks that do nothing would agree, too."""
        goal = self.other if attack.targeted else self.label
        adversarial = attack(self.network, self.image, goal, **arguments).adversarial
        assert ((adversarial - self.image).flatten(1).abs().amax(1) > STEP / 2).all()
        return adversarial

    def torchattacks(self, library: ModuleType, name: str, targeted: bool = False, **arguments: Any) -> torch.Tensor:
        attack = getattr(library, name)(self.network, **arguments)
        if targeted:
            attack.set_mode_targeted_by_label(quiet=True)
        return attack(self.image, self.other if targeted else self.label)

    def foolbox(self, library: ModuleType, attack: Any, eps: float, targeted: bool = False) -> torch.Tensor:
        model = library.PyTorchModel(self.network, bounds=(0, 1))
        goal = library.criteria.TargetedMisclassification(self.other) if targeted else self.label
        raw, _, _ = attack(model, self.image, goal, epsilons=eps)
        return raw

    def art(self, library: SimpleNamespace, name: str, targeted: bool = False, **arguments: Any) -> torch.Tensor:
        model = library.models.PyTorchClassifier(
            self.network,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(self.image.shape[1:]),
            nb_classes=CLASSES,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        attack = getattr(library.attacks, name)(model, eps=EPS, **arguments)
        attack.set_params(targeted=targeted)
        goal = self.other if targeted else self.label
        return torch.from_numpy(attack.generate(self.image.numpy(), goal.numpy()))


@targets
@ranks
def test_fgsm_is_torchattacks(torchattacks: ModuleType, rank: int, targeted: bool) -> None:
    problem = Problem(rank)
    theirs = problem.torchattacks(torchattacks, "FGSM", targeted, eps=EPS)
    assert torch.equal(problem.ours(FGSM(LOSS, targeted=targeted, **LINF)), theirs)


@targets
@ranks
def test_pgd_is_torchattacks(torchattacks: ModuleType, rank: int, targeted: bool) -> None:
    problem = Problem(rank)
    theirs = problem.torchattacks(torchattacks, "PGD", targeted, **PEER_ITERATED, **FIXED)
    assert torch.equal(problem.ours(PGD(LOSS, targeted=targeted, **ITERATED, **FIXED)), theirs)


@ranks
def test_pgd_with_a_seeded_start_is_torchattacks(torchattacks: ModuleType, rank: int) -> None:
    """The peer draws from the global state, ours from a generator with the same seed."""
    problem = Problem(rank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        theirs = problem.torchattacks(torchattacks, "PGD", **PEER_ITERATED, random_start=True)
    adversarial = problem.ours(PGD(LOSS, **ITERATED), generator=torch.Generator().manual_seed(7))
    assert torch.equal(adversarial, theirs)


@pytest.mark.parametrize(("attack", "name"), [(MIFGSM, "MIFGSM"), (NIFGSM, "NIFGSM")], ids=["MIFGSM", "NIFGSM"])
def test_momentum_is_torchattacks(torchattacks: ModuleType, attack: type[Attack], name: str) -> None:
    problem = Problem(2)
    theirs = problem.torchattacks(torchattacks, name, decay=1.0, **PEER_ITERATED)
    assert torch.equal(problem.ours(attack(LOSS, decay=1.0, **ITERATED)), theirs)


def test_tifgsm_is_torchattacks(torchattacks: ModuleType) -> None:
    """The peer's kernel is 15 taps from -3 to 3 standard deviations: sigma is 7 / 3 pixels.

    The kernels are rounded differently, and where a filtered gradient is a rounding away from zero its sign may turn:
    at most one pixel in a thousand may differ.
    """
    problem = Problem(2)
    kernel = {"kernel_name": "gaussian", "len_kernel": 15, "nsig": 3, "diversity_prob": 0.0}
    theirs = problem.torchattacks(torchattacks, "TIFGSM", decay=1.0, **kernel, **PEER_ITERATED)
    adversarial = problem.ours(TIFGSM(LOSS, decay=1.0, kernel_size=15, sigma=7 / 3, **ITERATED))
    assert ((adversarial - theirs).abs() > 1e-6).float().mean() <= 1e-3


def test_l2_pgd_is_torchattacks(torchattacks: ModuleType) -> None:
    """2-D without a random start: the peer draws another distribution, and views its norms as ``(B, 1, 1, 1)``.

    1e-6 is rounding: the peer adds 1e-10 to the norm that it divides by.
    """
    problem = Problem(2)
    theirs = problem.torchattacks(torchattacks, "PGDL2", eps=1.0, alpha=0.25, steps=STEPS, **FIXED)
    torch.testing.assert_close(problem.ours(PGD(LOSS, **L2, **FIXED)), theirs, rtol=0, atol=1e-6)


def momentum_loop(problem: Problem, eps: float, alpha: float, steps: int, axes: tuple[int, ...]) -> torch.Tensor:
    """MI-FGSM of decay 1 written out, its gradients divided by their mean magnitude over `axes`."""
    image, adversarial = problem.image, problem.image.clone()
    momentum = torch.zeros_like(image)
    for _ in range(steps):
        leaf = adversarial.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(LOSS(problem.network(leaf), problem.label), leaf)
        momentum = momentum + gradient / gradient.abs().mean(axes, keepdim=True)
        adversarial = (image + (adversarial + alpha * momentum.sign() - image).clamp(-eps, eps)).clamp(0, 1)
    return adversarial.detach()


def test_momentum_of_volumes_is_normalised_over_the_whole_volume(torchattacks: ModuleType) -> None:
    """On ``BCHWD`` torchattacks averages over axes (1, 2, 3), one value for each slice along the last axis.

    Slices with weak gradients then count as much as those with strong ones. Ours is the loop over all axes but the
    batch; theirs is the loop over those three, which shows that nothing else differs.
    """
    problem = Problem(3)
    size = {"eps": 0.3, "alpha": 0.075, "steps": STEPS}
    theirs = problem.torchattacks(torchattacks, "MIFGSM", decay=1.0, **size)
    adversarial = problem.ours(MIFGSM(LOSS, decay=1.0, eps=0.3, step_size=0.075, steps=STEPS, bounds=(0.0, 1.0)))
    assert torch.equal(adversarial, momentum_loop(problem, **size, axes=(1, 2, 3, 4)))
    assert torch.equal(theirs, momentum_loop(problem, **size, axes=(1, 2, 3)))
    assert ((adversarial - theirs).abs() > 0.05).any()


@ranks
def test_fgsm_is_foolbox(foolbox: ModuleType, rank: int) -> None:
    problem = Problem(rank)
    theirs = problem.foolbox(foolbox, foolbox.attacks.LinfFastGradientAttack(**FIXED), EPS)
    assert torch.equal(problem.ours(FGSM(LOSS, **LINF)), theirs)


@targets
@ranks
def test_pgd_is_foolbox(foolbox: ModuleType, rank: int, targeted: bool) -> None:
    problem = Problem(rank)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, **FIXED)
    theirs = problem.foolbox(foolbox, attack, EPS, targeted)
    assert torch.equal(problem.ours(PGD(LOSS, targeted=targeted, **ITERATED, **FIXED)), theirs)


@targets
@ranks
def test_l2_pgd_is_foolbox(foolbox: ModuleType, rank: int, targeted: bool) -> None:
    """1e-6 is rounding: the peer multiplies by the reciprocal of the norm, ours divides by the norm."""
    problem = Problem(rank)
    attack = foolbox.attacks.L2PGD(abs_stepsize=0.25, steps=STEPS, **FIXED)
    theirs = problem.foolbox(foolbox, attack, 1.0, targeted)
    adversarial = problem.ours(PGD(LOSS, targeted=targeted, **L2, **FIXED))
    torch.testing.assert_close(adversarial, theirs, rtol=0, atol=1e-6)


@targets
@ranks
def test_fgsm_is_art(art: SimpleNamespace, rank: int, targeted: bool) -> None:
    problem = Problem(rank)
    theirs = problem.art(art, "FastGradientMethod", targeted)
    assert torch.equal(problem.ours(FGSM(LOSS, targeted=targeted, **LINF)), theirs)


@targets
@pytest.mark.parametrize(
    ("attack", "name"),
    [
        pytest.param(PGD(LOSS, **ITERATED, **FIXED), "ProjectedGradientDescent", id="PGD"),
        pytest.param(BIM(LOSS, **ITERATED), "BasicIterativeMethod", id="BIM"),
        pytest.param(MIFGSM(LOSS, decay=1.0, **ITERATED), "MomentumIterativeMethod", id="MIFGSM"),
    ],
)
@ranks
def test_iterated_is_art(art: SimpleNamespace, rank: int, attack: Attack, name: str, targeted: bool) -> None:
    """ART divides by the L1 norm where ours takes the mean magnitude: a constant factor, which no sign sees."""
    problem = Problem(rank)
    theirs = problem.art(art, name, targeted, eps_step=STEP, max_iter=STEPS, verbose=False)
    assert torch.equal(problem.ours(dataclasses.replace(attack, targeted=targeted)), theirs)
