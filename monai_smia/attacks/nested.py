# SPDX-License-Identifier: Apache-2.0
"""Tensors in any nesting of tuples, lists, dictionaries and dataclasses, as networks return them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch


def map_tensors(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`function` of every tensor, in the same structure; what is no tensor stays as it is."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {item.name: getattr(value, item.name) for item in dataclasses.fields(value) if item.init}
        return dataclasses.replace(value, **{name: map_tensors(item, function) for name, item in held.items()})
    if isinstance(value, dict):
        mapped = copy.copy(value)  # of its own kind, such as an OrderedDict
        for key, item in value.items():
            mapped[key] = map_tensors(item, function)
        return mapped
    if isinstance(value, (tuple, list)):
        items = [map_tensors(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def slice_sample(value: Any, index: int) -> Any:
    """Sample `index` of a batch, still with its batch axis; numbers without axes as they are."""
    return map_tensors(value, lambda tensor: tensor[index : index + 1] if tensor.ndim else tensor)


def slice_target(value: Any, index: int) -> Any:
    """Sample `index` of a batch of targets: entry `index` of a list of dictionaries, which detectors take one a sample.

    The entry stays in a list; any other target is sliced as a prediction is.
    """
    if isinstance(value, (tuple, list)) and value and all(isinstance(item, dict) for item in value):
        return value[index : index + 1]
    return slice_sample(value, index)
