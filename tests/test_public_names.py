"""The public names are a promise: they change by a deliberate edit of `public_names.txt`, never by accident."""

from __future__ import annotations

import importlib
from pathlib import Path

LIST = Path(__file__).with_name("public_names.txt")
MODULES = [
    "attacks",
    "bundle",
    "certificates",
    "data",
    "doctor",
    "engines",
    "export",
    "handlers",
    "inferers",
    "losses",
    "metrics",
    "reports",
    "transforms",
]


def public_names() -> list[str]:
    names = ["monai_smia.intensity.IntensityScale"]
    for module in MODULES:
        package = importlib.import_module(f"monai_smia.{module}")
        names += [f"monai_smia.{module}.{name}" for name in package.__all__]
    return sorted(names)


def test_public_names_are_those_of_the_list() -> None:
    found, listed = public_names(), LIST.read_text().split()
    added, gone = sorted(set(found) - set(listed)), sorted(set(listed) - set(found))
    assert found == listed, (
        f"new: {added}; gone: {gone}. A new name is added to {LIST.name} by hand, in sorted order, with a test and an "
        "entry in CHANGELOG.md; a name that goes breaks users and bundles, and needs a deprecation first"
    )


def test_every_public_name_exists_and_says_what_it_is() -> None:
    for name in public_names():
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
        assert isinstance(value, str) or value.__doc__, name
