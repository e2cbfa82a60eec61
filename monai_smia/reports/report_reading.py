# SPDX-License-Identifier: Apache-2.0
"""`read_saved`: the parts of a `RobustnessReport` from the JSON file that it wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from monai_smia.reports.finding import Finding
from monai_smia.reports.schema import ReportFile, validated

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
    saved = validated(ReportFile, content, f"folder_or_file: expected a report; {file}")
    return {
        "metrics": _restored(saved.metrics),
        "cases": tuple(_restored(row.model_dump()) for row in saved.cases),
        "attacks": saved.attacks,
        "unit": saved.unit,
        "certificates": tuple(_restored(row.model_dump()) for row in saved.certificates),
        "findings": None if saved.findings is None else tuple(Finding(**one.model_dump()) for one in saved.findings),
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


def _restored(value: Any) -> Any:
    """Null as NaN, wherever it is."""
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    return math.nan if value is None else value
