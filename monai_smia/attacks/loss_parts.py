# SPDX-License-Identifier: Apache-2.0
"""`loss_parts`: the losses of torch and MONAI that a loss is made of, however deep inside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

from torch import nn

ACTIVATION_MODULES = (nn.Sigmoid, nn.LogSigmoid, nn.Softmax, nn.Softmax2d, nn.LogSoftmax)


def is_library_loss(value: Any) -> bool:
    """Whether this is a loss of MONAI's or torch's, module or function, that answers for what it holds itself."""
    if isinstance(value, FunctionType):
        return value.__module__ == "torch.nn.functional"
    public = [kind for kind in type(value).__mro__ if not kind.__name__.startswith("_")]  # not the bare base class
    by_torch = any(kind.__module__ == nn.L1Loss.__module__ for kind in public)
    return isinstance(value, nn.Module) and (by_torch or is_of_monai(value))


def loss_parts(loss_function: Callable[..., Any]) -> list[Any]:
    """The losses of torch and MONAI in it, itself where it is one, and the activation modules beside them.

    Followed are `functools.partial`, MONAI's wrappers (deep supervision, masks), modules and objects of one's own, and
    lists, tuples and dictionaries in them. What a function's body calls stays unknown.

    Example:
        >>> class Both(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.terms = [nn.BCEWithLogitsLoss(), nn.L1Loss()]
        >>> loss_parts(Both())
        [BCEWithLogitsLoss(), L1Loss()]
    """
    return list(_walk(loss_function, set()))


def _walk(value: Any, seen: set[int]) -> Iterator[Any]:
    if id(value) in seen:
        return
    seen.add(id(value))
    inner = getattr(value, "loss", None) if type(value).__module__.startswith("monai.") else None
    if isinstance(value, functools.partial):
        yield from _walk(value.func, seen)
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _walk(item, seen)
    elif callable(inner):
        yield from _walk(inner, seen)
    elif is_library_loss(value) or isinstance(value, ACTIVATION_MODULES):
        yield value
    elif isinstance(value, MethodType):
        yield from _walk(value.__self__, seen)
    elif callable(value) and not isinstance(value, (type, FunctionType)):
        held = {**vars(value), **vars(value).get("_modules", {})} if hasattr(value, "__dict__") else {}
        for item in held.values():
            yield from _walk(item, seen)


def is_of_monai(value: Any) -> bool:
    """Whether its class is one of MONAI's, or derived from one."""
    return any(kind.__module__.startswith("monai.") for kind in type(value).__mro__)
