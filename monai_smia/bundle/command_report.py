# SPDX-License-Identifier: Apache-2.0
"""``monai-smia report``."""

from __future__ import annotations

from monai_smia.bundle.report_files import write_again


def report(folder: str) -> int:
    """Make the page, the model card and the figures of an evaluation anew.

    Args:
        folder: what `monai-smia evaluate` wrote, with its report.json.
    """
    print(write_again(folder))
    return 0
