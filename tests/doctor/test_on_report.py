"""Reports made by hand, each with one thing wrong, and sound ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
from doctor_networks import BOUNDS, classifier

from monai_smia import attacks
from monai_smia.doctor import diagnose_report
from monai_smia.doctor.on_report import OVERDRAWN
from monai_smia.metrics import compute_perturbation_norm
from monai_smia.reports import RobustnessReport

CASES = 8
ROW = {"clean_loss": 0.1, "clean_success": False, "success": False, "nonfinite_gradients": 0, "largest_change": 0.1}
PGD = "PGD(CrossEntropyLoss(), eps=0.1, bounds=(0.0, 1.0))"
FGSM = "FGSM(CrossEntropyLoss(), eps=0.1, bounds=(0.0, 1.0))"
NOISE = "GaussianNoise(CrossEntropyLoss(), eps=0.1, bounds=(0.0, 1.0))"
SQUARE = "Square(CrossEntropyLoss(), eps=0.1, bounds=(0.0, 1.0))"
TRANSFER = "Transfer(PGD(CrossEntropyLoss(), eps=0.1, bounds=(0.0, 1.0)), UNet, eps=0.1)"

Runs = dict[str, tuple[str, dict[str, Any]]]


def report(runs: Runs, odd: int = CASES, unit: str = "network units") -> RobustnessReport:
    """Runs by name: what the attack was, and what is special in the first `odd` cases of it; the first run is best."""
    rows = [
        {"attack": run, "case": f"case_{i}", **ROW, "loss": 0.3 if place else 0.5, **(values if i < odd else {})}
        for place, (run, (_, values)) in enumerate(runs.items())
        for i in range(CASES)
    ]
    return RobustnessReport({}, tuple(rows), {run: text for run, (text, _) in runs.items()}, unit)


def checks(runs: Runs, **keywords: Any) -> list[str]:
    return [finding.check for finding in diagnose_report(report(runs, **keywords))]


def test_a_sound_report_raises_nothing() -> None:
    weak = {"loss": 0.4}
    runs = {"pgd": (PGD, {}), "fgsm": (FGSM, weak), "noise": (NOISE, {"loss": 0.11}), "square": (SQUARE, weak)}
    assert checks({**runs, "transfer": (TRANSFER, weak)}) == []


@pytest.mark.parametrize(
    ("text", "loss", "check"),
    [
        (FGSM, 0.6, "one_step_beats"),
        (NOISE, 0.45, "noise_as_strong"),
        (SQUARE, 0.6, "black_box_beats"),
        (TRANSFER, 0.6, "transfer_beats"),
    ],
)
def test_a_weaker_adversary_that_comes_further_is_named(text: str, loss: float, check: str) -> None:
    runs = {"pgd": (PGD, {}), "other": (text, {"loss": loss})}
    assert checks(runs) == [check]
    # one case of eight is no finding, two are a quarter
    assert checks(runs, odd=1) == []
    assert checks(runs, odd=2) == [check]
    # nothing to doubt where the attack succeeded, and nothing to compare at another budget
    assert checks({**runs, "pgd": (PGD, {"success": True})}) == []
    half = {"loss": loss, "largest_change": 0.05}
    assert checks({"pgd": (PGD, {}), "other": (text.replace("eps=0.1", "eps=0.05"), half)}) == []


def test_the_strongest_of_several_attacks_counts() -> None:
    runs = {"pgd": (PGD, {}), "apgd": (PGD.replace("PGD", "APGD"), {"loss": 0.7}), "fgsm": (FGSM, {"loss": 0.6})}
    assert checks(runs) == []


def test_a_smooth_attack_may_lose_to_one_step() -> None:
    assert checks({"sap": (PGD.replace("PGD", "SAP"), {"loss": 0.2}), "fgsm": (FGSM, {"loss": 0.6})}) == []


def test_a_targeted_attack_lowers_its_loss() -> None:
    def pair(loss: float) -> Runs:
        ours, theirs = ({"clean_loss": 2.0, "loss": value} for value in (1.0, loss))
        return {"pgd": (PGD[:-1] + ", targeted=True)", ours), "fgsm": (FGSM[:-1] + ", targeted=True)", theirs)}

    assert checks(pair(1.5)) == []
    assert checks(pair(0.5)) == ["one_step_beats"]


def test_changes_beyond_the_budget_are_named_with_their_size() -> None:
    (finding,) = diagnose_report(report({"pgd": (PGD, {"largest_change": 0.15})}, odd=1))
    assert finding.check == "budget"
    assert finding.seen == "pgd: changes reach 0.15 network units at a budget of 0.1, in 1 of 8 cases."
    assert checks({"pgd": (PGD, {"largest_change": 0.1 * (1 + OVERDRAWN / 2)})}) == []
    assert checks({"PGD_14HU": (PGD, {"largest_change": 20.0})}, unit="HU") == ["budget"]
    assert checks({"PGD_14HU": (PGD, {"largest_change": 14.0})}, unit="HU") == []
    assert checks({"l2": (PGD[:-1] + ", norm=2.0)", {"largest_change": 0.09, "l2_change": 0.2})}) == ["budget"]
    assert checks({"field": (PGD.replace("PGD", "BiasField"), {"largest_change": 0.5})}) == []


def test_gradients_that_were_not_finite_are_counted() -> None:
    (finding,) = diagnose_report(report({"pgd": (PGD, {"nonfinite_gradients": 3})}, odd=2))
    assert finding.seen == "pgd: 6 gradients held NaN or infinity, in 2 of 8 cases."


def test_a_saturated_network_that_is_reported_as_robust_is_named() -> None:
    still = {"clean_loss": 0.0, "loss": 0.0}
    (finding,) = diagnose_report(report({"pgd": (PGD, still), "fgsm": (FGSM, still)}, odd=3))
    assert (finding.check, finding.severity) == ("loss_unmoved", "error")
    assert finding.seen == (
        "pgd: the loss under attack is exactly the clean one at 3 of 8 cases that count as robust; "
        "it is exactly 0 at 3."
    )
    assert checks({"pgd": (PGD, still)}, odd=1) == []
    assert checks({"pgd": (PGD, {**still, "success": True})}) == []
    assert checks({"noise": (NOISE, still)}) == []  # noise may well change nothing
    assert checks({"pgd": (PGD.replace("0.1", "0.0"), {**still, "largest_change": 0.0})}) == []


def test_a_network_that_is_wrong_before_the_attack_is_named_once() -> None:
    wrong = {"clean_success": True, "success": True}
    assert checks({"pgd": (PGD, wrong), "fgsm": (FGSM, wrong)}, odd=5) == ["wrong_at_clean"]
    assert checks({"pgd": (PGD, wrong), "fgsm": (FGSM, wrong)}, odd=4) == []


def test_robustness_that_does_not_fall_with_the_budget_is_named() -> None:
    def ladder(*losses: float, **last: Any) -> list[str]:
        sizes = [0.025 * 2**i for i in range(len(losses))]
        texts = [f"PGD(CrossEntropyLoss(), eps={size})" for size in sizes]
        rows: list[dict[str, Any]] = [{"loss": x, "largest_change": s} for x, s in zip(losses, sizes, strict=True)]
        rows[-1].update(last)
        return checks({f"run{i}": pair for i, pair in enumerate(zip(texts, rows, strict=True))})

    assert ladder(0.2, 0.3, 0.5) == []
    assert ladder(0.5, 0.2) == ["not_falling_with_eps"]
    assert ladder(0.5, 0.5) == []  # twice the budget may find nothing more
    assert ladder(0.5, 0.5, 0.5) == ["not_falling_with_eps"]  # four times must
    assert ladder(0.5, 0.5, 0.5, success=True) == []


def test_more_steps_that_come_less_far_are_named() -> None:
    few, many = PGD[:-1] + ", steps=20)", PGD[:-1] + ", steps=40)"
    assert checks({"few": (few, {"loss": 0.5}), "many": (many, {"loss": 0.6})}) == []
    assert checks({"few": (few, {"loss": 0.5}), "many": (many, {"loss": 0.2})}) == ["worse_with_steps"]


def test_rows_without_numbers_are_passed_over() -> None:
    nothing = {"loss": math.nan, "clean_loss": None, "largest_change": None, "nonfinite_gradients": None}
    assert checks({"pgd": (PGD, nothing), "fgsm": (FGSM, {"loss": 0.6})}) == []
    assert diagnose_report(RobustnessReport({"clean": {"dice": 0.9}}, (), {"pgd": PGD}, "HU")) == ()


def test_real_attacks_on_a_sound_network_raise_nothing() -> None:
    patient = classifier(0)
    kinds = (attacks.PGD, attacks.FGSM, attacks.GaussianNoise)
    named = {f"{k.__name__}_{eps}": k(patient.loss, eps=eps, bounds=BOUNDS) for k in kinds for eps in (0.01, 0.03)}
    named["Square"] = attacks.Square(patient.loss, eps=0.03, bounds=BOUNDS, queries=30)
    columns = ("clean_loss", "loss", "clean_success", "success", "nonfinite_gradients")
    rows = []
    for name, attack in named.items():
        result = attack(patient.network, patient.image, patient.target)
        size = compute_perturbation_norm(patient.image, result.adversarial)
        for i in range(len(patient.image)):
            values = {column: getattr(result, column)[i].item() for column in columns}
            rows.append({"attack": name, "case": str(i), **values, "largest_change": float(size[i])})
    texts = {name: repr(attack) for name, attack in named.items()}
    assert diagnose_report(RobustnessReport({}, tuple(rows), texts, "network units")) == ()
