# SPDX-License-Identifier: Apache-2.0
"""How an evaluation was made: hardware, data, weights, in words for a report."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from monai_smia.export.stored import checksum


def hardware(device: torch.device) -> str:
    """The processor that computed, and with how many threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {torch.get_num_threads()} threads"


def data_checksum(dataset: Any) -> str:
    """SHA-256 of the data list: the file names without their folders, the labels, and the sizes of the files.

    The same data elsewhere have the same checksum.
    """
    data = getattr(dataset, "data", None)
    if data is None:
        return "unknown: the dataset has no list of data"
    text = json.dumps([_portable(item) for item in data], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def list_checksum(dataset: Any) -> str:
    """SHA-256 of the data list: names without their folders, and labels, whatever the files hold."""
    data = getattr(dataset, "data", None)
    if data is None:
        return "unknown: the dataset has no list of data"
    text = json.dumps([_portable(item, sizes=False) for item in data], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_checksum(file: Path | None) -> str:
    """SHA-256 of a file; of weights."""
    if file is None or not file.is_file():
        return "unknown"
    return checksum(file)


def _portable(value: Any, sizes: bool = True) -> Any:
    if isinstance(value, dict):
        return {str(key): _portable(item, sizes) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(item, sizes) for item in value]
    if isinstance(value, (str, Path)):
        path = Path(value)
        if not sizes:
            return path.name
        return [path.name, path.stat().st_size] if os.path.isfile(path) else path.name
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    return value if isinstance(value, (int, float, bool)) or value is None else str(value)
