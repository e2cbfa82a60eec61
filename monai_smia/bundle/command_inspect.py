# SPDX-License-Identifier: Apache-2.0
"""``monai-smia inspect`` and ``monai-smia attacks``."""

from __future__ import annotations

import dataclasses
import inspect as python_inspect
from typing import Any

import monai_smia.attacks
from monai_smia.bundle.eps import default_eps
from monai_smia.bundle.errors import BundleError
from monai_smia.bundle.grid import known_attacks
from monai_smia.bundle.intensity_walk import Unread
from monai_smia.bundle.reading import UNKNOWN, BundleText, read_bundle
from monai_smia.bundle.units import read_intensity


def inspect(bundle: str, dataset_dir: str | None = None, configs: Any = None, **overrides: Any) -> int:
    """Say what was found in a bundle, what is missing, and which argument supplies it.

    The bundle's files are read, and none of its code is run; what only running it would tell is said to be unknown.

    Args:
        bundle: folder of the bundle.
        dataset_dir: where the data are, if not where the bundle says.
        configs: names of configuration files, if others than the bundle's usual ones.
        overrides: ids of the bundle's configuration (--validate#inferer#overlap 0.5).
    """
    read = read_bundle(bundle, dataset_dir=dataset_dir, configs=configs, overrides=overrides)
    rows = read.found()
    lacking = read.missing()
    rows |= _units(read)
    width = max(map(len, rows))
    for name, text in rows.items():
        print(f"{name:<{width}}  {_printable(text)}")
    for item in lacking:
        print(_printable(f"missing: {item.what}" + (f"; give --{item.argument}" if item.argument else "")))
    return 1 if lacking else 0


def attacks() -> int:
    """List the attacks and their arguments."""
    for name, fields in known_attacks().items():
        kind = getattr(monai_smia.attacks, name)
        summary = (python_inspect.getdoc(kind) or "").splitlines()[0]
        print(f"{name}: {summary}")
        print("    " + ", ".join(_shown(field) for field in dataclasses.fields(kind) if field.name in fields))
    return 0


def _shown(field: dataclasses.Field[Any]) -> str:
    return field.name if field.default is dataclasses.MISSING else f"{field.name}={field.default!r}"


def _printable(text: str) -> str:
    """Without characters that steer a terminal: a bundle's texts are somebody else's."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _units(read: BundleText) -> dict[str, str]:
    transforms = read.preprocessing()
    if transforms is None:
        return {"units of eps": f"{UNKNOWN}; net and % are always understood"}
    image = read.image_format()
    modality = image.get("modality")
    try:
        reading = read_intensity(
            transforms,
            modality=modality if isinstance(modality, str) else None,
            value_range=image.get("value_range"),
        )
    except BundleError as error:
        return {"units of eps": f"not known: {error}"}
    if reading.missing and any(isinstance(item, Unread) for item in transforms):
        return {"units of eps": f"{UNKNOWN}: {reading.said} {reading.missing}"}
    if reading.missing:
        return {"units of eps": f"{reading.said} {reading.missing}"}
    usual = ",".join(budget.label for budget in default_eps(reading))
    return {"intensities": reading.said, "units of eps": f"{', '.join(reading.units)}; without --eps: {usual}"}
