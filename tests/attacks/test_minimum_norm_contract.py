"""The minimum-norm attacks against every clause of the contract, on samples that the network gets right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import contract
import pytest
import torch

from monai_smia.attacks import CW, DDN, FMN, Attack, DeepFool

ATTACKS: dict[str, tuple[type[Attack], dict[str, Any]]] = {
    "FMN": (FMN, {"steps": 4}),
    "DDN": (DDN, {"steps": 4}),
    "DeepFool": (DeepFool, {"steps": 3}),
    "CW": (CW, {"steps": 4, "searches": 2, "initial_c": 1.0}),
}
TASKS = ("classification", "multilabel", "segmentation")
WANTS = {"budget_and_bounds": {math.inf, 2.0, 1.0}, "configuration": {math.inf}}
"""Norms that a clause asks for by name; without them it is kept below, or by `test_arguments`, in those there are."""


def maker(name: str) -> Callable[..., Attack]:
    """The attack with few steps; a norm that it lacks becomes 2."""
    kind, few = ATTACKS[name]

    def make(loss: Any, **arguments: Any) -> Attack:
        norm = float(arguments.get("norm", 2))
        return kind(loss, **{**few, **arguments, "norm": norm if norm in kind.norms else 2})

    return make


class Right(contract.Case):
    """A case whose labels are the network's own decisions: a smallest change of zero would be right for others."""

    def target(self, seed: int = 2) -> torch.Tensor:
        with torch.no_grad():
            scores = self.network().eval()(self.image(seed - 1))
        if self.task == "multilabel":
            return (scores > 0).float()
        return scores.argmax(1, keepdim=self.dense)


@pytest.mark.parametrize("clause", contract.CHECKS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", ATTACKS)
def test_contract(name: str, rank: int, task: str, clause: str) -> None:
    lacking = WANTS.get(clause, set()) - set(ATTACKS[name][0].norms)
    if lacking:
        pytest.skip(f"{name} has no norm {lacking}: the clause is kept in the norms it has, by a test of its own")
    contract.CHECKS[clause](Right(maker(name), rank, task))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", ATTACKS)
def test_budget_and_bounds(name: str, rank: int, task: str) -> None:
    """In the norms that the attack has, with radii per sample and per channel, of which one is 0."""
    case = Right(maker(name), rank, task, batch=2, channels=4)
    image = case.image()
    for norm in ATTACKS[name][0].norms:
        result = case.run(attack=case.attack(eps=[[0.05], [0.2]], norm=norm))
        size = torch.linalg.vector_norm((result.adversarial - image).flatten(1), ord=norm, dim=1)
        assert (size <= torch.tensor([0.05, 0.2]) * (1 + 1e-5)).all()
        assert (size > 0).all()
        assert ((result.adversarial >= contract.BOUNDS[0]) & (result.adversarial <= contract.BOUNDS[1])).all()
        radii = torch.tensor([0.0, 0.05, 0.1, 0.2])
        result = case.run(attack=case.attack(eps=radii[None], norm=norm))
        size = torch.linalg.vector_norm((result.adversarial - image).flatten(2), ord=norm, dim=2)
        assert (size <= radii * (1 + 1e-5)).all()
        assert (size[:, 0] == 0).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_sample_that_is_wrong_already_is_not_changed(name: str) -> None:
    """With labels at random, as every other attack is given them: no change exactly where nothing was to be done."""
    case = contract.Case(maker(name), 2, "classification", batch=8)
    result = case.run()
    moved = (result.adversarial != case.image()).flatten(1).any(1)
    assert torch.equal(moved, ~result.clean_success)
    assert 0 < int(moved.sum()) < 8
