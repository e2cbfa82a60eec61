# SPDX-License-Identifier: Apache-2.0
"""The processes that `torchrun` starts, seen from one of them."""

from __future__ import annotations

import os

import torch


def shard_of_process() -> str | None:
    """The share of this process, ``"i/n"``, where `torchrun` started several; ``None`` elsewhere.

    They need no process group: they work for themselves, in one folder, and the last one makes the report.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world < 2 or "RANK" not in os.environ:
        return None
    return f"{int(os.environ['RANK']) + 1}/{world}"


def take_own_device() -> None:
    """Make the GPU of this process its default one, where `torchrun` started several on a machine with several."""
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
