# SPDX-License-Identifier: Apache-2.0
"""`stateful_parts`: everything with a state that is reachable from an engine, each under a name of its own."""

from __future__ import annotations

import functools
import random
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, State
from ignite.metrics import Metric
from monai.transforms import Randomizable

_ENGINE_STATE = ("epoch", "iteration", "best_metric", "best_metric_epoch", "metrics")
_LEAVES = (str, bytes, int, float, complex, bool, type(None), torch.Tensor, np.ndarray, np.generic, torch.device, type)


def stateful_parts(root: Any, without: Any = None) -> dict[str, Any]:
    """Name to object, in the order of a walk over attributes, containers, closures and bound methods.

    These have a state: engines (their counts and best metric), networks and losses, whatever has both ``state_dict``
    and ``load_state_dict`` (optimizers, schedules, scalers, early stopping, savers of the best weights), and every
    source of random numbers: of torch, of numpy (those of MONAI's random transforms) and of Python. Metrics are left
    out, for they start anew with each epoch; so are iterators, and what only the standard library knows.

    Two engines built alike give the same names.

    Args:
        root: where the walk starts, such as a trainer.
        without: an object that the walk passes by.

    Example:
        >>> optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
        >>> list(stateful_parts({"a": [optimizer, torch.Generator()], "b": optimizer}))
        ['.a.0', '.a.1']
    """
    found: dict[str, Any] = {}
    seen: dict[int, Any] = {id(without): without}  # they stay referred to, so that no identity is used twice
    waiting = [("", root)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen[id(value)] = value
        if _has_state(value):
            found[name] = value
        if _is_whole(value):
            continue
        waiting += [(f"{name}.{key}", child) for key, child in reversed(list(_children(value)))]
    return found


def state_of(part: Any) -> Any:
    """The state of one part, of plain values and tensors where the part's own ``state_dict`` is so."""
    if isinstance(part, torch.Generator):
        return part.get_state()
    if isinstance(part, np.random.RandomState):
        kind, keys, *rest = part.get_state(legacy=True)
        return [kind, [int(key) for key in keys], *rest]
    if isinstance(part, np.random.Generator):
        return _plain(part.bit_generator.state)
    if isinstance(part, random.Random):
        return part.getstate()
    if isinstance(part, Engine):
        values = {name: getattr(part.state, name) for name in _ENGINE_STATE if hasattr(part.state, name)}
        return _plain({**values, "terminated": bool(part.should_terminate)})
    return _plain(part.state_dict())


def put_state(part: Any, state: Any) -> None:
    """Give a part the state that `state_of` took from its like. An engine that had been stopped is stopped again."""
    if isinstance(part, torch.Generator):
        part.set_state(state.cpu())
    elif isinstance(part, np.random.RandomState):
        kind, keys, *rest = state
        part.set_state((kind, np.array(keys, np.uint32), *rest))
    elif isinstance(part, np.random.Generator):
        part.bit_generator.state = state
    elif isinstance(part, random.Random):
        part.setstate(as_tuples(state))
    elif isinstance(part, Engine):
        for name in _ENGINE_STATE:
            if name in state:
                setattr(part.state, name, state[name])
        if state["terminated"]:
            part.terminate()
    else:
        part.load_state_dict(state)


def _has_state(value: Any) -> bool:
    if isinstance(value, Metric):
        return False
    sources = (Engine, torch.Generator, np.random.RandomState, np.random.Generator, random.Random)
    return isinstance(value, sources) or _saves_itself(value)


def _saves_itself(value: Any) -> bool:
    return all(callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict"))


def _is_whole(value: Any) -> bool:
    """Whether there is nothing to look for inside."""
    return (
        isinstance(value, (torch.nn.Module, torch.optim.Optimizer, State, Metric, Iterator, types.ModuleType))
        or (_saves_itself(value) and not isinstance(value, Engine))
        or isinstance(value, (torch.Generator, np.random.RandomState, np.random.Generator, random.Random))
    )


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (list, tuple)):
        yield from ((str(i), child) for i, child in enumerate(value))
    elif isinstance(value, Mapping):
        # keys that are no text, such as ignite's events, go by their place
        yield from ((key if isinstance(key, str) else str(i), child) for i, (key, child) in enumerate(value.items()))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield "self", value.__self__
    elif isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # a name that is not bound yet
                continue
    elif type(value).__module__.partition(".")[0] not in sys.stdlib_module_names:
        yield from vars(value).items() if hasattr(value, "__dict__") else ()
        if isinstance(value, Randomizable) and "R" not in vars(value):
            yield "R", value.R  # MONAI's default, one for all transforms that were given none


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's, inside containers; all else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    return value


def as_tuples(value: Any) -> Any:
    """Lists as tuples, all the way down, as Python's random module wants its state."""
    return tuple(map(as_tuples, value)) if isinstance(value, (list, tuple)) else value
