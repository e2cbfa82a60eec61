# SPDX-License-Identifier: Apache-2.0
"""`Combination`: what attacks made of other attacks share."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.argument_kinds import check_kinds
from monai_smia.attacks.attack import Attack, Verdict
from monai_smia.attacks.criteria import Criterion, default_criterion
from monai_smia.attacks.heads import LossFunction
from monai_smia.attacks.losses import per_sample
from monai_smia.attacks.query import Query

SHARED = ("eps", "norm", "bounds", "targeted")


@dataclass(frozen=True, repr=False, eq=False)
class Combination(Attack, ABC):
    """Base of the attacks made of others, whose loss, budget and criterion are those of the first.

    Args:
        eps, norm: of all of them; ``None`` leaves them theirs. This is how a schedule of the budget reaches them; a
            `step_size` that was given as a number stays that number.

    Raises:
        TypeError, ValueError: at construction, for what is no attack, and for attacks that differ in eps, norm, bounds
            or targeted.
    """

    loss_function: LossFunction = field(init=False)
    eps: Any = field(default=None, kw_only=True)
    norm: Any = field(default=None, kw_only=True)
    bounds: Any = field(init=False, kw_only=True)
    targeted: bool = field(init=False, kw_only=True)
    restarts: int = field(init=False, kw_only=True)
    criterion: Criterion | None = field(init=False, kw_only=True)
    amp: torch.dtype | str | None = field(init=False, kw_only=True)

    @property
    @abstractmethod
    def members(self) -> tuple[Attack, ...]:
        """The attacks, in the order in which they are made."""

    @property
    def is_random(self) -> bool:
        return any(attack.is_random for attack in self.members)

    @property
    def activation(self) -> str:
        """The head that the verdict reads, the first attack's."""
        return str(getattr(self.members[0], "activation", "auto"))

    def adopt(self, name: str, attacks: Any) -> tuple[Attack, ...]:
        """The attacks with the budget given, their common arguments stored here."""
        check_kinds(self)
        for attack in attacks:
            if not isinstance(attack, Attack):
                raise TypeError(f"{name}: expected an Attack; got {type(attack).__name__}")
            if hasattr(attack, "goal"):
                raise TypeError(f"{name}: {type(attack).__name__} makes its own target; put it around, not inside")
        given = {key: getattr(self, key) for key in ("eps", "norm") if getattr(self, key) is not None}
        attacks = tuple(dataclasses.replace(attack, **given) if given else attack for attack in attacks)
        first = attacks[0]
        for key in SHARED:
            found = [getattr(attack, key) for attack in attacks]
            if any(value != found[0] for value in found):
                raise ValueError(f"{name}: expected the same {key} in all of them; got {found}")
        self._set(**{key: getattr(first, key) for key in (*SHARED, "loss_function", "criterion", "amp")}, restarts=1)
        return attacks

    def judge(self, query: Query, image: torch.Tensor, target: Any) -> Verdict:
        """How the network judges an image by the first attack's loss and criterion; one pass."""
        prediction = query.judge(image)
        criterion = self.criterion or default_criterion(self.loss_function, prediction, self.targeted, self.activation)
        with torch.no_grad():
            loss = per_sample(self.loss_function, prediction, target, len(image))
        return Verdict(image, loss, criterion(prediction, target))

    def query(self, network: Callable[..., Any], inferer: Any, dtype: torch.dtype, target: Any) -> Query:
        def check(prediction: Any) -> None:
            checks.check_target(self.loss_function, prediction, target, self.activation, self.criterion)

        return Query(network, inferer, checks.as_amp(self.amp), dtype, check)

    def budget(self) -> str:
        return f"eps={self.eps!r}" + ("" if self.norm == torch.inf else f", norm={self.norm!r}")
