# SPDX-License-Identifier: Apache-2.0
"""`Transfer`: an attack made on one network and scored on another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks.attack import Attack
from monai_smia.attacks.combination import Combination
from monai_smia.attacks.freezing import frozen, unwrap
from monai_smia.attacks.hunt import Setting
from monai_smia.attacks.loop import Observer
from monai_smia.attacks.result import AttackResult


@dataclass(frozen=True, repr=False, eq=False)
class Transfer(Combination):
    r"""An attack made on one network and scored on another, as an adversary does who cannot see the one attacked.

    .. math:: x' = \operatorname{attack}(g, x, y), \qquad \text{scored by } J(f(x'), y)

    f is the network of the call, g the surrogate. The loss, success and clean values of the result are f's; of
    `forward_passes` the last two are f's, all others g's. Iterates and restarts are chosen by g. Both networks are
    predicted through the inferer of the call.

    Args:
        attack: made on the surrogate.
        surrogate: g, a network or any callable from image to prediction, on the image's device. A module is frozen
            for the call and restored.
        eps, norm: see `Combination`.

    Example:
        >>> import torch
        >>> from monai_smia.attacks import FGSM
        >>> attack = Transfer(FGSM(torch.nn.CrossEntropyLoss(), eps=0.1), torch.nn.Flatten())
        >>> attack
        Transfer(FGSM(CrossEntropyLoss(), eps=0.1), Flatten, eps=0.1)
        >>> result = attack(lambda x: 2 * x.flatten(1), torch.tensor([[[[0.55, 0.45]]]]), torch.tensor([0]))
        >>> bool(result.success), int(result.forward_passes), int(result.backward_passes)
        (True, 4, 1)

    Reference: Papernot, McDaniel, Goodfellow, "Transferability in machine learning: from phenomena to black-box attacks
    using adversarial samples", 2016, https://arxiv.org/abs/1605.07277.
    """

    attack: Attack
    surrogate: Callable[..., Any]

    def __post_init__(self) -> None:
        if not callable(self.surrogate):
            raise TypeError(
                f"surrogate: expected a callable from image to prediction; got {type(self.surrogate).__name__}"
            )
        self._set(attack=self.adopt("attack", (self.attack,))[0])

    @property
    def members(self) -> tuple[Attack, ...]:
        return (self.attack,)

    def _run(
        self,
        network: Callable[..., Any],
        inferer: Any,
        setting: Setting,
        target: Any,
        dtype: torch.dtype,
        callback: Observer | None,
    ) -> AttackResult:
        surrogate = unwrap(self.surrogate)
        with frozen(surrogate):
            made = self.attack._run(surrogate, inferer, setting, target, dtype, callback)
        query = self.query(network, inferer, dtype, target)
        before = self.judge(query, setting.image, target)
        after = self.judge(query, made.adversarial.to(setting.image.dtype), target)
        return dataclasses.replace(
            made,
            clean_loss=before.loss,
            loss=after.loss,
            clean_success=before.success,
            success=after.success,
            forward_passes=made.forward_passes + query.forward_passes,
        )

    def __repr__(self) -> str:
        name = getattr(self.surrogate, "__name__", type(self.surrogate).__name__)
        return f"Transfer({self.attack!r}, {name}, {self.budget()})"
