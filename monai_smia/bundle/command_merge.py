# SPDX-License-Identifier: Apache-2.0
"""``monai-smia merge``."""

from __future__ import annotations

import os
from pathlib import Path

from monai_smia.bundle.command_evaluate import evaluate
from monai_smia.bundle.shard_call import read_call
from monai_smia.engines.shards import missing_shards, shard_files


def merge(out: str) -> int:
    """Make the report of an evaluation whose shards are all finished.

    The shard that is finished last does that by itself; this is for the case that it could not. The bundle and its data
    have to be where they were: the evaluation's metrics are computed, but nothing is attacked again.

    Args:
        out: the folder that the shards have in common, their --out.
    """
    folder = Path(out).absolute()
    call = read_call(folder)
    if call is None or not shard_files(folder / "progress"):
        raise FileNotFoundError(f"out: expected the --out of evaluations with --shard; got {folder}")
    missing = missing_shards(folder / "progress")
    if missing:
        raise ValueError(f"out: expected all shards finished; missing: {', '.join(missing)}")
    here = Path.cwd()
    os.chdir(call["folder"])
    try:
        return evaluate(**{**call["arguments"], "out": str(folder), "resume": True, "shard": None})
    finally:
        os.chdir(here)
