# SPDX-License-Identifier: Apache-2.0
"""Engines that measure clean and adversarial metrics side by side."""

from __future__ import annotations

from monai_smia.engines.attack_evaluator import AttackEvaluator
from monai_smia.engines.robustness import evaluate_robustness

__all__ = ["AttackEvaluator", "evaluate_robustness"]
