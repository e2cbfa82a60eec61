# SPDX-License-Identifier: Apache-2.0
"""What a bundle's ``metadata.json`` says of its input and its output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def image_format(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the image that goes into the network; empty where there is none."""
    inputs = _tensors(metadata, "inputs")
    return dict(inputs.get("image") or next(iter(inputs.values()), {}))


def label_names(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Number of a channel of the prediction to its name; empty where there is none."""
    outputs = _tensors(metadata, "outputs")
    output = outputs.get("pred") or next(iter(outputs.values()), {})
    names = output.get("channel_def")
    return {str(key): str(name) for key, name in names.items()} if isinstance(names, Mapping) else {}


def _tensors(metadata: Mapping[str, Any], side: str) -> dict[str, dict[str, Any]]:
    found = metadata.get("network_data_format", {})
    tensors = found.get(side) if isinstance(found, Mapping) else None
    return (
        {key: value for key, value in tensors.items() if isinstance(value, dict)} if isinstance(tensors, dict) else {}
    )
