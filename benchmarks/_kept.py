# SPDX-License-Identifier: Apache-2.0
"""Results that are kept as JSON, one file each, and measured again when what they depend on changed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._units import package_hash
from monai_smia.reports.files import write_whole


def kept(file: Path, depends_on: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result in `file`, measured now if there is none or it was made of something else.

    Args:
        file: JSON, written whole once the measurement is done.
        depends_on: what the result depends on beside this package; JSON.
        measure: gives the result; JSON.
    """
    wanted = json.loads(json.dumps(depends_on))
    if file.is_file():
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["depends_on"] == wanted:
            if content["package"] != package_hash():
                print(
                    f"warning: {file}: measured with other sources of monai_smia; remove it to do it again",
                    file=sys.stderr,
                )
            result: dict[str, Any] = content["result"]
            return result
    package, result = package_hash(), measure()
    content = {"depends_on": wanted, "package": package, "result": result}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(content, indent=1) + "\n", overwrite=True)
    return result
