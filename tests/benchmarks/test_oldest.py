"""The lowest versions: what pip is asked for equals what the project's metadata say, read by a TOML parser."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks._oldest import APART, constraints

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_every_dependency_has_its_floor() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [
        line for name in ("report", "export", "certificates", "test") for line in extras[name]
    ]
    floors = {}
    for requirement in map(Requirement, wanted):
        (floor,) = [part.version for part in requirement.specifier if part.operator == ">="]
        floors[requirement.name] = floor
    expected = {f"{name}=={version}" for name, version in floors.items() if name not in APART}
    assert set(constraints(PROJECT.read_text(encoding="utf-8"))) == expected


def test_two_floors_are_refused() -> None:
    text = 'dependencies = [\n  "numpy>=1.24",\n]\ntest = ["numpy>=2"]\n'
    with pytest.raises(ValueError, match="numpy: expected one floor, got 1.24 and 2"):
        constraints(text)
