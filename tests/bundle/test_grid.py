"""`attack_grid`: names, budgets and arguments from a configuration."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

import monai_smia.attacks
from monai_smia.attacks import BIM, PGD, SMIA, GaussianNoise
from monai_smia.bundle import attack_grid
from monai_smia.intensity import IntensityScale

LOSS = nn.CrossEntropyLoss()
HU = IntensityScale(-1000, 400, clip=True)


def test_budgets_in_network_units() -> None:
    grid = attack_grid(["BIM", "PGD"], [0.01, 0.5], LOSS)
    assert list(grid) == ["BIM_0.01", "BIM_0.5", "PGD_0.01", "PGD_0.5"]
    assert [type(attack) for attack in grid.values()] == [BIM, BIM, PGD, PGD]
    assert [attack.eps for attack in grid.values()] == [0.01, 0.5] * 2
    assert {attack.bounds for attack in grid.values()} == {None}
    assert {attack.loss_function for attack in grid.values()} == {LOSS}


def test_budgets_in_physical_units() -> None:
    grid = attack_grid(["SMIA"], [2, 7, 10.5], LOSS, intensity=HU)
    assert list(grid) == ["SMIA_2HU", "SMIA_7HU", "SMIA_10.5HU"]
    assert [attack.eps for attack in grid.values()] == pytest.approx([2 / 1400, 7 / 1400, 10.5 / 1400])
    assert {attack.bounds for attack in grid.values()} == {(0.0, 1.0)}
    wide = IntensityScale(0, 255, b_min=-1, b_max=1, unit="grey")
    (name, attack), *_ = attack_grid(["BIM"], [51], LOSS, intensity=wide).items()
    assert (name, attack.eps, attack.bounds) == ("BIM_51grey", pytest.approx(0.4), None)


def test_bounds_given_win_over_the_scales() -> None:
    (attack,) = attack_grid(["BIM"], [7], LOSS, intensity=HU, bounds=(-0.5, 1.5)).values()
    assert attack.bounds == (-0.5, 1.5)


def test_shared_arguments_go_where_they_fit_and_options_to_one() -> None:
    grid = attack_grid(
        ["SMIA", "GaussianNoise", "BIM"],
        [0.1],
        LOSS,
        steps=3,
        restarts=1,
        norm="inf",
        options={"BIM": {"steps": 7, "step_size": 0.01}, "SMIA": {}},
    )
    smia, noise, bim = grid.values()
    assert isinstance(smia, SMIA)
    assert isinstance(noise, GaussianNoise)
    assert (smia.steps, bim.steps, bim.step_size) == (3, 7, 0.01)
    assert not hasattr(noise, "steps")
    assert {attack.norm for attack in grid.values()} == {math.inf}


def test_every_named_attack_can_be_asked_for() -> None:
    names = ["FGSM", "BIM", "PGD", "MIFGSM", "NIFGSM", "VMIFGSM", "DIFGSM", "TIFGSM", "SMIA", "SegPGD", "CosPGD"]
    grid = attack_grid([*names, "GaussianNoise"], [0.1], LOSS, steps=2, bounds=(0, 1))
    assert [type(attack) for attack in grid.values()] == [
        getattr(monai_smia.attacks, name) for name in [*names, "GaussianNoise"]
    ]
    assert {attack.steps for attack in grid.values() if hasattr(attack, "steps")} == {2}


def test_from_a_configuration() -> None:
    config = {
        "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
        "scale": {"_target_": "monai_smia.intensity.IntensityScale", "a_min": -1000, "a_max": 400, "clip": True},
        "attacks": {
            "_target_": "monai_smia.bundle.attack_grid",
            "names": ["PGD", "GaussianNoise"],
            "eps": [7],
            "loss_function": "@loss",
            "intensity": "@scale",
            "steps": 2,
        },
    }
    grid = ConfigParser(json.loads(json.dumps(config))).get_parsed_content("attacks")
    image, target = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    assert list(grid) == ["PGD_7HU", "GaussianNoise_7HU"]
    for attack in grid.values():
        change = attack(nn.Flatten(), image, target).adversarial - image
        assert float(change.abs().max()) <= 7 / 1400 + 1e-7


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"names": ["PDG"]}, ValueError, "names: expected names of attacks; got 'PDG'; did you mean 'PGD'"),
        ({"names": ["Attack"]}, ValueError, "names: .*got 'Attack'"),
        ({"names": ["GradientAttack"]}, ValueError, "names: .*got 'GradientAttack'"),
        ({"names": ["Momentum"]}, ValueError, "names: .*got 'Momentum'"),
        ({"names": "PGD"}, ValueError, "names: .*got 'P'"),
        (
            {"options": {"SMIA": {}, "BIM": {}}},
            ValueError,
            r"options: expected only names among \['BIM'\]; got \['SMIA'\]",
        ),
        ({"options": {"BIM": {"stepz": 1}}}, TypeError, "stepz"),
        ({"stepz": 1}, TypeError, r"shared: .*no attack has \['stepz'\]"),
        ({"eps": [-1.0]}, ValueError, "eps"),
        ({"eps": [0.1, 0.1]}, ValueError, "names, eps: expected each once; got 'BIM_0.1' twice"),
        ({"names": ["BIM", "BIM"]}, ValueError, "names, eps: .*twice"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attack_grid(**{"names": ["BIM"], "eps": [0.1], "loss_function": LOSS, **arguments})
