# SPDX-License-Identifier: Apache-2.0
"""Wrong types, NaN, infinities, huge and tiny numbers: an error that names the argument, or a result in its budget."""

# ruff: noqa: PT017 - an error and a result are both right answers, so nothing has to raise

from __future__ import annotations

import importlib
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from networks import tiny_network
from torch import nn

import monai_smia.attacks as attacks
from monai_smia.attacks import Attack, LpBall
from monai_smia.attacks.universal import UniversalPerturbation
from monai_smia.bundle import Budget, parse_eps
from monai_smia.inferers import GradientSlidingWindowInferer

LOSS = nn.CrossEntropyLoss()
IMAGE = torch.rand((2, 1, 5, 4), generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1])
NETWORK = tiny_network(2, dense=False).eval()
MODULES = ("attacks", "inferers", "losses", "metrics", "handlers", "transforms", "intensity")
NAMES = Path(__file__).with_name("public_names.txt").read_text().split()

HOSTILE = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 1e-308, 1e39, 1e-46, 0, -1, 2**70, True, None]),
    st.sampled_from(["", "maybe", "inf", "nan", b"x", [], {}, (), (math.nan,), [[]], object, 1j]),
    st.sampled_from([torch.tensor(math.nan), torch.tensor([0.1, math.inf]), torch.zeros(0), range(3)]),
    st.floats(width=64),
    st.integers(-3, 3),
)
"""Whole numbers stay small: a million steps are slow, not wrong."""

GIVEN: dict[str, Any] = {
    "loss_function": LOSS,
    "eps": 0.1,
    "perturbation": UniversalPerturbation(torch.full((1, 5, 4), 0.1), eps=0.1),
    "a_min": 0.0,
    "a_max": 255.0,
    "roi_size": (3, 3),
    "norm": 2,
    "sigma": 1.0,
    "rate": 0.9,
    "probability": 0.5,
    "fill": 0.0,
    "factor": 1.0,
    "decay": 1.0,
    "structure": 1,
    "by": 0.3,
    "attack": attacks.FGSM(LOSS, eps=0.1),
    "attacks": [attacks.FGSM(LOSS, eps=0.1)],
    "keys": "image",
    "transform": attacks.RandomResize(0.7, 1.0, 0.0),
}
FEW = {"steps": 2, "queries": 3, "searches": 2, "neighbours": 1, "kernel_size": 3, "block_size": 2, "samples": 1}


