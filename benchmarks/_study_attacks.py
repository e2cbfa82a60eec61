# SPDX-License-Identifier: Apache-2.0
"""What the SMIA study compares: every attack as data, so that a record says by itself what it measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import monai_smia.attacks
from monai_smia.attacks import SMIA, Attack

STEPS = 10
EQUAL = {"loss": 15, "gradient": 20}
"""Steps of BIM for the passes of ten steps of SMIA: 20 + 10 where losses are added, 20 + 19 where gradients are."""
WEIGHTS = (0.3, 1.0, 5.0)
KERNELS = {1.0: 3, 3.0: 13}
"""Standard deviation of the twin's filter in voxels, to its taps: the authors' size, and one that smooths visibly."""
BOXES = "boxes"
"""The detector's own divergence, in place of the soft and the hard one."""


@dataclass(frozen=True)
class Spec:
    """One attack of the study.

    Args:
        name: in the tables.
        kind: class in `monai_smia.attacks`, or ``"SMIA.authors"``; empty for the clean image.
        options: its arguments beside loss, eps, bounds and criterion.
        restarts: so many runs with seeds of their own, of which the variance is taken; the first is scored.
        keep: whether the change is kept, for its variance over images.
    """

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    restarts: int = 1
    keep: bool = False

    def build(self, loss_function: Any, boxes_divergence: Any = None, **shared: Any) -> Attack:
        """The attack; `boxes_divergence` is what the word ``"boxes"`` stands for."""
        options = dict(self.options)
        if options.get("divergence") == BOXES:
            options["divergence"] = boxes_divergence
        kind: Any = SMIA.authors if self.kind == "SMIA.authors" else getattr(monai_smia.attacks, self.kind)
        attack: Attack = kind(loss_function, **shared, **options)
        return attack


CLEAN = Spec("clean", "")


@dataclass(frozen=True)
class SmiaReading:
    """One way to read the paper.

    Args:
        smooth, divergence, combine, weight, sigma: as in `SMIA`.
    """

    smooth: str
    divergence: str
    combine: str
    weight: float
    sigma: float

    @property
    def name(self) -> str:
        """As in the tables."""
        return f"SMIA {self.smooth} / {self.divergence} / {self.combine}, weight {self.weight:g}, sigma {self.sigma:g}"

    @property
    def rival(self) -> str:
        """BIM at the same number of passes."""
        return f"BIM-{EQUAL[self.combine]}"

    def spec(self, **options: Any) -> Spec:
        """The reading as an attack of ten steps."""
        arguments = {
            "steps": STEPS,
            "smooth": self.smooth,
            "divergence": self.divergence,
            "combine": self.combine,
            "stabilization_weight": self.weight,
            "sigma": self.sigma,
            "kernel_size": KERNELS[self.sigma],
        }
        return Spec(self.name, "SMIA", arguments | options)


def readings(task: str) -> Iterator[SmiaReading]:
    """Every reading: smoothing x divergence x combination x weight x sigma."""
    divergences = (BOXES,) if task == "detection" else ("kl", "hard")
    for row in product(("perturbation", "image"), divergences, ("loss", "gradient"), WEIGHTS, KERNELS):
        yield SmiaReading(*row)


def authors(task: str, weight: float, **options: Any) -> Spec:
    """The choices of the authors' code; a detector's divergence is its own."""
    if task == "detection":
        options["divergence"] = BOXES
    return Spec(
        f"SMIA authors, weight {weight:g}",
        "SMIA.authors",
        {"steps": STEPS, "stabilization_weight": weight, **options},
    )


def baselines() -> Iterator[Spec]:
    """What SMIA is compared with, at its steps and at its passes."""
    yield Spec("GaussianNoise", "GaussianNoise")
    yield Spec("FGSM", "FGSM")
    yield Spec("BIM-10", "BIM", {"steps": STEPS}, keep=True)
    for steps in EQUAL.values():
        yield Spec(f"BIM-{steps}", "BIM", {"steps": steps})
    for kind, name in (("PGD", "PGD"), ("MIFGSM", "MI"), ("TIFGSM", "TI"), ("APGD", "APGD")):
        for steps in (STEPS, EQUAL["loss"]):
            keep = steps == STEPS and kind == "MIFGSM"
            yield Spec(f"{name}-{steps}", kind, {"steps": steps}, keep=keep)


def stability_specs(task: str, restarts: int = 3) -> Iterator[Spec]:
    """Random starts, for the variance over restarts; each also gives its variances over steps and over images."""
    start = {"random_start": True}
    yield Spec("PGD-10, restarts", "PGD", {"steps": STEPS}, restarts, keep=True)
    yield Spec("MI-10, restarts", "MIFGSM", {"steps": STEPS, **start}, restarts, keep=True)
    for reading in stable_readings(task):
        spec = reading.spec(**start)
        yield Spec(f"{spec.name}, restarts", spec.kind, spec.options, restarts, keep=True)
    preset = authors(task, 0.3, **start)
    yield Spec(f"{preset.name}, restarts", preset.kind, preset.options, restarts, keep=True)


def stable_readings(task: str) -> tuple[SmiaReading, ...]:
    """The readings whose stability and transfer back are measured: the plain one, and the weight that counts."""
    divergence = BOXES if task == "detection" else "kl"
    return (
        SmiaReading("perturbation", divergence, "loss", 1.0, 1.0),
        SmiaReading("perturbation", divergence, "gradient", 1.0, 1.0),
    )


def study(task: str) -> list[Spec]:
    """Everything that is measured on a bundle's own network, the clean image first."""
    smia = [reading.spec() for reading in readings(task)]
    return [CLEAN, *baselines(), *smia, *(authors(task, weight) for weight in WEIGHTS)]


def transferred_back(task: str) -> list[Spec]:
    """What is also made on the second network, to be scored on the first."""
    wanted = ("BIM-15", "PGD-15", "MI-15", "TI-15")
    plain = [spec for spec in baselines() if spec.name in wanted]
    return [CLEAN, *plain, *(reading.spec() for reading in stable_readings(task))]


def shown_once(task: str) -> list[Spec]:
    """What is shown on the test split: SMIA as it comes, its rivals, and the authors' preset."""
    wanted = ("FGSM", "BIM-10", "BIM-15", "BIM-20", "PGD-15", "APGD-15")
    plain = [spec for spec in baselines() if spec.name in wanted]
    boxes = {"divergence": BOXES} if task == "detection" else {}
    return [CLEAN, *plain, Spec("SMIA, default", "SMIA", {"steps": STEPS, **boxes}), authors(task, 0.3)]
