# SPDX-License-Identifier: Apache-2.0
"""A torchvision that was built for another torch, as in a development environment, made importable."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SHIM = Path(__file__).parents[1] / "tests" / "torchvision_shim.py"


def load_torchvision() -> None:
    """Declare torchvision's operators where it needs that; to be called before MONAI is imported."""
    if not SHIM.is_file():
        return
    spec = importlib.util.spec_from_file_location(SHIM.stem, SHIM)
    assert spec is not None
    assert spec.loader is not None
    shim = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shim)
    shim.load_torchvision()
