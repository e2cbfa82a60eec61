"""`TPGD`: the divergence written out by hand for both heads, a peer, and what it refuses."""

from __future__ import annotations

from typing import Any

import networks
import pytest
import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import TPGD

EPS, STEP, STEPS = 0.06, 0.02, 4
LINF: dict[str, Any] = {"eps": EPS, "bounds": (0.0, 1.0), "steps": STEPS, "step_size": STEP}


def problem(rank: int, dense: bool, batch: int = 4) -> tuple[nn.Module, torch.Tensor]:
    image = torch.rand(batch, 1, *(9, 7, 5)[:rank], generator=torch.Generator().manual_seed(1))
    return networks.tiny_network(rank, dense).eval(), image


@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize(("rank", "dense"), [(2, False), (2, True), (3, True)])
def test_equals_the_method_written_out(rank: int, dense: bool, sigmoid: bool) -> None:
    network, image = problem(rank, dense)
    network, image = network.double(), image.double()
    loss = DiceLoss(sigmoid=sigmoid, softmax=not sigmoid) if dense else nn.CrossEntropyLoss()
    loss = nn.BCEWithLogitsLoss() if sigmoid and not dense else loss
    label = torch.zeros_like(network(image).detach()) if sigmoid or dense else torch.zeros(len(image)).long()

    def probabilities(x: torch.Tensor) -> torch.Tensor:
        output = network(x)
        yes = output.sigmoid()
        return torch.stack((yes, 1 - yes), 1) if sigmoid else output.softmax(1)

    with torch.no_grad():
        p = probabilities(image)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(5), dtype=image.dtype)
    x = (image + (0.001 * noise).clamp(-EPS, EPS)).clamp(0, 1)
    for _ in range(STEPS):
        leaf = x.requires_grad_()
        (gradient,) = torch.autograd.grad((p * (p / probabilities(leaf)).log()).sum(), leaf)
        x = (image + (x.detach() + STEP * gradient.sign() - image).clamp(-EPS, EPS)).clamp(0, 1)
    result = TPGD(loss, **LINF)(network, image, label, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(result.adversarial, x, rtol=0, atol=1e-12)
    assert int(result.forward_passes[0]) == STEPS + 3  # the clean prediction for the divergence, and two verdicts


@pytest.mark.peers
@pytest.mark.parametrize("rank", [2, 3])
def test_is_torchattacks(rank: int) -> None:
    """The peer draws from the global state, ours from a generator with the same seed."""
    torchattacks = pytest.importorskip("torchattacks")
    network, image = problem(rank, dense=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        theirs = torchattacks.TPGD(network, eps=EPS, alpha=STEP, steps=STEPS)(image)
    label = torch.zeros(len(image), dtype=torch.long)
    ours = TPGD(nn.CrossEntropyLoss(), **LINF)(network, image, label, generator=torch.Generator().manual_seed(7))
    assert torch.equal(ours.adversarial, theirs)
    assert bool(((ours.adversarial - image).flatten(1).abs().amax(1) > STEP / 2).all())


def test_labels_do_not_matter_and_the_clean_prediction_is_left() -> None:
    network, image = problem(2, dense=False)
    attack = TPGD(nn.CrossEntropyLoss(), **LINF)
    one, other = (attack(network, image, torch.full((4,), label)) for label in (0, 1))
    assert torch.equal(one.adversarial, other.adversarial)
    assert not torch.equal(one.loss, other.loss)
    with torch.no_grad():
        clean, attacked = network(image), network(one.adversarial)
        noisy = network(image + 0.001 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0)))
    far, near = (F.kl_div(x.log_softmax(1), clean.softmax(1), reduction="none").sum(1) for x in (attacked, noisy))
    assert bool((far > 100 * near).all())


def test_errors() -> None:
    loss = nn.CrossEntropyLoss()
    for arguments in ({"random_start": False}, {"noise": 0.0}):
        with pytest.raises(ValueError, match="random_start: at the image itself the divergence has no slope"):
            TPGD(loss, eps=EPS, **arguments)
    with pytest.raises(ValueError, match="targeted: TPGD leaves the clean prediction"):
        TPGD(loss, eps=EPS, targeted=True)
    with pytest.raises(ValueError, match="loss_function: TPGD compares classes; got the regression loss MSELoss"):
        TPGD(nn.MSELoss(), eps=EPS)
    with pytest.raises(ValueError, match="activation: expected one of"):
        TPGD(loss, eps=EPS, activation="tanh")
