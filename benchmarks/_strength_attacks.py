# SPDX-License-Identifier: Apache-2.0
"""The attacks whose strength is compared: ours, and those of the same name in torchattacks, foolbox and ART."""

from __future__ import annotations

import inspect
import math
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_smia.attacks import APGD, FMN, PGD, Attack, AutoAttack, Square

OURS = "monai_smia"
PEERS = {"torchattacks": "torchattacks", "foolbox": "foolbox", "ART": "adversarial-robustness-toolbox"}
"""Name in the table to distribution."""
LOSS = nn.CrossEntropyLoss()
Bounds = tuple[float, float]
UNIT: Bounds = (0.0, 1.0)
STEPS, MEMBER_QUERIES, QUERIES, SEARCH = 20, 60, 300, 40
"""Of PGD, APGD and AutoAttack's members; of AutoAttack's Square; of Square alone; of FMN."""

Run = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""Image ``BCHW[D]``, label ``(B,)`` or ``(B, H, W[, D])`` and seed to the adversarial image."""


@dataclass(frozen=True)
class Contest:
    """An attack in each library.

    Attributes:
        name: what the table calls it.
        settings: the budget, in words.
        norm: of a search for the smallest norm; ``None`` for an attack at a fixed budget.
        build: library to ``build(network, eps, classes) -> Run``.
        ball: the norm of a fixed budget.
    """

    name: str
    settings: str
    norm: float | None
    build: dict[str, Callable[[nn.Module, float, int], Run]]
    ball: float = math.inf


def ours(make: Callable[[float], Attack]) -> Callable[[nn.Module, float, int], Run]:
    def build(network: nn.Module, eps: float, classes: int) -> Run:
        def run(image: torch.Tensor, label: torch.Tensor, seed: int) -> torch.Tensor:
            return make(eps)(network, image, label, generator=torch.Generator().manual_seed(seed)).adversarial

        return run

    return build


def torchattacks(name: str, change: Callable[[Any], None] | None = None, **arguments: Any) -> Any:
    """`change` sets what the constructor of the ensemble does not take."""

    def build(network: nn.Module, eps: float, classes: int) -> Run:
        import torchattacks as library

        given = {key: value(eps) if callable(value) else value for key, value in arguments.items()}
        if name == "AutoAttack":
            given["n_classes"] = classes

        make = getattr(library, name)
        seeded = "seed" in inspect.signature(make).parameters

        def run(image: torch.Tensor, label: torch.Tensor, seed: int) -> torch.Tensor:
            own = {"seed": seed} if seeded else {}
            attack = make(network, eps=eps, **given, **own)
            if change is not None:
                change(attack)
            return attack(image, label)

        return run

    return build


def shorten(ensemble: Any) -> None:
    """torchattacks' AutoAttack at the same steps and queries as ours."""
    for member in ensemble._autoattack.attacks:
        member.steps, member.n_queries, member.eot_iter = STEPS, MEMBER_QUERIES, 1


def foolbox(name: str, fixed: bool, bounds: Bounds = UNIT, **arguments: Any) -> Any:
    def build(network: nn.Module, eps: float, classes: int) -> Run:
        import foolbox as library

        model = library.PyTorchModel(network, bounds=bounds, device="cpu")
        attack = getattr(library.attacks, name)(
            **{key: value(eps) if callable(value) else value for key, value in arguments.items()}
        )
        return lambda image, label, seed: attack(model, image, label, epsilons=eps if fixed else None)[0]

    return build


def art(make: Callable[[Any, Any, float], Any], bounds: Bounds = UNIT) -> Any:
    """`make` gets ART's evasion attacks, the classifier and eps."""

    def build(network: nn.Module, eps: float, classes: int) -> Run:
        sys.modules.setdefault("multiprocess", multiprocessing)  # its AutoAttack imports that, but makes no pool
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        def run(image: torch.Tensor, label: torch.Tensor, seed: int) -> torch.Tensor:
            model = PyTorchClassifier(
                network,
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(image.shape[1:]),
                nb_classes=classes,
                clip_values=bounds,
                device_type="cpu",
            )
            return torch.from_numpy(make(evasion, model, eps).generate(image.numpy(), label.numpy()))

        return run

    return build


