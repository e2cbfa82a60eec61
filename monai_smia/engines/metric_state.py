# SPDX-License-Identifier: Apache-2.0
"""What a metric has accumulated: taken out and put back, so that several runs share it and a killed run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.data import MetaTensor
from monai.metrics import Cumulative

from monai_smia.engines.ignite import private

State = dict[str, Any]

_PLAIN = {bool, int, float, complex, str, type(None), torch.dtype}  # not their subclasses: an Enum is a setting


class _Skipped:
    """Stands for a value that is no data, such as a function."""


_SKIPPED = _Skipped()


def metrics_of(engine: Any) -> list[Metric]:
    """Every metric that the engine updates, once each, in order; the parts of composed ones included."""
    found: list[Metric] = []
    for event in (Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED):
        for function, _, _ in private.handlers_of(engine).get(event, ()):
            owner = private.owner_of(function)
            if isinstance(owner, Metric) and not any(owner is metric for metric in found):
                found.append(owner)
    return found


def state_of(metric: Any) -> State:
    """What a metric accumulated: its attributes that are numbers, texts, tensors, arrays or containers of them.

    Tensors and containers are copied as far as an update changes them in place; what containers hold is shared.
    """
    values = {
        name: _taken(value) for name, value in private.attributes_of(metric).items() if name not in private.WIRING
    }
    return {name: value for name, value in values.items() if value is not _SKIPPED}


def restore(metric: Any, state: Mapping[str, Any]) -> None:
    """Put back what `state_of` took."""
    for name, value in state.items():
        if isinstance(value, dict) and _OBJECT in value:
            restore(getattr(metric, name), value[_OBJECT])
        else:
            setattr(metric, name, _taken(from_file(value)))


_OBJECT = "monai_smia.object"
_ARRAY = "monai_smia.array"


def _taken(value: Any, shared: bool = False) -> Any:
    if isinstance(value, (Metric, Cumulative)):  # in a container: the parts of a composed metric, which come themselves
        return _SKIPPED if shared else {_OBJECT: state_of(value)}
    if isinstance(value, torch.Tensor):
        value = value.as_tensor() if isinstance(value, MetaTensor) else value
        return value.detach() if shared else value.detach().clone()
    if isinstance(value, np.ndarray):
        return value if value.dtype != object else _SKIPPED
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in _PLAIN:
        return value
    if type(value) in (list, tuple, set):
        items = [_taken(item, shared=True) for item in value]
        return _SKIPPED if any(item is _SKIPPED for item in items) else type(value)(items)
    if isinstance(value, dict):
        entries = {key: _taken(item, shared=True) for key, item in value.items()}
        return _SKIPPED if any(item is _SKIPPED for item in entries.values()) else entries
    return _SKIPPED


def to_file(value: Any) -> Any:
    """What `torch.load` reads back with ``weights_only=True``: arrays as marked tensors, tensors without metadata."""
    if isinstance(value, MetaTensor):
        return value.as_tensor()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, (list, tuple)):
        return type(value)(to_file(item) for item in value)
    if isinstance(value, dict):
        return {key: to_file(item) for key, item in value.items()}
    return value


def from_file(value: Any) -> Any:
    """The inverse of `to_file`."""
    if isinstance(value, dict):
        return value[_ARRAY].numpy() if _ARRAY in value else {key: from_file(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(from_file(item) for item in value)
    return value
