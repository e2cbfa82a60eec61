# SPDX-License-Identifier: Apache-2.0
"""Adversarial attacks on medical imaging models, inside MONAI workflows.

Importing the package loads its components, so that MONAI's configuration files find them by their bare names
(``"_target_": "SMIA"``) as well as by their import paths (``"_target_": "monai_smia.attacks.SMIA"``).
"""

from __future__ import annotations

from monai_smia import (
    attacks,
    bundle,
    doctor,
    engines,
    handlers,
    inferers,
    intensity,
    losses,
    metrics,
    reports,
    transforms,
)
from monai_smia.doctor import diagnose
from monai_smia.engines import AttackEvaluator, RobustTrainer, evaluate_robustness
from monai_smia.handlers import AttackHandler
from monai_smia.inferers import GradientSlidingWindowInferer
from monai_smia.intensity import IntensityScale
from monai_smia.reports import RobustnessReport

__version__ = "0.1.0"

__all__ = [
    "AttackEvaluator",
    "AttackHandler",
    "GradientSlidingWindowInferer",
    "IntensityScale",
    "RobustTrainer",
    "RobustnessReport",
    "attacks",
    "bundle",
    "diagnose",
    "doctor",
    "engines",
    "evaluate_robustness",
    "handlers",
    "inferers",
    "intensity",
    "losses",
    "metrics",
    "reports",
    "transforms",
]
