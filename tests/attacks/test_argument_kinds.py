# SPDX-License-Identifier: Apache-2.0
"""Arguments of another kind than an attack has are refused by name, and huge ones do no harm."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

import monai_smia.attacks
from monai_smia.attacks import CW, MIFGSM, PGD, SMIA, UAP, LpBall, Momentum, Scale
from monai_smia.attacks.argument_kinds import KINDS
from monai_smia.bundle.eps import Budget, parse_eps
from monai_smia.bundle.grid import attack_grid, known_attacks
from monai_smia.intensity import IntensityScale

LOSS = nn.CrossEntropyLoss()
WRONG: dict[str, tuple[Any, ...]] = {
    "bool": ("maybe", 1, 0, [], b"x", math.nan),
    "int": (1.5, True, "3", math.nan, math.inf, 2**80, -1, b"x"),
    "float": (math.nan, math.inf, -math.inf, "0.1", True, 1e308, b"x", [0.1]),
    "str": (3, b"auto", ["auto"], "no such choice"),
}


def fields_of(name: str) -> list[tuple[str, str]]:
    """The arguments of an attack that are of one kind, and the kind."""
    found = []
    for item in dataclasses.fields(getattr(monai_smia.attacks, name)):
        kinds = [part.strip() for part in str(item.type).split("|") if part.strip() != "None"]
        if item.init and item.name != "norm" and len(kinds) == 1 and kinds[0] in KINDS:
            found.append((item.name, kinds[0]))
    return found


def built(name: str, **arguments: Any) -> Any:
    bounds = {"bounds": (0.0, 1.0)} if name == "CW" else {}
    return getattr(monai_smia.attacks, name)(LOSS, **{"eps": 0.1, **bounds, **arguments})


@pytest.mark.parametrize("name", sorted(known_attacks()))
def test_every_argument_of_every_attack_is_of_its_kind(name: str) -> None:
    built(name)
    for argument, kind in fields_of(name):
        for value in WRONG[kind]:
            with pytest.raises((TypeError, ValueError), match=argument):
                built(name, **{argument: value})


@pytest.mark.parametrize("name", sorted(known_attacks()))
def test_sizes_are_numbers_that_can_be_computed_with(name: str) -> None:
    for argument in ("eps", "step_size"):
        if argument in {item.name for item in dataclasses.fields(getattr(monai_smia.attacks, name))}:
            for value in (b"x", math.nan, -0.1, 1e308, "0.1", True, [0.1, math.nan]):
                with pytest.raises((TypeError, ValueError), match=f"{argument}: expected"):
                    built(name, **{argument: value})
    for bounds in (b"xy", (0, math.nan), (1, 0), (0, 1, 2), "01", 1, ([], [])):
        with pytest.raises((TypeError, ValueError), match="bounds: expected"):
            built(name, bounds=bounds)
    for norm in (math.nan, 3, "2", True, b"x", None):
        if not (norm is None and name == "UniversalAttack"):
            with pytest.raises(ValueError, match="norm: "):
                built(name, norm=norm)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MIFGSM(LOSS, eps=0.1, decay=math.nan), "decay: expected a finite number"),
        (lambda: MIFGSM(LOSS, eps=0.1, decay=1.5), r"decay: expected a number in \[0, 1\]; got 1.5"),
        (lambda: CW(LOSS, bounds=(0, 1), initial_c=1e-60), "initial_c: expected a number that is not 0"),
        (lambda: SMIA(LOSS, eps=0.1, step_size=1e308), "step_size: expected finite numbers"),
        (lambda: SMIA(LOSS, eps=0.1, stabilization_weight=(1, 2)), "stabilization_weight: expected a number"),
        (lambda: PGD(LOSS, eps=0.1, targeted="maybe"), "targeted: expected True or False; got 'maybe'"),
        (lambda: UAP(LOSS, eps=0.1, targeted="maybe"), "targeted: expected True or False"),
        (lambda: UAP(LOSS, eps=b"x"), "eps: expected a number"),
        (lambda: Momentum(math.nan), "decay: expected a finite number"),
        (lambda: LpBall(math.nan), "eps: expected a number >= 0"),
        (lambda: LpBall(0.1, norm=3), "norm: expected inf, 2 or 1"),
        (lambda: IntensityScale(math.nan, 1), "a_min: expected a finite number"),
        (lambda: IntensityScale(0, 1, clip="yes"), "clip: expected True or False"),
        (lambda: Budget(math.nan), "eps: expected a finite number"),
        (lambda: Budget("1"), "eps: expected a number"),
        (lambda: parse_eps(b"x"), "eps: expected numbers, or strings"),
        (lambda: parse_eps("1e-400HU"), "eps: expected a number that is not lost to rounding; got '1e-400HU'"),
        (lambda: parse_eps("1e400HU"), "eps: expected a number that is not lost to rounding"),
        (lambda: parse_eps("4/1e-400"), "eps: expected a number"),
    ],
)
def test_what_was_taken_in_silence_is_refused(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_budget_of_nothing_is_a_budget() -> None:
    assert [budget.value for budget in parse_eps("0, 0.0HU, 0e5grey")] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("initial_c", [1.0, 1e10])
def test_a_weight_that_outgrows_single_precision_still_finds_the_border(initial_c: float) -> None:
    """The first search's objective is the margin alone; the binary search then brings the distance back in."""
    weights = torch.tensor([[3.0, 4.0], [-1.0, -1.25]])
    image = torch.tensor([[[0.5, 0.4]]])
    attack = CW(LOSS, bounds=(0.0, 1.0), steps=100, initial_c=initial_c)
    result = attack(lambda x: x.flatten(1) @ weights.T - torch.tensor([2.0, 0.0]), image, torch.tensor([0]))
    assert bool(result.success)
    assert bool(result.adversarial.isfinite().all())
    assert float((result.adversarial - image).norm()) < 0.5


def test_names_of_other_libraries_say_ours() -> None:
    with pytest.raises(TypeError, match="alpha: PGD has no such argument; did you mean 'step_size'"):
        PGD(LOSS, eps=0.1, alpha=0.01)
    with pytest.raises(TypeError, match="random_strat: PGD has no such argument; did you mean 'random_start'"):
        PGD(LOSS, eps=0.1, random_strat=True)
    with pytest.raises(TypeError, match=r"loss_function: .* got Linear.* network goes into the call: attack\(network"):
        PGD(nn.Linear(2, 2), eps=0.1)
    with pytest.raises(TypeError, match="loss_function: expected a loss on"):
        PGD(lambda image: image, eps=0.1)


def test_a_misspelt_attack_is_asked_about() -> None:
    with pytest.raises(ValueError, match="names: expected names of attacks; got 'PDG'; did you mean 'PGD'"):
        attack_grid(["PDG"], [0.1], LOSS)
    with pytest.raises(ValueError, match="names: expected names of attacks; got 'fsgm'; did you mean 'FGSM'"):
        attack_grid(["fsgm"], [0.1], LOSS)
    with pytest.raises(ValueError, match="names: expected names of attacks; got 'Frobnicate'; expected one of 'APGD'"):
        attack_grid(["Frobnicate"], [0.1], LOSS)


def test_a_scale_of_a_chain_may_be_a_tensor() -> None:
    direction, _ = Scale(torch.tensor([[[2.0]]])).update(torch.ones(1, 1, 2), None)
    assert direction.tolist() == [[[2.0, 2.0]]]
