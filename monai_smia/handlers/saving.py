# SPDX-License-Identifier: Apache-2.0
"""`save_cases`: the attacked cases of a batch, one by one, to what writes them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

from monai.data import decollate_batch

from monai_smia.attacks import Attack, AttackResult


class CaseSaver(Protocol):
    """What `SaveAdversariald` is to a handler."""

    def save(self, data: Mapping[Hashable, Any], attack: Attack | None, seed: int, **numbers: float) -> Any:
        """Write the adversarial images of one item."""

    def under(self, name: str) -> CaseSaver:
        """The same into a folder of its own."""


def check_saver(save: Any) -> None:
    """What can save cases, or nothing.

    Raises:
        TypeError: naming the argument.
    """
    if save is not None and not (callable(getattr(save, "save", None)) and callable(getattr(save, "under", None))):
        raise TypeError(f"save: expected a SaveAdversariald or None; got {type(save).__name__}")


def save_cases(
    save: CaseSaver, batch: Any, result: AttackResult, attack: Attack, seed: int, attacked: Sequence[int] | None = None
) -> None:
    """Hand on the attacked cases of an adversarial batch.

    Args:
        save: what writes them.
        batch: as `attack_batch` gives it, a dictionary.
        result: of the attack.
        attack, seed: what made it.
        attacked: the indices of the samples in `result`; ``None`` for all.

    Raises:
        TypeError: for a batch that is no dictionary, which does not say its files.
    """
    if not isinstance(batch, dict):
        raise TypeError(f"save: expected batches that are dictionaries; got {type(batch).__name__}")
    items = decollate_batch(batch)
    for place, i in enumerate(range(len(items)) if attacked is None else attacked):
        numbers = {"clean_loss": float(result.clean_loss[place]), "loss": float(result.loss[place])}
        save.save(items[i], attack, seed, **numbers)
