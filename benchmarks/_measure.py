# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: interleaved timing, the hardware that numbers depend on, and tables."""

from __future__ import annotations

import gc
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm


@dataclass(frozen=True)
class Time:
    """Seconds of one run, by the clock and of the processor's cores together."""

    wall: float
    cpu: float


def timed(run: Callable[[], Any]) -> Time:
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Time(time.perf_counter() - wall, time.process_time() - cpu)


def race(groups: dict[str, list[Callable[[], Any]]], repeats: int, title: str) -> dict[str, list[list[Time]]]:
    """Times of each group's runs, by round.

    What is compared runs one right after the other. Every round begins with another group, and every other round turns
    each group around.
    """
    names = list(groups)
    times: dict[str, list[list[Time]]] = {name: [] for name in names}
    with tqdm(total=repeats * sum(map(len, groups.values())), desc=title, file=sys.stderr) as progress:
        for turn in range(repeats):
            direction = 1 if turn % 2 == 0 else -1
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                row = []
                for run in groups[name][::direction]:
                    row.append(timed(run))
                    progress.update()
                times[name].append(row[::direction])
    return times


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}..{max(values):.2f}]"


def table(header: list[str], rows: list[list[str]]) -> None:
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(not installed)"


def hardware(distributions: Sequence[str] = ()) -> None:
    """Print the processor, its load, and the versions."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = sorted(set(re.findall(r"\b(avx512_bf16|amx_bf16)\b", text)))
    names = ["torch", "monai", "numpy", *distributions]
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"- processor: {model[1] if model else platform.processor() or 'unknown'}, {os.cpu_count()} cores")
    print(f"- threads: {torch.get_num_threads()}; load at the start: {load}")
    print(f"- vector instructions: {torch.backends.cpu.get_cpu_capability()}; bfloat16: {', '.join(flags) or 'none'}")
    print(f"- Python {platform.python_version()}, {', '.join(f'{name} {installed(name)}' for name in names)}")


def data_folder() -> Path:
    """The shared images: MONAI_SMIA_DATA, else `shared/data` beside the checkout."""
    return Path(os.environ.get("MONAI_SMIA_DATA") or Path(__file__).parents[2] / "shared" / "data")


def resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
