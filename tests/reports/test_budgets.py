"""Attack and budget of a run, from names, reprs and sizes written by hand and by the package itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from monai_smia.attacks import PGD, SMIA
from monai_smia.bundle import attack_grid
from monai_smia.intensity import IntensityScale
from monai_smia.reports import RobustnessReport
from monai_smia.reports.budgets import Budget, budget_label, budget_of, budgets_of


def report(attacks: dict[str, str], unit: str, **sizes: list[float]) -> RobustnessReport:
    rows: list[dict[str, Any]] = [
        {"attack": run, "case": str(i), "largest_change": size, "l2_change": 10 * size}
        for run, own in sizes.items()
        for i, size in enumerate(own)
    ]
    return RobustnessReport({}, tuple(rows), attacks, unit)


def test_the_grid_of_a_bundle() -> None:
    scale = IntensityScale(-1000, 400, clip=True)
    grid = attack_grid(["PGD", "SMIA", "GaussianNoise"], [0.5, 5, 1e-5], torch.nn.CrossEntropyLoss(), intensity=scale)
    found = budgets_of(report({name: repr(attack) for name, attack in grid.items()}, "HU"))
    assert [budget[:2] for budget in found.values()] == [
        (name, eps) for name in ("PGD", "SMIA", "GaussianNoise") for eps in (0.5, 5.0, 1e-5)
    ]


@pytest.mark.parametrize("unit", ["grey", "percent", "HU", "1/255 (a+b)"])
def test_the_unit_of_a_name_is_the_reports(unit: str) -> None:
    attacks = {f"my_attack_2.5{unit}": "not a repr", "PGD_4other": "PGD(Loss())"}
    found = budgets_of(report(attacks, unit))
    assert found[f"my_attack_2.5{unit}"] == Budget("my_attack", 2.5)
    assert found["PGD_4other"] == Budget("PGD", None)


def test_in_network_units_the_repr_counts_and_not_a_counter() -> None:
    loss = torch.nn.CrossEntropyLoss()
    attacks = {"PGD_1": repr(PGD(loss, eps=8 / 255)), "PGD_2": repr(PGD(loss, eps=0.5, norm=2))}
    found = budgets_of(report(attacks, "network units"))
    assert found["PGD_1"].eps == pytest.approx(8 / 255, rel=1e-5)
    assert found["PGD_1"].norm == math.inf
    assert found["PGD_2"][:3] == ("PGD", 0.5, 2.0)


def test_other_runs_names_give_the_unit() -> None:
    attacks = {"PGD_14HU": "PGD(Loss(), eps=0.01)", "strong": "SMIA(Loss(eps=1e-05), eps=0.02, steps=100)"}
    assert budget_of(report(attacks, "HU"), "strong") == Budget("SMIA", 28.0)
    attacks["BIM_28HU"] = "BIM(Loss(), eps=0.01)"  # contradicts the first
    assert budget_of(report(attacks, "HU"), "strong").eps is None


def test_the_largest_change_is_the_last_resort_and_said_to_be_measured() -> None:
    found = report(
        {"pgd": "PGD(Loss(), eps=0.01)", "l2": "PGD(L(), eps=0.1, norm=2)"}, "HU", pgd=[4.9, 4.999998], l2=[3]
    )
    assert budget_of(found, "pgd") == Budget("PGD", 5.0, math.inf, True)
    assert budget_label(budget_of(found, "pgd"), "HU") == "5 HU (as measured)"
    assert budget_of(found, "l2") == Budget("PGD", 30.0, 2.0, True)
    assert budget_label(budget_of(found, "l2"), "HU") == "30 HU (L2, as measured)"
    nothing = report({"pgd": "PGD(Loss(), eps=tensor([0.1, 0.2]))"}, "network units", pgd=[math.nan])
    assert budget_of(nothing, "pgd") == Budget("PGD", None)
    assert budget_label(budget_of(nothing, "pgd"), "HU") == "unknown"


def test_two_settings_of_one_attack_are_two_families() -> None:
    attacks = {f"{name}_{i}": f"PGD(L(), eps={eps})" for name in ("weak", "strong") for i, eps in ((1, 0.1), (2, 0.2))}
    found = budgets_of(report(attacks, "network units"))
    assert [budget[:2] for budget in found.values()] == [("weak", 0.1), ("weak", 0.2), ("strong", 0.1), ("strong", 0.2)]
    same = budgets_of(report({"a_1": "PGD(L(), eps=1.0)", "a_2": "PGD(L(), eps=1.0)"}, "network units"))
    assert [budget.family for budget in same.values()] == ["a_1", "a_2"]


def test_nested_arguments_do_not_count() -> None:
    attack = SMIA(torch.nn.CrossEntropyLoss(), eps=0.25)
    nested = f"Outer({attack!r}, bounds=(0.0, [1, 2]), eps=0.125)"
    assert budget_of(report({"x": nested}, "network units"), "x")[:2] == ("Outer", 0.125)


def test_a_run_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"run: expected one of \['a'\]; got 'b'"):
        budget_of(report({"a": ""}, "HU"), "b")
