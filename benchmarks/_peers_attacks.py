# SPDX-License-Identifier: Apache-2.0
"""The same work in five libraries: attacks of one name at one budget, from the image itself where there is a choice."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn

from benchmarks import _strength_attacks as shared
from benchmarks._strength_attacks import LOSS, OURS, SEARCH, STEPS, Bounds, Contest, Run, step
from benchmarks._torchvision import load_torchvision
from monai_smia.attacks import DDN, FGSM, PGD

PEERS = {**shared.PEERS, "adv-lib": "adv-lib"}
"""Name in the table to distribution."""

Call = Callable[[Any, nn.Module, torch.Tensor, torch.Tensor, float], torch.Tensor]


def adv_lib_attacks() -> Any:
    """``adv_lib.attacks``; it imports visdom for its plots alone, so an empty module stands in where it is missing."""
    load_torchvision()
    if "visdom" not in sys.modules and importlib.util.find_spec("visdom") is None:
        sys.modules["visdom"] = ModuleType("visdom")
    from adv_lib import attacks

    return attacks


def adv_lib(call: Call) -> Any:
    """`call` gets the library's attacks, the network, image, label and eps."""

    def build(network: nn.Module, eps: float, classes: int) -> Run:
        attacks = adv_lib_attacks()
        return lambda image, label, seed: call(attacks, network, image, label, eps)

    return build


def contests(bounds: Bounds) -> dict[str, Contest]:
    """Every attack; `bounds` go to the libraries that can be told them, which torchattacks and adv-lib cannot."""
    given: dict[str, Any] = {"bounds": bounds}
    plain: dict[str, Any] = {**given, "steps": STEPS, "random_start": False}

    def pgd(norm: float, torchattacks: str, foolbox: str) -> dict[str, Any]:
        return {
            OURS: shared.ours(lambda eps: PGD(LOSS, eps=eps, norm=norm, step_size=step(eps), **plain)),
            "torchattacks": shared.torchattacks(torchattacks, alpha=step, steps=STEPS, random_start=False),
            "foolbox": shared.foolbox(foolbox, fixed=True, abs_stepsize=step, **plain),
            "ART": shared.art(
                lambda evasion, model, eps: evasion.ProjectedGradientDescent(
                    model, norm=norm, eps=eps, eps_step=step(eps), max_iter=STEPS, num_random_init=0, verbose=False
                ),
                bounds,
            ),
        }

    return {
        "fgsm": Contest(
            "FGSM",
            "one step of eps",
            None,
            {
                OURS: shared.ours(lambda eps: FGSM(LOSS, eps=eps, **given)),
                "torchattacks": shared.torchattacks("FGSM"),
                "foolbox": shared.foolbox("FGSM", fixed=True, random_start=False, **given),
                "ART": shared.art(lambda evasion, model, eps: evasion.FastGradientMethod(model, eps=eps), bounds),
            },
        ),
        "pgd": Contest(
            f"PGD-{STEPS}",
            f"Linf, {STEPS} steps of 2.5 eps / {STEPS} from the image itself",
            None,
            {
                **pgd(math.inf, "PGD", "LinfPGD"),
                "adv-lib": adv_lib(
                    lambda attacks, *work: attacks.pgd_linf(
                        *work, steps=STEPS, random_init=False, relative_step_size=step(1.0)
                    )
                ),
            },
        ),
        "pgd-l2": Contest(
            f"PGD-{STEPS} L2",
            f"{STEPS} steps of 2.5 eps / {STEPS} from the image itself",
            None,
            pgd(2.0, "PGDL2", "L2PGD"),
            ball=2.0,
        ),
        "apgd": Contest(
            "APGD-CE",
            f"Linf, {STEPS} steps from each library's own start",
            None,
            {
                **shared.apgd("ce", "ce", "cross_entropy", bounds),
                "adv-lib": adv_lib(
                    lambda attacks, *work: attacks.apgd(*work, norm=math.inf, n_iter=STEPS, loss_function="ce")
                ),
            },
        ),
        "fmn": Contest(
            "FMN L2",
            f"smallest norm, {SEARCH} steps",
            2.0,
            {
                **shared.fmn(2.0, "L2FMNAttack", bounds),
                "adv-lib": adv_lib(lambda attacks, *work: attacks.fmn(*work[:-1], norm=2, steps=SEARCH)),
            },
        ),
        "ddn": Contest(
            "DDN",
            f"smallest L2 norm, {SEARCH} steps",
            2.0,
            {
                OURS: shared.ours(lambda eps: DDN(LOSS, steps=SEARCH, **given)),
                "foolbox": shared.foolbox("DDNAttack", fixed=False, steps=SEARCH, **given),
                "adv-lib": adv_lib(lambda attacks, *work: attacks.ddn(*work[:-1], steps=SEARCH, levels=None)),
            },
        ),
    }
