# SPDX-License-Identifier: Apache-2.0
"""Losses of adversarial training that need the clean and the adversarial prediction together."""

from __future__ import annotations

from monai_smia.losses.two_views import ConsistencyLoss, MARTLoss, TRADESLoss, TwoViewsLoss

__all__ = ["ConsistencyLoss", "MARTLoss", "TRADESLoss", "TwoViewsLoss"]
