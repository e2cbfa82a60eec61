# SPDX-License-Identifier: Apache-2.0
"""`attack_grid`: several attacks at several budgets, from names and numbers in a configuration file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import monai_smia.attacks
from monai_smia.attacks import Attack
from monai_smia.intensity import IntensityScale


def attack_grid(
    names: Sequence[str],
    eps: Sequence[float],
    loss_function: Any,
    *,
    intensity: IntensityScale | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    **shared: Any,
) -> dict[str, Attack]:
    """One attack for every name and budget, named ``<name>_<eps><unit>``.

    Args:
        names: class names in `monai_smia.attacks`.
        eps: budgets, in the unit of `intensity`, or in network units where there is none.
        loss_function: given to every attack.
        intensity: converts the budgets, and gives the bounds unless `shared` does.
        options: name to arguments of that attack alone.
        shared: arguments of every attack that has them (`GaussianNoise` has no ``steps``).

    Raises:
        ValueError: for a name that is no attack, or an option for an attack that is not in `names`.

    Example:
        >>> import torch
        >>> hounsfield = IntensityScale(-1000, 400, clip=True)
        >>> grid = attack_grid(["PGD"], [7, 14], torch.nn.CrossEntropyLoss(), intensity=hounsfield, steps=5)
        >>> {name: attack.eps for name, attack in grid.items()}
        {'PGD_7HU': 0.005, 'PGD_14HU': 0.01}
    """
    options = options or {}
    stray = set(options) - set(names)
    if stray:
        raise ValueError(f"options: expected only names among {list(names)}; got {sorted(stray)}")
    if intensity is not None:
        shared = {"bounds": intensity.bounds, **shared}
    grid: dict[str, Attack] = {}
    for name in names:
        kind: Any = getattr(monai_smia.attacks, name, None)
        if not _is_attack(kind):
            known = [key for key in monai_smia.attacks.__all__ if _is_attack(getattr(monai_smia.attacks, key))]
            raise ValueError(f"names: expected names among {known}; got {name!r}")
        fields = {field.name for field in dataclasses.fields(kind)}
        arguments = {key: value for key, value in shared.items() if key in fields} | dict(options.get(name, {}))
        for size in eps:
            unit = "" if intensity is None else intensity.unit
            network_eps = size if intensity is None else intensity.to_network(size)
            grid[f"{name}_{size:g}{unit}"] = kind(loss_function, eps=network_eps, **arguments)
    return grid


def _is_attack(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Attack) and not getattr(value, "__abstractmethods__", None)
