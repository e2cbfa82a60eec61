# SPDX-License-Identifier: Apache-2.0
"""The doctor's part in an evaluation: the network on its first batch, then the finished report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from monai_smia.attacks import Attack, AttackResult
from monai_smia.doctor import Finding, diagnose, diagnose_report
from monai_smia.handlers.batch import autocast_of, image_of
from monai_smia.inferers import gradient_inferer
from monai_smia.reports import RobustnessReport

PREFERRED = ("APGD", "PGD", "BIM", "MIFGSM", "NIFGSM", "SegPGD", "CosPGD")
"""Attacks that do nothing but raise the loss by gradients; the doctor can compare others with them."""


def doubted(attacks: Mapping[str, Attack]) -> str | None:
    """The attack whose failures are examined: of the smallest budget, where there are most; ``None`` without one."""
    sizes = {name: _size(attack) for name, attack in attacks.items()}
    usable = [name for name, size in sizes.items() if 0 < size < math.inf]

    def rank(name: str) -> tuple[bool, float, int]:
        kind = type(attacks[name]).__name__
        plain = kind in PREFERRED
        return not plain, sizes[name], PREFERRED.index(kind) if plain else 0

    return min(usable, key=rank, default=None)


def examined(
    engine: Any,
    attack: Attack | None,
    batch: Any,
    adversarial: torch.Tensor | None,
    *,
    image_key: str,
    mask_key: str | None,
    progress: bool,
) -> tuple[Finding, ...]:
    """What `diagnose` says of the engine's network on a clean batch, or a note that says why it says nothing.

    Args:
        engine: its network, ``prepare_batch``, inferer and autocast are used.
        attack: that of `doubted`.
        batch: as the loader gave it.
        adversarial: what the attack made of it.
        image_key, mask_key: of the batch.
        progress: show a bar.
    """
    if attack is None:
        return (_note("no attack has a budget that is known and finite"),)
    plain = type(attack).__name__ in PREFERRED
    if attack.targeted and not plain:
        return (_note(f"{type(attack).__name__} is targeted, and no plain attack by gradients is there to compare"),)
    try:
        prepared = engine.prepare_batch(batch, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        image, target, args, kwargs = prepared if len(prepared) == 4 else (*prepared, (), {})
        through = gradient_inferer(engine.inferer, progress=False)
        with autocast_of(engine):
            return diagnose(
                engine.network,
                image,
                target,
                attack.loss_function,
                eps=attack.eps,
                norm=attack.norm,
                bounds=attack.bounds,
                criterion=attack.criterion,
                attack=attack if plain else None,
                adversarial=None if adversarial is None or not plain else adversarial.to(image.device),
                inferer=(lambda images, network: through(images, network, *args, **kwargs))
                if args or kwargs
                else through,
                mask=None if mask_key is None else batch[mask_key].to(image.device),
                progress=progress,
            )
    except Exception as error:  # the evaluation is done: it is not lost for a check of it, and the reader is told
        return (_note(f"{type(error).__name__}: {' '.join(str(error).split())}"),)


class Doctor:
    """Chooses an attack of an evaluation before a batch is attacked, and examines the network afterwards.

    Args:
        evaluator, image_key, mask_key, progress: as in `examined`.
        attacks: by name.
        fitted: gives an attack what depends on the batch; ``None`` where nothing does.
    """

    def __init__(
        self,
        evaluator: Any,
        attacks: Mapping[str, Attack],
        fitted: Any,
        image_key: str,
        mask_key: str | None,
        progress: bool,
    ) -> None:
        self.evaluator, self.attacks, self.fitted = evaluator, attacks, fitted
        self.image_key, self.mask_key, self.progress = image_key, mask_key, progress
        self._result: AttackResult | None = None

    def choose(self, batch: Any) -> tuple[str, Attack] | None:
        """The attack that is examined with this batch, by name; ``None`` without one."""
        self._result = None
        image = image_of(batch, self.image_key)
        attacks = {
            name: attack if self.fitted is None else self.fitted(name, attack, image)
            for name, attack in self.attacks.items()
        }
        name = doubted(attacks)
        return None if name is None else (name, attacks[name])

    def saw(self, result: AttackResult) -> None:
        """The result of the chosen attack."""
        self._result = result

    def examine(self, batch: Any, chosen: tuple[str, Attack] | None) -> list[Finding]:
        """The findings on this batch."""
        adversarial = None if self._result is None else self._result.adversarial
        self._result = None
        return list(
            examined(
                self.evaluator,
                None if chosen is None else chosen[1],
                batch,
                adversarial,
                image_key=self.image_key,
                mask_key=self.mask_key,
                progress=self.progress,
            )
        )


def concluded(report: RobustnessReport, on_network: tuple[Finding, ...]) -> RobustnessReport:
    """The report with what was found on the network and in its own numbers."""
    return dataclasses.replace(report, findings=(*on_network, *diagnose_report(report)))


def _size(attack: Attack) -> float:
    return float(torch.as_tensor(attack.eps, dtype=torch.float64).max())


def _note(reason: str) -> Finding:
    return Finding(
        "not_examined",
        f"The network was not examined: {reason}.",
        "Masked gradients would have gone unnoticed.",
        "Call monai_smia.diagnose on a batch by hand.",
        "note",
    )
