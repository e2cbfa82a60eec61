# SPDX-License-Identifier: Apache-2.0
"""`grid_of`: named attacks at budgets in a bundle's own units."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from monai_smia.attacks import Attack
from monai_smia.bundle.eps import Budget
from monai_smia.bundle.grid import attack_grid
from monai_smia.bundle.intensity_map import PERCENT
from monai_smia.bundle.units import NETWORK, IntensityReading


@dataclasses.dataclass(frozen=True)
class BudgetGrid:
    """Attacks by name, and those of them whose eps is relative to each image.

    Attributes:
        attacks: ``<name>_<budget>`` to attack.
        relative: the names whose budget can only be converted with the image at hand.
        reading: how the network's input relates to physical intensities.
    """

    attacks: dict[str, Attack]
    relative: dict[str, Budget]
    reading: IntensityReading

    def fitted(self, name: str, attack: Attack, image: torch.Tensor) -> Attack:
        """The attack for a batch ``BCHW[D]``."""
        if name not in self.relative:
            return attack
        size = self.relative[name].to_network(self.reading, image)
        return dataclasses.replace(attack, eps=size[:, None] if isinstance(size, torch.Tensor) else size)

    def described(self) -> dict[str, str]:
        """Each attack in text, with a relative budget in words."""
        words = {name: repr(attack) for name, attack in self.attacks.items()}
        for name, budget in self.relative.items():
            words[name] = words[name].replace("eps=0.0", f"eps='{budget.label} of each image'")
        return words


def grid_of(
    names: Sequence[str],
    budgets: Sequence[Budget],
    loss_function: Any,
    reading: IntensityReading,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    **shared: Any,
) -> BudgetGrid:
    """One attack for every name and budget, named ``<name>_<budget>`` in the reading's default unit.

    Args:
        names: class names in `monai_smia.attacks`.
        budgets: eps with units.
        loss_function: given to every attack.
        reading: converts the budgets.
        options, shared: as in `attack_grid`; what is ``None`` is left to the attack's default.

    Raises:
        TypeError, ValueError: as `attack_grid` and `Budget.to_network`.
    """
    shared = {key: value for key, value in shared.items() if value is not None}
    attacks: dict[str, Attack] = {}
    relative: dict[str, Budget] = {}
    for budget in budgets:
        suffix = label_of(budget, reading)
        per_image = is_relative(budget, reading)
        size: Any = 0.0 if per_image else budget.to_network(reading)
        size = size.tolist() if isinstance(size, torch.Tensor) else size
        for name, attack in attack_grid(names, [1.0], loss_function, options=options, **shared).items():
            key = f"{name.rsplit('_', 1)[0]}_{suffix}"
            if key in attacks:
                raise ValueError(f"eps: expected each budget once; got {budget.label} twice")
            attacks[key] = dataclasses.replace(attack, eps=size)
            if per_image:
                relative[key] = budget
    return BudgetGrid(attacks, relative, reading)


def label_of(budget: Budget, reading: IntensityReading) -> str:
    """The budget in a run's name: a number and the report's unit, which for network units is none."""
    known = budget.in_unit(reading)
    return f"{known.value:g}" + ("" if known.unit == NETWORK else known.unit)


def is_relative(budget: Budget, reading: IntensityReading) -> bool:
    """Whether the budget is a percentage of each image's own range, which no transform brings to one scale."""
    return budget.unit == PERCENT and (reading.scale is None or reading.scale.unit != PERCENT)
