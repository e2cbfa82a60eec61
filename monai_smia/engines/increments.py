# SPDX-License-Identifier: Apache-2.0
"""`added`: what a metric has accumulated over one batch, added to what it had accumulated over others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch


def added(reset: Any, before: Any, more: Any) -> Any:
    r"""The state after both, :math:`\text{before} + \text{more} - \text{reset}`: numbers add up, lists go on.

    Args:
        reset: the state of a metric that has seen nothing, see `monai_smia.engines.metric_state.state_of`; a value that
            stays as it is there is a setting.
        before: the state after some batches.
        more: the state of a metric that was reset and has seen the next one.

    Example:
        >>> added({"sum": 0.0, "classes": 4}, {"sum": 2.5, "classes": 4}, {"sum": 1.0, "classes": 4})
        {'sum': 3.5, 'classes': 4}
        >>> added({"buffers": None}, {"buffers": [[1, 2], [3, 4]]}, {"buffers": [[5], [6]]})
        {'buffers': [[1, 2, 5], [3, 4, 6]]}
    """
    if same(more, reset):
        return before
    if same(before, reset):
        return more
    if isinstance(more, dict) and isinstance(before, dict):
        known = reset if isinstance(reset, dict) else {}
        return {
            name: added(known.get(name), before[name], more[name])
            if name in before and name in more
            else more.get(name, before.get(name))
            for name in dict.fromkeys((*before, *more))
        }
    if isinstance(more, list) and isinstance(before, list):
        if len(more) == len(before) and all(isinstance(item, list) for item in (*more, *before)):
            return [added([], one, other) for one, other in zip(before, more, strict=True)]
        return before + more[len(reset) if isinstance(reset, list) else 0 :]
    if isinstance(more, set) and isinstance(before, set):
        return before | more
    if reset is None and type(more) is int and more == before:  # learned from the first batch, as a number of classes
        return more
    if _is_number(more) and _is_number(before):
        total = before + more
        return total - reset if _is_number(reset) and not same(reset, reset * 0) else total
    return more


def same(one: Any, other: Any, tolerance: float = 0.0) -> bool:
    """Whether two states hold the same; NaN is NaN.

    Args:
        one, other: what `monai_smia.engines.metric_state.state_of` gives.
        tolerance: relative, of floating numbers.
    """
    if isinstance(one, (torch.Tensor, np.ndarray)) or isinstance(other, (torch.Tensor, np.ndarray)):
        if type(one) is not type(other) and not (_is_number(one) and _is_number(other)):
            return False
        a, b = torch.as_tensor(one), torch.as_tensor(other)
        return a.shape == b.shape and bool(
            torch.isclose(a.double().cpu(), b.double().cpu(), rtol=tolerance, atol=0.0, equal_nan=True).all()
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name], tolerance) for name in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=tolerance)
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, complex, torch.Tensor, np.ndarray)) and not isinstance(value, bool)