def art_apgd(evasion: Any, model: Any, eps: float, loss: str) -> Any:
    """Its first step is `eps_step`, which the algorithm sets to 2 eps."""
    return evasion.AutoProjectedGradientDescent(
        model, norm=np.inf, eps=eps, eps_step=2 * eps, max_iter=STEPS, nb_random_init=1, loss_type=loss, verbose=False
    )


def art_square(evasion: Any, model: Any, eps: float, queries: int) -> Any:
    """It asks the network three times in an iteration, the others once: a third of their iterations."""
    return evasion.SquareAttack(model, norm=np.inf, eps=eps, max_iter=queries // 3, nb_restarts=1, verbose=False)


def art_autoattack(evasion: Any, model: Any, eps: float) -> Any:
    """Its own four, at the same steps and queries as ours."""
    members = [
        art_apgd(evasion, model, eps, "cross_entropy"),
        art_apgd(evasion, model, eps, "difference_logits_ratio"),
        evasion.DeepFool(model, max_iter=STEPS, epsilon=1e-3, nb_grads=10, verbose=False),
        art_square(evasion, model, eps, MEMBER_QUERIES),
    ]
    return evasion.AutoAttack(model, norm=np.inf, eps=eps, eps_step=2 * eps, attacks=members)


def apgd(objective: str, theirs: str, art_loss: str, bounds: Bounds = UNIT) -> dict[str, Any]:
    return {
        OURS: ours(lambda eps: APGD(LOSS, eps=eps, bounds=bounds, steps=STEPS, objective=objective)),
        "torchattacks": torchattacks("APGD", norm="Linf", steps=STEPS, n_restarts=1, loss=theirs),
        "ART": art(lambda evasion, model, eps: art_apgd(evasion, model, eps, art_loss), bounds),
    }


def fmn(norm: float, name: str, bounds: Bounds = UNIT) -> dict[str, Any]:
    return {
        OURS: ours(lambda eps: FMN(LOSS, norm=norm, bounds=bounds, steps=SEARCH)),
        "foolbox": foolbox(name, fixed=False, bounds=bounds, steps=SEARCH),
    }


def step(eps: float) -> float:
    """PGD's step size."""
    return 2.5 * eps / STEPS


CONTESTS = {
    "pgd": Contest(
        "PGD",
        f"{STEPS} steps of 2.5 eps / {STEPS}, random start",
        None,
        {
            OURS: ours(lambda eps: PGD(LOSS, eps=eps, bounds=(0.0, 1.0), steps=STEPS, step_size=step(eps))),
            "torchattacks": torchattacks("PGD", alpha=step, steps=STEPS, random_start=True),
            "foolbox": foolbox("LinfPGD", fixed=True, abs_stepsize=step, steps=STEPS, random_start=True),
            "ART": art(
                lambda evasion, model, eps: evasion.ProjectedGradientDescent(
                    model, eps=eps, eps_step=step(eps), max_iter=STEPS, num_random_init=1, verbose=False
                )
            ),
        },
    ),
    "apgd-ce": Contest("APGD (CE)", f"{STEPS} steps", None, apgd("ce", "ce", "cross_entropy")),
    "apgd-dlr": Contest("APGD (DLR)", f"{STEPS} steps", None, apgd("dlr", "dlr", "difference_logits_ratio")),
    "autoattack": Contest(
        "AutoAttack",
        f"its members with {STEPS} steps and {MEMBER_QUERIES} queries",
        None,
        {
            OURS: ours(lambda eps: AutoAttack(LOSS, eps=eps, bounds=(0.0, 1.0), steps=STEPS, queries=MEMBER_QUERIES)),
            "torchattacks": torchattacks("AutoAttack", shorten, version="standard"),
            "torchattacks rand": torchattacks("AutoAttack", shorten, version="rand"),
            "ART": art(art_autoattack),
        },
    ),
    "square": Contest(
        "Square",
        f"{QUERIES} queries",
        None,
        {
            OURS: ours(lambda eps: Square(LOSS, eps=eps, bounds=(0.0, 1.0), queries=QUERIES)),
            "torchattacks": torchattacks("Square", norm="Linf", n_queries=QUERIES),
            "ART": art(lambda evasion, model, eps: art_square(evasion, model, eps, QUERIES)),
        },
    ),
    "fmn-linf": Contest("FMN Linf", f"{SEARCH} steps", math.inf, fmn(math.inf, "LInfFMNAttack")),
    "fmn-l2": Contest("FMN L2", f"{SEARCH} steps", 2.0, fmn(2.0, "L2FMNAttack")),
}
