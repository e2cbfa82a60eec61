# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_smia``: the command `monai-smia`."""

from __future__ import annotations

import sys

from monai_smia.bundle.commands import main

if __name__ == "__main__":
    sys.exit(main())
