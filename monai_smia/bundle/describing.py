# SPDX-License-Identifier: Apache-2.0
"""What a bundle is made of, in words and read from its text: the rows of `monai-smia inspect`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_smia.bundle.ids import Ids
from monai_smia.bundle.listed_transforms import listed
from monai_smia.bundle.metadata import label_names
from monai_smia.bundle.text import (
    argument_id,
    class_name,
    get,
    reached,
    reached_components,
    static_value,
)

NONE = "none"
INTENSITY = re.compile(
    r"\w*(ScaleIntensity|NormalizeIntensity|ShiftIntensity|ThresholdIntensity|ClipIntensity|AdjustContrast|"
    r"HistogramNormalize)\w*"
)
_SHOWN = (
    *("a_min", "a_max", "b_min", "b_max", "minv", "maxv", "factor", "lower", "upper"),
    *("subtrahend", "divisor", "nonzero", "channel_wise", "clip"),
)


def describe(config: Mapping[str, Any], ids: Ids, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Row to words; ``"none"`` where the bundle has nothing of the kind."""
    before = transforms(config, get(config, ids.preprocessing)) if ids.preprocessing else []
    after = transforms(config, get(config, ids.postprocessing)) if ids.postprocessing else []
    scaling = [_arguments(item) for item in before if INTENSITY.fullmatch(class_name(item))]
    return {
        "evaluator": f"{ids.evaluator} ({class_name(get(config, ids.evaluator))})",
        "network": _named(config, ids.network),
        "loss": _named(config, ids.loss),
        "inferer": _named(config, ids.inferer),
        "postprocessing": ", ".join(map(class_name, after)) or _named(config, ids.postprocessing),
        "intensity": ", ".join(scaling) or NONE,
        "labels": labels(metadata),
        "metrics": ", ".join(metrics(config, ids)) or NONE,
        "data": f"{_named(config, ids.dataset)} of {_shown(config, 'dataset_dir')}",
    }


def labels(metadata: Mapping[str, Any]) -> str:
    """Channels of the prediction and their names, as the metadata defines them."""
    return ", ".join(f"{key} {name}" for key, name in label_names(metadata).items()) or NONE


def metrics(config: Mapping[str, Any], ids: Ids) -> list[str]:
    """Names of the evaluator's metrics, the key metric first."""
    found: list[str] = []
    for key in ("key_val_metric", "additional_metrics"):
        name = argument_id(config, ids.evaluator, key)
        given = get(config, name) if name else None
        if isinstance(given, Mapping):
            found += [str(metric) for metric in given]
    return found


def where_from(root: Path, files: Mapping[str, Path]) -> str:
    """The weights' files, who loads them, and whether they are there."""
    words = []
    for loader, path in files.items():
        shown = path.relative_to(root) if path.is_relative_to(root) else path
        by = f", loaded by {loader}" if loader else ""
        words.append(f"{shown}{by}{'' if path.is_file() else ' (not there)'}")
    return "; ".join(words)


def transforms(config: Mapping[str, Any], value: Any) -> list[Mapping[str, Any]]:
    """The transforms of a composition in their order; a function or another expression is none."""
    return [item for item in listed(config, value) if isinstance(item, Mapping)]


def _named(config: Mapping[str, Any], name: str | None) -> str:
    """An id and the class of the first component behind it, or the expression where there is none."""
    if name is None:
        return NONE
    value = get(config, name)
    if isinstance(value, str) and "lambda" in value:
        return f"{name} ({value})"
    first = next(iter(reached_components(config, name).values()), None)
    if first is not None:
        return f"{name} ({class_name(first)})"
    made = [text for text in reached(config, name).values() if isinstance(text, str) and text.startswith("$")]
    made = [text for text in made if "torch.device" not in text][-1:]
    return f"{name} ({made[0]})" if made else name


def _arguments(item: Mapping[str, Any]) -> str:
    given = ", ".join(f"{key}={item[key]}" for key in _SHOWN if item.get(key) is not None)
    return f"{class_name(item)}({given})"


def _shown(config: Mapping[str, Any], name: str) -> str:
    return static_value(config, name) or str(get(config, name) or NONE)
