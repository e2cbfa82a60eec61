"""Sound networks raise nothing, at a bounded cost, and are left as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import masked_networks as masked
import pytest
import torch
from doctor_networks import BOUNDS, SOUND, Patient, classifier, linear, multilabel, segmenter, volumes
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from networks import Counting
from torch import nn

from monai_smia import attacks
from monai_smia.doctor import diagnose

FIRST_LOOK, SECOND_LOOK = (29, 10), (130, 85)
UNTRAINED = (multilabel, volumes)  # random weights: a stride may lose ground, which is looked at twice


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("make", SOUND, ids=lambda make: make.__name__)
def test_a_sound_network_raises_nothing_within_the_passes_promised(make: Callable[[int], Patient], seed: int) -> None:
    patient = make(seed)
    network = Counting(patient.network)
    found = diagnose(network, *patient.arguments[1:], eps=patient.eps, bounds=BOUNDS, progress=False)
    assert found == ()
    forwards, backwards = SECOND_LOOK if make in UNTRAINED else FIRST_LOOK
    assert network.forwards <= forwards
    assert network.backwards <= backwards


@pytest.mark.parametrize("make", SOUND, ids=lambda make: make.__name__)
def test_the_result_of_an_attack_is_examined_at_less(make: Callable[[int], Patient]) -> None:
    patient = make(0)
    attack = attacks.PGD(patient.loss, eps=patient.eps, bounds=BOUNDS)
    adversarial = attack(patient.network, patient.image, patient.target).adversarial
    network = Counting(patient.network)
    found = diagnose(network, *patient.arguments[1:], attack=attack, adversarial=adversarial, progress=False)
    assert found == ()
    if make not in UNTRAINED:
        assert network.forwards + 2 * network.backwards <= 1.5 * 32  # of PGD-10: 12 forward, 10 backward


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("eps", [0.001, 0.05, 0.4])
def test_no_budget_makes_a_linear_network_suspect(seed: int, eps: float) -> None:
    patient = linear(seed, classes=2)
    assert diagnose(*patient.arguments, eps=eps, bounds=BOUNDS, surrogate=linear(seed + 9, classes=2).network) == ()
    assert diagnose(*patient.arguments, eps=4 * eps, norm=2) == ()


@pytest.mark.parametrize("kind", [masked.Saturated, masked.Idle, masked.Reversed])
def test_networks_with_much_to_find_keep_within_the_passes_too(kind: Any) -> None:
    patient = linear(0)
    network = Counting(kind(patient.network))
    assert diagnose(network, *patient.arguments[1:], eps=0.01, bounds=BOUNDS)
    assert network.forwards <= SECOND_LOOK[0]
    assert network.backwards <= SECOND_LOOK[1]


def test_the_attack_in_question_is_what_is_compared() -> None:
    patient = classifier(0)
    attack = attacks.PGD(patient.loss, eps=patient.eps, bounds=BOUNDS)
    assert diagnose(*patient.arguments, attack=attack) == ()
    idle = attacks.PGD(patient.loss, eps=patient.eps, bounds=BOUNDS, step_size=0.0, random_start=False)
    found = {finding.check for finding in diagnose(*patient.arguments, attack=idle)}
    assert {"one_step_beats", "black_box_beats"} <= found


def test_a_targeted_attack_is_examined_in_its_own_direction() -> None:
    patient = linear(1)
    target = (patient.target + 1) % 3
    attack = attacks.BIM(patient.loss, eps=0.005, bounds=BOUNDS, targeted=True)
    assert diagnose(patient.network, patient.image, target, patient.loss, attack=attack) == ()


def test_a_regression_is_examined_by_its_loss() -> None:
    network = linear(2, classes=1).network
    image = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    target = network(image).detach() + 0.5
    assert diagnose(network, image, target, nn.MSELoss(), eps=0.01) == ()
    found = diagnose(lambda x: network(x.round()), image, target, nn.MSELoss(), eps=0.01)
    assert "zero_gradient" in {finding.check for finding in found}


def test_metadata_masks_and_sliding_windows_are_taken() -> None:
    patient = segmenter(0)
    mask = torch.ones(1, 1, 16, 16)
    mask[..., :3] = 0
    found = diagnose(
        patient.network,
        MetaTensor(patient.image),
        MetaTensor(patient.target),
        patient.loss,
        eps=0.02,
        bounds=BOUNDS,
        mask=mask,
        inferer=SlidingWindowInferer((12, 12), sw_batch_size=4, overlap=0.5),
        checks=["zero_gradient", "one_step_beats", "clipped_gradient", "noise_as_strong"],
    )
    assert found == ()


def test_network_and_global_randomness_are_left_as_found() -> None:
    patient = classifier(0)
    network = nn.Sequential(masked.Noisy(patient.network), nn.Dropout(0.5)).train()
    patient.network.eval()
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in network.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    with torch.no_grad():
        diagnose(network, *patient.arguments[1:], eps=0.01, bounds=BOUNDS, checks=["random_forward", "one_step_beats"])
    assert torch.equal(before, torch.get_rng_state())
    assert network.training
    assert not patient.network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(p.grad, old) for p, old in zip(network.parameters(), gradients, strict=True))
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_the_same_call_finds_the_same() -> None:
    patient = linear(0)
    idle = masked.Idle(patient.network)
    first, second = (diagnose(idle, *patient.arguments[1:], eps=0.01) for _ in range(2))
    assert first == second != ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": None}, "eps: expected a budget"),
        ({"checks": ["zero"]}, "checks: expected names among .*; got zero"),
        ({"attack": attacks.FGSM(nn.CrossEntropyLoss(), eps=0.2)}, "eps: expected the attack's, 0.2; got 0.01"),
        ({"attack": attacks.FGSM(nn.CrossEntropyLoss(), eps=0.01), "norm": 2}, "norm: expected the attack's, inf"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diagnose(*linear(0).arguments, **{"eps": 0.01, **changes})


def test_what_is_no_attack_is_refused() -> None:
    with pytest.raises(TypeError, match="attack: expected an Attack; got str"):
        diagnose(*linear(0).arguments, eps=0.01, attack="pgd")  # type: ignore[arg-type]
