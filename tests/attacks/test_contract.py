"""Every attack, in 2-D and 3-D, for every task, against every clause of the contract."""

from __future__ import annotations

import contract
import networks
import pytest
import torch
from monai.losses import DiceLoss

from monai_smia.attacks import (
    BIM,
    DIFGSM,
    FGSM,
    MIFGSM,
    NIFGSM,
    PGD,
    SMIA,
    TIFGSM,
    TPGD,
    VMIFGSM,
    CosPGD,
    EoT,
    GaussianNoise,
    RandomResize,
    SegPGD,
)


def _with(attack, **fixed):
    return lambda loss, **arguments: attack(loss, **{**fixed, **arguments})


def _expected(loss, **arguments):
    """EoT, of an attack with the common arguments."""
    return EoT(BIM(loss, steps=2, **arguments), RandomResize(0.7, 1.0, fill=0.0), samples=2)


ATTACKS = {
    "FGSM": FGSM,
    "FGSM-random": _with(FGSM, random_start=True),
    "BIM": _with(BIM, steps=3),
    "PGD": _with(PGD, steps=3),
    "PGD-restarts-best": _with(PGD, steps=3, restarts=2, keep="best"),
    "BIM-targeted": _with(BIM, steps=3, targeted=True),
    "MIFGSM": _with(MIFGSM, steps=3),
    "NIFGSM": _with(NIFGSM, steps=3),
    "VMIFGSM": _with(VMIFGSM, steps=2, neighbours=2),
    "DIFGSM": _with(DIFGSM, steps=3, diversity_probability=1.0),
    "TIFGSM": _with(TIFGSM, steps=3, kernel_size=3, sigma=1.0),
    "SMIA": _with(SMIA, steps=3),
    "SMIA-hard-image": _with(SMIA, steps=3, divergence="hard", smooth="image"),
    "SMIA-gradient": _with(SMIA, steps=3, combine="gradient"),
    "SMIA-authors": _with(SMIA.authors, steps=3),
    "SegPGD": _with(SegPGD, steps=3),
    "CosPGD": _with(CosPGD, steps=3),
    "TPGD": _with(TPGD, steps=3),
    "GaussianNoise": GaussianNoise,
    "EoT": _expected,
}
TASKS = ("classification", "multilabel", "segmentation")


@pytest.mark.parametrize("clause", contract.CHECKS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", ATTACKS)
def test_contract(name: str, rank: int, task: str, clause: str) -> None:
    make = ATTACKS[name]
    if clause == "verdict_can_be_recomputed" and "targeted" in name:
        pytest.skip("success of a targeted attack is recomputed in test_parts.py")
    if clause == "configuration" and name == "EoT":
        pytest.skip("its argument is an attack; its own JSON and repr are tested in test_towards.py")
    contract.CHECKS[clause](contract.Case(make, rank, task))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", ATTACKS)
def test_one_sample_of_several_channels(name: str, rank: int, task: str) -> None:
    case = contract.Case(ATTACKS[name], rank, task, batch=1, channels=4)
    contract.check_keeps_type(case)
    contract.check_budget_and_bounds(case)
    result = case.run(attack=case.attack(eps=[0.0, 0.05, 0.1, 0.2]))
    size = (result.adversarial - case.image()).abs().flatten(2).amax(2)[0]
    assert (size <= __import__("torch").tensor([0.0, 0.05, 0.1, 0.2]) + 1e-6).all()
    assert size[0] == 0


@pytest.mark.parametrize("clause", ["verdict_can_be_recomputed", "samples_are_independent", "mask"])
@pytest.mark.parametrize("name", ["PGD", "SMIA", "SMIA-hard-image", "SegPGD", "CosPGD", "TPGD"])
def test_class_indices_on_a_sigmoid_head_of_several_channels(name: str, clause: str) -> None:
    contract.CHECKS[clause](contract.Case(ATTACKS[name], 2, "indices of sigmoids"))


@pytest.mark.parametrize("name", ["SMIA", "SegPGD", "CosPGD"])
def test_class_indices_are_their_one_hot_labels(name: str) -> None:
    """An index says yes to its channel and no to the others. (A hard twin may say yes to several, which none can.)"""
    case = contract.Case(ATTACKS[name], 2, "indices of sigmoids")
    hot = torch.nn.functional.one_hot(case.target()[:, 0], networks.CLASSES).movedim(-1, 1).float()
    result, expected = (
        case.run(),
        case.run(attack=case.make(DiceLoss(sigmoid=True), eps=0.1, bounds=contract.BOUNDS), target=hot),
    )
    torch.testing.assert_close(result.adversarial, expected.adversarial)
    torch.testing.assert_close(result.loss, expected.loss)
    assert torch.equal(result.success, expected.success)
