# SPDX-License-Identifier: Apache-2.0
"""What is said before a bundle's own code runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def say_that_it_runs(folder: str | Path) -> None:
    """One line on standard error, of the first process only: a bundle is a program, and is about to run."""
    if os.environ.get("RANK", "0") == "0":
        name = Path(folder).resolve().name
        print(
            f"note: the bundle {name} is a program and runs with your rights; `monai-smia inspect` reads it without",
            file=sys.stderr,
        )
