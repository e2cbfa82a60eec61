# SPDX-License-Identifier: Apache-2.0
"""`fitted_attack`: budgets and bounds reach attacks that are made of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from monai_smia.attacks import FGSM, PGD, Attack, EoT, Restarts, WorstOf
from monai_smia.export import Recompression
from monai_smia.export.fitted_attack import fitted_attack, one_eps

LOSS = torch.nn.CrossEntropyLoss()
MAKERS: dict[str, Any] = {
    "plain": lambda **kw: PGD(LOSS, eps=1.0, **kw),
    "worst of a list": lambda **kw: WorstOf([PGD(LOSS, eps=1.0, **kw), FGSM(LOSS, eps=1.0, **kw)]),
    "restarts": lambda **kw: Restarts(PGD(LOSS, eps=1.0, **kw), 2),
    "mean": lambda **kw: EoT(PGD(LOSS, eps=1.0, **kw), Recompression((50, 95)), samples=2),
    "nested": lambda **kw: WorstOf([EoT(PGD(LOSS, eps=1.0, **kw), samples=2), FGSM(LOSS, eps=1.0, **kw)]),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_budget_and_the_bounds_arrive(name: str) -> None:
    attack: Attack = fitted_attack(MAKERS[name](), 3.0, (0.0, 255.0))
    assert one_eps(attack) == 3.0
    assert tuple(float(end) for end in attack.bounds) == (0.0, 255.0)
    image, label = torch.full((1, 1, 6, 5), 254.0), torch.zeros(1, dtype=torch.long)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30, 2))
    result = attack(network, image, label, generator=torch.Generator().manual_seed(0))
    assert float(result.adversarial.max()) <= 255
    assert 1.0 < float((result.adversarial - image).abs().max()) <= 3.0


@pytest.mark.parametrize("name", MAKERS)
def test_own_bounds_are_kept_unless_they_are_of_another_unit(name: str) -> None:
    attack = MAKERS[name](bounds=(-1000.0, 3000.0))
    kept = fitted_attack(attack, 3.0, (0.0, 255.0))
    assert tuple(float(end) for end in kept.bounds) == (-1000.0, 3000.0)
    replaced = fitted_attack(attack, 3.0, (0.0, 255.0), keep=False)
    assert tuple(float(end) for end in replaced.bounds) == (0.0, 255.0)


def test_a_budget_per_channel_is_no_budget_of_a_file() -> None:
    with pytest.raises(ValueError, match="eps: expected one number, physical units"):
        one_eps(PGD(LOSS, eps=torch.tensor([1.0, 2.0])))
