# SPDX-License-Identifier: Apache-2.0
"""How the shards of an evaluation were called, for `monai-smia merge`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_smia.reports.files import write_whole
from monai_smia.reports.own_files import OwnFiles

CALL = Path("progress", "call.json")


def write_call(out: Path, arguments: Mapping[str, Any]) -> None:
    """Note the arguments beside the shards' progress; all shards of one evaluation note the same.

    Raises:
        TypeError: when one of them is nothing that a command line can give.
        FileExistsError: when the file is there and not of shards.
    """
    OwnFiles(out).refuse_links("progress")
    try:
        known = read_call(out)
        ours = known is None or known.keys() == {"folder", "arguments"}
    except ValueError:
        ours = False
    if not ours:
        raise FileExistsError(f"out: {out / CALL} is not what this program wrote there; expected a new folder")
    text = json.dumps({"folder": str(Path.cwd()), "arguments": dict(arguments)}, indent=2)
    write_whole(out / CALL, text + "\n", overwrite=True)


def read_call(out: Path) -> dict[str, Any] | None:
    """``folder``, where it was called, and ``arguments``; ``None`` where no shard was."""
    file = out / CALL
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
