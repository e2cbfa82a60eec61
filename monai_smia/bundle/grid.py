# SPDX-License-Identifier: Apache-2.0
"""`attack_grid`: several attacks at several budgets, from names and numbers in a configuration file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import monai_smia.attacks
from monai_smia.attacks import Attack, Towards
from monai_smia.attacks.argument_kinds import did_you_mean
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
        options: name to arguments of that attack alone; among them ``goal``, a `ClinicalGoal`, which turns the attack
            towards it, see `Towards`.
        shared: arguments of every attack that has them (`GaussianNoise` has no ``steps``).

    Raises:
        TypeError: for a shared argument that no attack has.
        ValueError: for a name that is no attack, an option for an attack that is not in `names`, or two entries of the
            same name.

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
    known = known_attacks()
    unknown = set(shared) - {field for fields in known.values() for field in fields}
    if unknown:
        raise TypeError(f"shared: expected arguments of attacks; no attack has {sorted(unknown)}")
    if intensity is not None:
        shared = {"bounds": intensity.bounds, **shared}
    grid: dict[str, Attack] = {}
    for name in names:
        if name not in known:
            raise ValueError(f"names: expected names of attacks; got {name!r}{did_you_mean(name, sorted(known))}")
        kind: Any = getattr(monai_smia.attacks, name)
        arguments = {key: value for key, value in shared.items() if key in known[name]} | dict(options.get(name, {}))
        for size in eps:
            unit = "" if intensity is None else intensity.unit
            network_eps = size if intensity is None else intensity.to_network(size)
            key = f"{name}_{size:g}{unit}"
            if key in grid:
                raise ValueError(f"names, eps: expected each once; got {key!r} twice")
            grid[key] = _built(kind, loss_function, eps=network_eps, **arguments)
    return grid


def known_attacks() -> dict[str, set[str]]:
    """The arguments of every attack that can be built."""
    kinds = {name: getattr(monai_smia.attacks, name) for name in monai_smia.attacks.__all__}
    return {
        name: {field.name for field in dataclasses.fields(kind)}
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, Attack) and _made_of_a_loss(kind)
    }


def _built(kind: Any, loss_function: Any, *, goal: Any = None, **arguments: Any) -> Attack:
    """An attack, turned towards its clinical goal where it is given one."""
    attack: Attack = kind(loss_function, **arguments)
    return attack if goal is None else Towards(attack, goal)


def _made_of_a_loss(kind: Any) -> bool:
    """Whether a loss and an eps are all that an attack needs; no base class, and no combination of attacks."""
    written = any(getattr(kind, name) is not getattr(Attack, name) for name in ("compose", "search", "_run"))
    if getattr(kind, "__abstractmethods__", None) or not written:
        return False
    needed = {field.name for field in dataclasses.fields(kind) if field.init and _required(field)}
    return "loss_function" in {field.name for field in dataclasses.fields(kind)} and needed <= {"loss_function", "eps"}


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