def built_from() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Every public class that can be built from the arguments above, and those."""
    found = {}
    for name in NAMES:
        module, _, attribute = name.rpartition(".")
        if module.removeprefix("monai_smia.") not in MODULES:
            continue
        kind = getattr(importlib.import_module(module), attribute)
        if not inspect.isclass(kind) or inspect.isabstract(kind):
            continue
        parameters = inspect.signature(kind).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        arguments = {p.name: GIVEN[p.name] for p in named if p.default is p.empty and p.name in GIVEN}
        arguments |= {p.name: FEW[p.name] for p in named if p.name in FEW}
        if attribute == "CW":
            arguments["bounds"] = (0.0, 1.0)
        try:
            kind(**arguments)
        except (TypeError, ValueError, NotImplementedError):
            continue
        found[name] = kind, {**arguments, **{p.name: arguments.get(p.name, p.default) for p in named}}
    return found


BUILT = built_from()
ATTACKS = sorted(
    name
    for name, (kind, _) in BUILT.items()
    if issubclass(kind, Attack)
    and any(vars(Attack)[part] is not getattr(kind, part) for part in ("compose", "search", "_run"))
)
BASES = {name for name, (kind, _) in BUILT.items() if issubclass(kind, Attack)} - set(ATTACKS)


def quick() -> Any:
    """The same few examples in every run."""
    return settings(
        derandomize=True,
        max_examples=25,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def test_the_attacks_are_among_what_is_built() -> None:
    assert len(ATTACKS) >= 25
    assert {"monai_smia.attacks.PGD", "monai_smia.attacks.CW", "monai_smia.attacks.SMIA"} <= set(ATTACKS)
    assert "monai_smia.intensity.IntensityScale" in BUILT


def inside(attack: Attack, adversarial: torch.Tensor) -> bool:
    """Finite, and for the attacks whose budget is a ball of the image inside it."""
    change = (adversarial - IMAGE).double().flatten(1)
    if not bool(adversarial.isfinite().all()):
        return False
    if type(attack).__name__ in ("VAFA", "BiasField", "SAP"):
        return True
    eps = torch.as_tensor(attack.eps, dtype=torch.float64)
    limit = eps.sum() if float(attack.norm) != math.inf else eps.max()
    size = torch.linalg.vector_norm(change, ord=float(attack.norm), dim=1)
    return bool((size <= limit * (1 + 1e-5) + 1e-5).all())


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_refuses_by_name_or_keeps_its_budget(name: str) -> None:
    kind, base = BUILT[name]
    needed = {key: value for key, value in base.items() if key in GIVEN or key in FEW or key == "bounds"}

    @quick()
    @given(argument=st.sampled_from(sorted(set(base) - {"callback"})), value=HOSTILE)
    @example(argument="eps", value=b"x")
    @example(argument="eps", value=math.nan)
    @example(argument="targeted" if "targeted" in base else "eps", value="maybe")
    @example(argument="step_size" if "step_size" in base else "eps", value=1e308)
    def check(argument: str, value: Any) -> None:
        try:
            attack = kind(**{**needed, argument: value})
        except (TypeError, ValueError) as error:
            assert argument in str(error), (argument, value, error)
            return
        try:
            result = attack(NETWORK, IMAGE, TARGET)
        except (TypeError, ValueError) as error:
            assert argument in str(error), (argument, value, error)
            return
        assert inside(attack, result.adversarial), (argument, value)

    check()


@quick()
@given(value=HOSTILE, argument=st.sampled_from(["a_min", "a_max", "b_min", "b_max", "clip", "unit"]))
def test_an_intensity_scale_refuses_by_name_or_converts(value: Any, argument: str) -> None:
    kind, _ = BUILT["monai_smia.intensity.IntensityScale"]
    try:
        scale = kind(**{"a_min": -1000.0, "a_max": 400.0, argument: value})
    except (TypeError, ValueError) as error:
        assert argument in str(error)
        return
    assert math.isfinite(scale.to_network(1.0))
    assert math.isfinite(scale.to_physical(1.0))


@quick()
@given(
    written=st.one_of(
        HOSTILE,
        st.builds(
            lambda number, unit: f"{number}{unit}", st.floats(), st.sampled_from(["", "HU", "%", "SD", "furlong"])
        ),
        st.builds(lambda a, b: f"{a}/{b}", st.floats(), st.floats()),
        st.text(max_size=6),
    )
)
@example("1e-400HU")
@example("1e400HU")
@example(b"x")
def test_the_budget_parser_refuses_by_name_or_gives_finite_budgets(written: Any) -> None:
    try:
        budgets = parse_eps(written)
    except (TypeError, ValueError) as error:
        assert "eps" in str(error)
        return
    for budget in budgets:
        assert isinstance(budget, Budget)
        assert math.isfinite(budget.value)
        assert budget.value >= 0


@quick()
@given(value=HOSTILE, argument=st.sampled_from(["eps", "norm"]), norm=st.sampled_from([math.inf, 2.0, 1.0]))
def test_a_ball_refuses_by_name_or_projects_into_itself(value: Any, argument: str, norm: float) -> None:
    try:
        ball = LpBall(**{"eps": 0.1, "norm": norm, argument: value})
    except (TypeError, ValueError) as error:
        assert argument in str(error)
        return
    if isinstance(ball.eps, torch.Tensor):
        return  # what the attacks make, of numbers that are checked
    change = (ball.project(IMAGE, IMAGE + 1.0) - IMAGE).flatten(1)
    assert bool(change.isfinite().all())
    assert bool((torch.linalg.vector_norm(change, ord=ball.norm, dim=1) <= ball.eps * (1 + 1e-5) + 1e-5).all())


@pytest.mark.parametrize("name", sorted(set(BUILT) - set(ATTACKS) - BASES))
def test_no_constructor_fails_in_any_other_way(name: str) -> None:
    """A `TypeError` or `ValueError`, or an object."""
    kind, base = BUILT[name]
    needed = {key: value for key, value in base.items() if key in GIVEN or key in FEW}
    base = {key: value for key, value in base.items() if key != "roi_weight_map"}  # MONAI's to check
    if not base:
        return

    @quick()
    @given(argument=st.sampled_from(sorted(base)), value=HOSTILE)
    def check(argument: str, value: Any) -> None:
        try:
            kind(**{**needed, argument: value})
        except (TypeError, ValueError):
            return

    check()


@quick()
@given(value=HOSTILE, argument=st.sampled_from(["roi_size", "sw_batch_size", "overlap", "mode", "sigma_scale"]))
def test_a_window_inferer_refuses_or_predicts_finite_numbers(value: Any, argument: str) -> None:
    network = tiny_network(2, dense=True).eval()
    try:
        inferer = GradientSlidingWindowInferer(**{"roi_size": (3, 3), argument: value})
        with torch.no_grad():
            prediction = inferer(IMAGE, network)
    except (TypeError, ValueError):
        return
    assert bool(prediction.isfinite().all())
