# SPDX-License-Identifier: Apache-2.0
"""Engines that measure clean and adversarial metrics side by side."""

from __future__ import annotations

from monai_smia.engines.attack_evaluator import AttackEvaluator
from monai_smia.engines.case_by_case import CaseByCase
from monai_smia.engines.free_training import FreeAdversarialTraining
from monai_smia.engines.robust_trainer import RobustTrainer
from monai_smia.engines.robustness import evaluate_robustness

__all__ = ["AttackEvaluator", "CaseByCase", "FreeAdversarialTraining", "RobustTrainer", "evaluate_robustness"]
