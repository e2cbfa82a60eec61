# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks._oldest pyproject.toml`` prints pip constraints: the lowest version of each dependency.

It imports nothing that has to be installed. torch and torchvision are left out, because they have to fit each other
and the machine; of the extras only those are read that the tests need.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

APART = ("torch", "torchvision", "sphinx", "furo", "myst-parser", "sphinx-copybutton")
FLOOR = re.compile(r'"(?P<name>[A-Za-z0-9_-]+)(?:\[[^]]*\])?>=(?P<version>[0-9.]+)[^"]*"')


def constraints(text: str, extras: Iterable[str] = ("report", "export", "certificates", "test")) -> list[str]:
    """``name==version`` for the core dependencies and the extras, each name once.

    Raises:
        ValueError: when a package has two floors.
    """
    lists = re.findall(r"^(?P<key>[a-z-]+) = \[(?P<items>.*?)\]$", text, re.MULTILINE | re.DOTALL)
    found: dict[str, str] = {}
    for key, items in lists:
        if key not in ("dependencies", *extras):
            continue
        for name, version in FLOOR.findall(items):
            if name not in APART and found.setdefault(name, version) != version:
                raise ValueError(f"{name}: expected one floor, got {found[name]} and {version}")
    return [f"{name}=={version}" for name, version in found.items()]


if __name__ == "__main__":
    print("\n".join(constraints(Path(sys.argv[1]).read_text(encoding="utf-8"))))
