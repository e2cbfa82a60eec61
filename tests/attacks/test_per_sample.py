# SPDX-License-Identifier: Apache-2.0
"""Everything is per sample: an attack on a batch is the attack on each element by itself, given the same draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import contract
import pytest
import torch
from torch.overrides import TorchFunctionMode

from monai_smia.attacks import (
    APGD,
    BIM,
    CW,
    DAG,
    DDN,
    DIFGSM,
    FGSM,
    FMN,
    MIFGSM,
    NIFGSM,
    PGD,
    SAP,
    SMIA,
    TIFGSM,
    TPGD,
    VAFA,
    VMIFGSM,
    AutoAttack,
    BiasField,
    CosPGD,
    DeepFool,
    EoT,
    GaussianNoise,
    RandomResize,
    SegPGD,
    Square,
    WorstOf,
)

DRAWS = (torch.rand, torch.randn, torch.randint)


def _with(kind: Any, **fixed: Any) -> Callable[..., Any]:
    return lambda loss, **arguments: kind(loss, **{**fixed, **arguments})


def _expected(loss: Any, **arguments: Any) -> Any:
    return EoT(BIM(loss, steps=2, **arguments), RandomResize(0.7, 1.0, fill=0.0), samples=2)


def _worst(loss: Any, **arguments: Any) -> Any:
    return WorstOf([PGD(loss, steps=2, **arguments), GaussianNoise(loss, **arguments)])


EVERY = ("classification", "multilabel", "segmentation")
ROWS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "FGSM": (_with(FGSM, random_start=True), EVERY),
    "BIM": (_with(BIM, steps=3), EVERY),
    "PGD": (_with(PGD, steps=3), EVERY),
    "PGD-restarts-best": (_with(PGD, steps=3, restarts=2, keep="best"), EVERY),
    "PGD-L2": (_with(PGD, steps=3, norm=2), EVERY),
    "PGD-L1": (_with(PGD, steps=3, norm=1), EVERY),
    "MIFGSM": (_with(MIFGSM, steps=3), EVERY),
    "NIFGSM": (_with(NIFGSM, steps=3), EVERY),
    "VMIFGSM": (_with(VMIFGSM, steps=2, neighbours=2), EVERY),
    "DIFGSM": (_with(DIFGSM, steps=3, diversity_probability=1.0), EVERY),
    "TIFGSM": (_with(TIFGSM, steps=3, kernel_size=3, sigma=1.0), EVERY),
    "SMIA": (_with(SMIA, steps=3), EVERY),
    "SMIA-hard-gradient": (_with(SMIA, steps=3, divergence="hard", combine="gradient"), EVERY),
    "SegPGD": (_with(SegPGD, steps=3), EVERY),
    "CosPGD": (_with(CosPGD, steps=3), EVERY),
    "TPGD": (_with(TPGD, steps=3), EVERY),
    "GaussianNoise": (GaussianNoise, EVERY),
    "EoT": (_expected, EVERY),
    "APGD": (_with(APGD, steps=4), EVERY),
    "APGD-L1": (_with(APGD, steps=4, norm=1), EVERY),
    "Square": (_with(Square, queries=6), EVERY),
    "Square-L2": (_with(Square, queries=6, norm=2), EVERY),
    "FMN": (_with(FMN, steps=4), EVERY),
    "FMN-L1": (_with(FMN, steps=4, norm=1), EVERY),
    "DDN": (_with(DDN, steps=4, norm=2), EVERY),
    "DeepFool": (_with(DeepFool, steps=3, norm=2), EVERY),
    "CW": (_with(CW, steps=4, searches=2, initial_c=1.0, norm=2), EVERY),
    "VAFA": (_with(VAFA, steps=2, block_size=4), EVERY),
    "BiasField": (_with(BiasField, steps=3, random_start=True), EVERY),
    "SAP": (_with(SAP, steps=3), EVERY),
    "DAG": (_with(DAG, steps=3), ("classification", "segmentation")),
    "WorstOf": (_worst, EVERY),
    "AutoAttack": (_with(AutoAttack, steps=3, queries=4), ("classification",)),
}
NO_SIGNALS = {"DIFGSM", "EoT"}  # a resize is of pictures and volumes


class Recording(TorchFunctionMode):
    """Keeps every draw of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[torch.Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = function(*args, **(kwargs or {}))
        if function in DRAWS:
            self.draws.append(value)
        return value


class Replaying(TorchFunctionMode):
    """Gives one element of the batch what it was given there."""

    def __init__(self, draws: list[torch.Tensor], sample: int, batch: int) -> None:
        super().__init__()
        self.draws, self.sample, self.batch = iter(draws), sample, batch

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = function(*args, **(kwargs or {}))
        if function not in DRAWS:
            return value
        drawn = next(self.draws)
        if drawn.ndim and len(drawn) == self.batch:
            drawn = drawn[self.sample : self.sample + 1]
        assert drawn.shape == value.shape
        return drawn.clone()


def _cases() -> list[Any]:
    return [
        pytest.param(name, rank, task, id=f"{name}-{rank}d-{task}")
        for name, (_, tasks) in ROWS.items()
        for rank in (1, 2, 3)
        for task in tasks
        if not (rank == 1 and name in NO_SIGNALS)
    ]


@pytest.mark.parametrize(("name", "rank", "task"), _cases())
def test_a_batch_is_its_elements(name: str, rank: int, task: str) -> None:
    case = contract.Case(ROWS[name][0], rank, task, batch=3, channels=2)
    network, image, target = case.network().double(), case.image().double(), case.target()
    attack, recording = case.attack(), Recording()
    with recording:
        together = attack(network, image, target)
    for i in range(case.batch):
        with Replaying(recording.draws, i, case.batch):
            alone = attack(network, image[i : i + 1], target[i : i + 1])
        torch.testing.assert_close(alone.adversarial[0], together.adversarial[i], rtol=0, atol=1e-9)
        torch.testing.assert_close(alone.loss[0], together.loss[i], rtol=1e-9, atol=1e-9)
        for verdict in ("success", "clean_success"):
            assert bool(getattr(alone, verdict)[0]) == bool(getattr(together, verdict)[i])
