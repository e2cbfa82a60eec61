# SPDX-License-Identifier: Apache-2.0
"""One measurement of the SMIA study: an attack on a case, and everything that is asked of the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._study_attacks import Spec
from benchmarks._study_records import Record
from benchmarks._study_victims import Victim
from benchmarks._study_views import APPLY
from monai_smia.attacks import AttackResult
from monai_smia.attacks.heads import activation_of, main_output
from monai_smia.attacks.smia import SoftDivergence
from monai_smia.metrics.stability import compute_stack_variance


class Trace:
    """Watches an attack: its iterates, and how far the prediction moves at every step."""

    def __init__(self, victim: Victim, target: Any) -> None:
        self.victim, self.target = victim, target
        self.iterates: list[torch.Tensor] = []
        self.kl: list[float] = []
        self._last: Any = None

    def __call__(self, trial: Any, prediction: Any) -> None:
        """An attack's callback."""
        self.iterates.append(trial.adversarial - trial.image)
        if prediction is None:
            return
        output = self._tensor(prediction)
        if self._last is not None:
            self.kl.append(float(self._divergence(output)(output, self._last, self.target)))
        self._last = output

    def _tensor(self, prediction: Any) -> torch.Tensor:
        scores = getattr(prediction, "classification", None)  # of a detector: (B, N, K)
        output = main_output(prediction) if scores is None else scores.transpose(1, 2)
        return output.detach()

    def _divergence(self, output: torch.Tensor) -> SoftDivergence:
        if self.victim.subject.task == "detection":
            return SoftDivergence("sigmoid")
        return SoftDivergence(activation_of("auto", self.victim.loss, output))


def measure(spec: Spec, victim: Victim, other: Victim | None, case: int, changes: Path) -> Record:
    """Attack one case, and score the result on both networks and after each of the later changes.

    Args:
        spec: what is tried; the clean image where it names no attack.
        victim: the network that is attacked.
        other: the network that the result is transferred to; ``None`` for none.
        case: index in the split.
        changes: folder for the changes of the attacks that keep theirs.

    Returns:
        Scores in [0, 1], losses, success, passes; perturbations in units of eps, variances in eps squared.
    """
    image, target = victim.case(case)
    row: Record = {"model": victim.model, "case": case, "attack": spec.name}
    if not spec.kind:
        row |= scores(victim, other, image, target)
        return row
    attack = spec.build(
        victim.loss, victim.boxes_divergence(), eps=victim.eps, bounds=victim.bounds, criterion=victim.criterion
    )
    trace = Trace(victim, target)
    results = [
        attack(
            victim.network,
            image,
            target,
            inferer=victim.inferer,
            generator=torch.Generator().manual_seed(case * 1000 + seed),
            callback=trace if seed == 0 else None,
        )
        for seed in range(spec.restarts)
    ]
    row |= scores(victim, other, results[0].adversarial, target) | what_it_did(results[0])
    plain = [(result.adversarial - image).as_subclass(torch.Tensor) / victim.eps for result in results]
    row |= {"rms": float(plain[0].square().mean().sqrt()), "mean": float(plain[0].mean()), "kl": trace.kl}
    if len(trace.iterates) > 1:
        iterates = torch.stack([*trace.iterates[1:], plain[0] * victim.eps], 1)
        row["over_iterations"] = float(compute_stack_variance(iterates / victim.eps))
    if len(plain) > 1:
        row["over_restarts"] = float(compute_stack_variance(torch.stack(plain, 1)))
    if spec.keep:
        changes.mkdir(parents=True, exist_ok=True)
        np.save(changes / change_file(spec.name, case), plain[0].numpy().astype(np.float16))
    return row


def change_file(attack: str, case: int) -> str:
    """Name of a kept change."""
    return f"{''.join(sign if sign.isalnum() else '-' for sign in attack)}.{case}.npy"


def scores(victim: Victim, other: Victim | None, image: torch.Tensor, target: Any) -> Record:
    """Score on the network, on the other one, and on the network after each later change."""
    row = {"score": victim.score(victim.predict(image), target)}
    for name, change in APPLY.items():
        changed = change(image.as_subclass(torch.Tensor), victim.bounds)
        row[name] = victim.score(victim.predict(changed), target)
    if other is not None:
        row["transferred"] = other.score(other.predict(image), target)
    return row


def what_it_did(result: AttackResult) -> Record:
    """Losses, success and cost of a result of one sample."""
    return {
        "clean_loss": float(result.clean_loss),
        "loss": float(result.loss),
        "success": bool(result.success),
        "forward": int(result.forward_passes),
        "backward": int(result.backward_passes),
    }
