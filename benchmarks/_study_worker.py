# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks._study_worker FILE``: one process of the SMIA study."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks._torchvision import load_torchvision


def main(arguments: list[str]) -> None:
    """Do the job of a file, also with a torchvision that was built for another torch."""
    load_torchvision()
    from benchmarks._study_work import read_job, run

    run(read_job(Path(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
