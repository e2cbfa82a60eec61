# SPDX-License-Identifier: Apache-2.0
"""`read_saved`: the parts of a `RobustnessReport` from the JSON file that it wrote."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from monai_smia.reports.finding import Finding

NAMES = ("robustness.json", "report.json")


def read_saved(place: str | Path) -> dict[str, Any]:
    """Arguments of `RobustnessReport`; NaN for null.

    Raises:
        FileNotFoundError: when there is no such file, or none of `NAMES` in the folder.
        ValueError: for anything else than such a report.
    """
    file = _file_in(Path(place))
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of the encoding too
        raise ValueError(f"folder_or_file: expected a report as JSON; got {file} ({error})") from error
    fault = _fault(content)
    if fault:
        raise ValueError(f"folder_or_file: expected a report's metrics, attacks, unit and cases; {file} has {fault}")
    found = content.get("findings")  # nothing in reports of earlier versions
    return {
        "metrics": _restored(content["metrics"]),
        "cases": tuple(_restored(content["cases"])),
        "attacks": content["attacks"],
        "unit": content["unit"],
        "certificates": tuple(_restored(content.get("certificates", []))),
        "findings": None if found is None else tuple(Finding(**finding) for finding in found),
    }


def _file_in(place: Path) -> Path:
    if not place.is_dir():
        if not place.exists():
            raise FileNotFoundError(f"folder_or_file: expected a report's folder or JSON file; {place} does not exist")
        return place
    for name in NAMES:
        if (place / name).is_file():
            return place / name
    inside = sorted(path.name for path in place.iterdir())
    shown = ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "") or "nothing"
    raise FileNotFoundError(f"folder_or_file: expected {' or '.join(NAMES)} in {place}; got {shown}")


def _fault(content: Any) -> str | None:
    """What is wrong with it, in words."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    kinds: dict[str, type] = {"metrics": dict, "attacks": dict, "unit": str, "cases": list}
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind):
            found = f"a {type(content[key]).__name__}" if key in content else "nothing"
            return f"{found} under {key!r}"
    fields = {field.name for field in dataclasses.fields(Finding)}
    if not all(isinstance(finding, dict) and finding.keys() == fields for finding in content.get("findings") or ()):
        return "something else than findings under 'findings'"
    for run, metrics in content["metrics"].items():
        if not isinstance(metrics, dict):
            return f"a {type(metrics).__name__} as the metrics of {run!r}"
    for number, row in enumerate(content["cases"]):
        if not (isinstance(row, dict) and {"attack", "case"} <= row.keys()):
            return f"no attack and case in row {number} of the cases"
    certificates = content.get("certificates", [])
    if not (isinstance(certificates, list) and all(isinstance(row, dict) and "radius" in row for row in certificates)):
        return "something else than rows with a radius under 'certificates'"
    return None


def _restored(value: Any) -> Any:
    """Null as NaN, wherever it is."""
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    return math.nan if value is None else value
