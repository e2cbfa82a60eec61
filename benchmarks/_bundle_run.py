# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks._bundle_run FILE``: ``python -m monai.bundle run --args_file FILE``, also with a torchvision
that was built for another torch, as in a development environment."""

from __future__ import annotations

import sys

from benchmarks._torchvision import load_torchvision


def main(arguments: list[str]) -> None:
    """Declare torchvision's operators where it needs that, before MONAI looks for it; then run the bundle."""
    load_torchvision()
    from monai.bundle import run

    run(args_file=arguments[0])


if __name__ == "__main__":
    main(sys.argv[1:])
