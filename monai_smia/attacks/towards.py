# SPDX-License-Identifier: Apache-2.0
"""`Towards`: any attack, turned towards a clinical goal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks.attack import Attack
from monai_smia.attacks.clinical import ClinicalGoal, ShiftVolume
from monai_smia.attacks.combination import Combination
from monai_smia.attacks.heads import LossFunction, activation_of, main_output
from monai_smia.attacks.hunt import Setting
from monai_smia.attacks.loop import Observer
from monai_smia.attacks.result import AttackResult, GoalResult
from monai_smia.attacks.spacing import Spacing


@dataclass(frozen=True, repr=False, eq=False)
class Towards(Combination):
    r"""An attack that brings about a clinical goal: a lesion gone, a volume changed, a grade crossed.

    .. math:: x' = \operatorname{attack}(f, x, \text{goal.target}(y, f(x))), \qquad
              \text{success} = \text{goal}(f(x'))

    It is called with the ordinary label. The goal starts from what the network sees at the clean image; its target,
    loss and criterion take the place of the attack's, which becomes a targeted one. Voxel sizes come from the affine of
    the image, a `MetaTensor`, unless the goal has a spacing of its own; the head from the attack's loss, unless the
    goal has an activation. Two predictions are made beside the attack's own: at the clean image for the target, at the
    adversarial one to measure.

    Args:
        attack: any attack that follows its loss towards a target (PGD, SMIA, ...), or a combination of such.
        goal: `Erase`, `Insert`, `ShiftVolume` or `CrossGrade`.
        eps, norm: see `Combination`.

    Returns:
        At the call a `GoalResult`: with the goal's quantity before and after, in its unit.

    Raises:
        TypeError, ValueError: at construction, for what is no attack or no goal; at the call as the goal, such as where
            a structure is smaller than what it is to lose, and for an attack on the margin of labels (CW, DeepFool,
            FMN, DDN, DAG, SegPGD, CosPGD) towards a volume.

    Example:
        >>> import torch
        >>> from monai_smia.attacks import BIM, ShiftVolume
        >>> goal = ShiftVolume(0, by=-2.0, spacing=(1.0, 1.0))  # of one channel, mm² in 2-D
        >>> attack = Towards(BIM(torch.nn.BCEWithLogitsLoss(), eps=0.2), goal)
        >>> image = torch.tensor([[[[0.6, 0.65, 0.9, 0.1]]]])
        >>> result = attack(lambda x: x - 0.5, image, (image > 0.5).float())
        >>> result.clean_measured.item(), result.measured.item(), result.unit, result.success.item()
        (3.0, 1.0, 'mm2', True)
    """

    attack: Attack
    goal: ClinicalGoal

    def __post_init__(self) -> None:
        if not isinstance(self.goal, ClinicalGoal):
            raise TypeError(f"goal: expected a ClinicalGoal, such as ShiftVolume; got {type(self.goal).__name__}")
        attack = self.adopt("attack", (self.attack,))[0]
        if not isinstance(attack, Combination):  # the goal takes its place
            attack = dataclasses.replace(attack, criterion=None)
        self._set(attack=attack)
        loss = self.goal.loss(self.loss_function)
        aimed(self.attack, loss, self.goal)  # refuses what it cannot turn
        self._set(loss_function=loss, targeted=True, criterion=self.goal)

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
        query = self.query(network, inferer, dtype, target)
        before = query.judge(setting.image)
        spacing = None
        if setting.spacing is not None and setting.voxel_volumes is not None:
            spacing = Spacing(setting.spacing, setting.voxel_volumes)
        own = self.attack.loss_function
        goal = self.goal.fitted(spacing, activation_of(self.activation, own, main_output(before)))
        attack = aimed(self.attack, goal.loss(own), goal)
        wanted = goal.target(target, before)
        try:
            made = attack._run(network, inferer, setting, wanted, dtype, callback)
        except ValueError as error:
            if isinstance(self.goal, ShiftVolume) and str(error).startswith("target: expected labels"):
                raise ValueError(
                    f"attack: expected one that follows its loss (PGD, SMIA, APGD, ...) towards {self.goal!r}; "
                    f"{type(self.attack).__name__} reads labels, and a volume has none"
                ) from error
            raise
        after = query.judge(made.adversarial.to(setting.image.dtype))
        outcome = {item.name: getattr(made, item.name) for item in dataclasses.fields(AttackResult)}
        outcome["forward_passes"] = made.forward_passes + query.forward_passes
        return GoalResult(
            **outcome,
            clean_measured=goal.measure(before, wanted),
            measured=goal.measure(after, wanted),
            unit=goal.unit,
        )

    def __repr__(self) -> str:
        return f"Towards({self.attack!r}, {self.goal!r}, {self.budget()})"


def aimed(attack: Attack, loss_function: LossFunction, goal: ClinicalGoal) -> Attack:
    """The attack with a goal's loss and criterion, towards a target; of a combination all its members."""
    if isinstance(attack, Combination):
        members = [aimed(member, loss_function, goal) for member in attack.members]
        several = "attacks" in {item.name for item in dataclasses.fields(attack)}
        return dataclasses.replace(attack, **({"attacks": members} if several else {"attack": members[0]}))
    changes: dict[str, Any] = {"loss_function": loss_function, "criterion": goal, "targeted": True}
    fixed = [item.name for item in dataclasses.fields(attack) if item.name in changes and not item.init]
    if fixed:
        raise TypeError(f"attack: expected one with a target; {type(attack).__name__} has no {', '.join(fixed)} to set")
    activation = getattr(goal, "activation", "auto")
    if activation != "auto" and "activation" in {item.name for item in dataclasses.fields(attack) if item.init}:
        changes["activation"] = activation
    return dataclasses.replace(attack, **changes)
