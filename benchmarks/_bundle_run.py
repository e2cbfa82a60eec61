# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks._bundle_run FILE``: ``python -m monai.bundle run --args_file FILE``, also with a torchvision
that was built for another torch, as in a development environment."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

SHIM = Path(__file__).parents[1] / "tests" / "torchvision_shim.py"


def main(arguments: list[str]) -> None:
    """Declare torchvision's operators where it needs that, before MONAI looks for it; then run the bundle."""
    if SHIM.is_file():
        spec = importlib.util.spec_from_file_location(SHIM.stem, SHIM)
        assert spec is not None
        assert spec.loader is not None
        shim = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(shim)
        shim.load_torchvision()
    from monai.bundle import run

    run(args_file=arguments[0])


if __name__ == "__main__":
    main(sys.argv[1:])
