# SPDX-License-Identifier: Apache-2.0
"""Measurements of monai_smia beside other attack libraries; run with ``python -m benchmarks``."""

from __future__ import annotations
