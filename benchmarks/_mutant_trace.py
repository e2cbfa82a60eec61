# SPDX-License-Identifier: Apache-2.0
"""A plugin of pytest that notes which lines of the package each test reaches, and how long it takes.

It is loaded by ``-p benchmarks._mutant_trace`` and writes JSON into the file that ``MUTANT_TRACE`` names.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = f"{ROOT / 'monai_smia'}{os.sep}"

reached: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
seconds: dict[str, float] = {}
failed: set[str] = set()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    lines = reached[item.nodeid]

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        lines[frame.f_code.co_filename].add(frame.f_lineno)
        return local

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return local(frame, event, argument) if frame.f_code.co_filename.startswith(PACKAGE) else None

    before, begin = sys.gettrace(), time.monotonic()
    sys.settrace(trace)
    threading.settrace(trace)
    try:
        return (yield)
    finally:
        sys.settrace(before)
        threading.settrace(before)  # type: ignore[arg-type]
        seconds[item.nodeid] = time.monotonic() - begin


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        failed.add(report.nodeid)  # it would notice every change


def pytest_sessionfinish() -> None:
    tests = {
        name: {
            "seconds": seconds.get(name, 0.0),
            "lines": {str(Path(file).relative_to(ROOT)): sorted(numbers) for file, numbers in files.items()},
        }
        for name, files in reached.items()
        if name not in failed
    }
    Path(os.environ["MUTANT_TRACE"]).write_text(json.dumps(tests))
