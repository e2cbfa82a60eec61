# SPDX-License-Identifier: Apache-2.0
"""MONAI transforms that attack images one by one: array and dictionary versions, always or with a probability."""

from __future__ import annotations

from monai_smia.transforms.adversarial import AdversarialAttack, RandAdversarialAttack
from monai_smia.transforms.dictionary import (
    AdversarialAttackD,
    AdversarialAttackd,
    AdversarialAttackDict,
    RandAdversarialAttackD,
    RandAdversarialAttackd,
    RandAdversarialAttackDict,
)
from monai_smia.transforms.universal import (
    AddUniversalPerturbation,
    AddUniversalPerturbationD,
    AddUniversalPerturbationd,
    AddUniversalPerturbationDict,
)

__all__ = [
    "AddUniversalPerturbation",
    "AddUniversalPerturbationD",
    "AddUniversalPerturbationDict",
    "AddUniversalPerturbationd",
    "AdversarialAttack",
    "AdversarialAttackD",
    "AdversarialAttackDict",
    "AdversarialAttackd",
    "RandAdversarialAttack",
    "RandAdversarialAttackD",
    "RandAdversarialAttackDict",
    "RandAdversarialAttackd",
]
