# SPDX-License-Identifier: Apache-2.0
"""Private names of ignite, MONAI and torch: one small function for each, and no other module uses any.

A release that changes one of them breaks this file and its test, `tests/engines/test_private_names.py`, and nothing
else. ``_iteration`` is the method that MONAI's engines ask their subclasses to write; a subclass writes it, and only
calling it from outside stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ignite.distributed import utils
from ignite.distributed.comp_models.base import _SerialModel
from ignite.metrics import Metric
from monai.metrics import Cumulative
from torch.utils.data.distributed import DistributedSampler

Entry = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A handler as ignite keeps it: the function, and the arguments that it is called with."""


def handlers_of(engine: Any) -> dict[Any, list[Entry]]:
    """Event to its handlers, in their order; a change of it changes the engine (ignite: ``_event_handlers``)."""
    handlers: dict[Any, list[Entry]] = engine._event_handlers
    return handlers


def owner_of(function: Any) -> Any:
    """The object whose method handles an event, else the function.

    ignite wraps a handler that sees some events only, and marks the wrapper (``_parent``, a weak reference, which of a
    bound method is dead at once; ``__wrapped__`` is not).
    """
    if hasattr(function, "_parent"):
        function = getattr(function, "__wrapped__", function)
    return getattr(function, "__self__", function)


def stands_for(wrapper: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """The wrapper, which ignite finds and removes as if it were the handler itself (``_parent``)."""
    handler = getattr(function, "__wrapped__", function) if hasattr(function, "_parent") else function
    wrapper._parent = lambda: handler  # type: ignore[attr-defined]
    wrapper.__wrapped__ = handler  # type: ignore[attr-defined]
    return wrapper


def add_first(engine: Any, event: Any, function: Callable[[], Any]) -> None:
    """Add a handler without arguments before all others of an event, in ``_event_handlers``."""
    engine._event_handlers.setdefault(event, []).insert(0, (function, (), {}))


def fire(engine: Any, event: Any, *arguments: Any) -> None:
    """Call the handlers of an event, also of one that comes with arguments (ignite: ``_fire_event``)."""
    engine._fire_event(event, *arguments)


def call(engine: Any, entry: Entry) -> None:
    """Call one handler as ignite does, which keeps the engine among its arguments as a weak reference."""
    function, arguments, keywords = entry
    known = [engine if _refers_to(argument, engine) else argument for argument in arguments]
    function(*known, **keywords)


def forget_run(engine: Any) -> None:
    """Forget a run that failed: ignite would go on with it, and do nothing (``_internal_run_generator``)."""
    engine._internal_run_generator = None


def process(engine: Any, batch: Any) -> Any:
    """One iteration of the engine, without its events around it (ignite: ``_process_function``)."""
    return engine._process_function(engine, batch)


def iteration(engine: Any, batch: Any) -> Any:
    """One iteration as the engine's class writes it (MONAI: ``_iteration``)."""
    return engine._iteration(engine, batch)


def knows_event(engine: Any, event: Any) -> bool:
    """Whether the engine has this event (ignite: ``_allowed_events``)."""
    return event in engine._allowed_events


def attributes_of(metric: Metric | Cumulative) -> dict[str, Any]:
    """What a metric has accumulated, and how it hangs in its engine: its attributes, private ones included."""
    return vars(metric)


WIRING = frozenset({"_engine", "_name", "_device", "_output_transform"})
"""Attributes of a metric that say how it hangs in its engine and are never data (ignite and MONAI)."""


@contextmanager
def one_process() -> Iterator[None]:
    """Inside it `ignite.distributed` says that there is one process (``utils._model``, ``utils._need_to_sync``)."""
    kept = utils._model, utils._need_to_sync
    utils._model, utils._need_to_sync = _SerialModel(), False
    try:
        yield
    finally:
        utils._model, utils._need_to_sync = kept


def gathered(metric: Cumulative) -> Any:
    """What a metric gathered from all processes when it was computed (MONAI: ``_synced_tensors``)."""
    return metric._synced_tensors


def put_gathered(metric: Cumulative, tensors: list[torch.Tensor]) -> None:
    """Put back what `gathered` gave, in another order say."""
    metric._synced_tensors = tensors


def image_loader(transform: Any) -> Any:
    """The `LoadImage` inside a `LoadImaged` (MONAI: ``_loader``); the transform itself where it has none."""
    return getattr(transform, "_loader", transform)


def captured(function: Any) -> list[Any]:
    """The closure cells of a function; MONAI's engines keep their postprocessing in one (``run_postprocessing``)."""
    return list(getattr(function, "__closure__", None) or ())


@contextmanager
def unpadded(sampler: DistributedSampler[Any], size: int) -> Iterator[None]:
    """The sampler inside it deals `size` items out without repeating any (torch: ``total_size``, ``num_samples``)."""
    kept = sampler.total_size, sampler.num_samples
    sampler.total_size = size
    sampler.num_samples = len(range(sampler.rank, size, sampler.num_replicas))
    try:
        yield
    finally:
        sampler.total_size, sampler.num_samples = kept


def is_padded(sampler: DistributedSampler[Any], size: int) -> bool:
    """Whether the sampler repeats items so that all processes have as many."""
    return sampler.total_size > size


def version_of(tensor: torch.Tensor) -> int | None:
    """How often a tensor was written to in place (torch: ``_version``); ``None`` where that is not counted."""
    return None if tensor.is_inference() else tensor._version


def _refers_to(argument: Any, engine: Any) -> bool:
    return type(argument).__name__ == "ReferenceType" and argument() is engine
