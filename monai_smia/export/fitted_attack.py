# SPDX-License-Identifier: Apache-2.0
"""`fitted_attack`: an attack with the budget and the bounds of a file."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from monai_smia.attacks import Attack


def fitted_attack(attack: Attack, eps: Any, bounds: Any, *, keep: bool = True) -> Attack:
    """The attack with another budget and with bounds, also where it is made of other attacks.

    Args:
        attack: any attack.
        eps: the budget.
        bounds: of the images.
        keep: leave an attack the bounds that it has.
    """
    fitted: Attack = dataclasses.replace(attack, eps=eps)
    return fitted if keep and attack.bounds is not None else _bounded(fitted, bounds)


def one_eps(attack: Attack) -> float:
    """The budget as one number.

    Raises:
        ValueError: for one per sample or channel.
    """
    size = torch.as_tensor(attack.eps)
    if size.numel() != 1:
        raise ValueError(f"eps: expected one number, physical units; got {attack.eps!r}")
    return float(size)


def _bounded(attack: Attack, bounds: Any) -> Attack:
    own = {one.name: one for one in dataclasses.fields(attack)}["bounds"]
    if own.init:
        return dataclasses.replace(attack, bounds=bounds)
    parts = {one.name: getattr(attack, one.name) for one in dataclasses.fields(attack) if one.init}
    changes = {name: _inside(value, bounds) for name, value in parts.items()}
    return dataclasses.replace(attack, **{name: value for name, value in changes.items() if value is not parts[name]})


def _inside(value: Any, bounds: Any) -> Any:
    """Attacks, also in a list, with bounds; anything else as it is."""
    if isinstance(value, Attack):
        return _bounded(value, bounds)
    if isinstance(value, (list, tuple)) and any(isinstance(one, Attack) for one in value):
        return type(value)(_inside(one, bounds) for one in value)
    return value
