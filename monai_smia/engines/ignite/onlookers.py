# SPDX-License-Identifier: Apache-2.0
"""Handlers that look on at an evaluation: they see its clean run, once, and must not change what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ignite.engine import Events

from monai_smia.engines.guards import COMPUTING, takes_part
from monai_smia.engines.ignite import private

BEFORE_THE_NETWORK = (Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED, Events.ITERATION_STARTED)


@contextmanager
def watched(evaluator: Any, own: tuple[Any, ...] = ()) -> Iterator[None]:
    """A clean run inside it fails where an onlooker changes what the network or a metric is about to see.

    Attacked runs go without onlookers, so that they would be computed in another way than the clean one.

    Args:
        evaluator: which runs.
        own: handlers that are none of the user's.

    Raises:
        ValueError: naming the handler.
    """
    pairs = [(entry, new) for _, entry, new in _entries(evaluator, own) if new is not entry]
    changed = {id(entry): new for entry, new in pairs}
    back = {id(new): entry for entry, new in pairs}
    for handlers in private.handlers_of(evaluator).values():
        handlers[:] = [changed.get(id(entry), entry) for entry in handlers]
    try:
        yield
    finally:  # entry by entry: a handler may have removed itself
        for handlers in private.handlers_of(evaluator).values():
            handlers[:] = [back.get(id(entry), entry) for entry in handlers]


class Onlookers:
    """Shows onlookers a clean run that was made without them, piece by piece, as one run.

    They see ``STARTED`` and ``EPOCH_STARTED`` once, each batch once, and at the end ``EPOCH_COMPLETED`` and
    ``COMPLETED`` once, with the metrics of all batches.

    Args:
        evaluator: with all its handlers.
        silent: kinds of handlers that are shown nothing.
    """

    def __init__(self, evaluator: Any, silent: tuple[type, ...]) -> None:
        self._evaluator = evaluator
        self._handlers: dict[Any, list[private.Entry]] = {}
        for event, entry, new in _entries(evaluator, ()):
            if not takes_part(event, entry[0]) and not isinstance(private.owner_of(entry[0]), silent):
                self._handlers.setdefault(event, []).append(new)

    def start(self, batches: int | None) -> None:
        """The run begins; it will have so many batches."""
        state = self._evaluator.state
        state.iteration, state.epoch, state.max_epochs = 0, 0, 1
        self._length = batches
        self._fire(Events.STARTED)
        state.epoch = 1
        self._fire(Events.EPOCH_STARTED)

    def batch(self, number: int, loaded: Any, batch: Any, output: Any) -> None:
        """A batch is done.

        Args:
            number: of the batch, from 0.
            loaded: as the loader gave it.
            batch, output: as they were when the iteration was completed.
        """
        if not self._handlers:
            return
        state = self._evaluator.state
        state.epoch, state.iteration = 1, number
        state.batch, state.output = None, None
        self._fire(Events.GET_BATCH_STARTED)
        state.batch = loaded
        self._fire(Events.GET_BATCH_COMPLETED)
        state.iteration = number + 1
        self._fire(Events.ITERATION_STARTED)
        state.batch, state.output = batch, output
        self._fire(Events.ITERATION_COMPLETED)

    def complete(self, metrics: dict[str, Any], details: dict[str, Any]) -> None:
        """All batches are done, and gave these metrics."""
        state = self._evaluator.state
        state.metrics, state.metric_details = metrics, details
        self._fire(Events.EPOCH_COMPLETED)
        self._fire(Events.COMPLETED)

    def fail(self, error: BaseException) -> None:
        """The run ends with an error; it is for the caller to raise it, whatever the handlers do."""
        with self._alone():
            private.fire(self._evaluator, Events.EXCEPTION_RAISED, error)

    def _fire(self, event: Any) -> None:
        with self._alone():
            private.fire(self._evaluator, event)
        if self._evaluator.should_terminate:
            self._evaluator.should_terminate = False
            raise ValueError(
                f"evaluator: a handler terminated it at {event.name.lower()}; expected none that does, or epoch_length "
                "for fewer batches"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The evaluator has these handlers only; what they remove of themselves stays removed."""
        handlers, length = private.handlers_of(self._evaluator), self._evaluator.state.epoch_length
        kept = dict(handlers)
        handlers.clear()
        handlers.update(self._handlers)
        self._evaluator.state.epoch_length = self._length
        try:
            yield
        finally:
            self._handlers = dict(handlers)
            handlers.clear()
            handlers.update(kept)
            self._evaluator.state.epoch_length = length

    _length: int | None = None


def _entries(evaluator: Any, own: tuple[Any, ...]) -> Iterator[tuple[Any, private.Entry, private.Entry]]:
    """Event, handler, and what watches that handler where it could change what is computed after it."""
    for event, handlers in private.handlers_of(evaluator).items():
        computing = [i for i, entry in enumerate(handlers) if isinstance(private.owner_of(entry[0]), COMPUTING)]
        last = max(computing, default=-1)
        for i, entry in enumerate(handlers):
            owner = private.owner_of(entry[0])
            matters = event in BEFORE_THE_NETWORK or (event == Events.ITERATION_COMPLETED and i < last)
            onlooker = not takes_part(event, entry[0]) and not any(owner is one for one in own)
            yield event, entry, _watching(evaluator, event, entry) if matters and onlooker else entry


def _watching(evaluator: Any, event: Any, entry: private.Entry) -> private.Entry:
    function, arguments, keywords = entry

    def watching(*args: Any, **kwargs: Any) -> None:
        before = list(_parts((evaluator.state.batch, evaluator.state.output)))
        function(*args, **kwargs)
        after = list(_parts((evaluator.state.batch, evaluator.state.output)))
        same = len(before) == len(after) and all(
            one is other and old == new for (one, old), (other, new) in zip(before, after, strict=True)
        )
        if not same:
            raise ValueError(
                f"evaluator: {_name(function)} on {event.name} changes the batch or the output, and attacked runs go "
                "without it; expected such a change in a transform, in prepare_batch, or on "
                "IterationEvents.MODEL_COMPLETED"
            )

    return private.stands_for(watching, function), arguments, keywords


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """Everything in a batch, and how often it was written to; the batch and output themselves may be new tuples."""
    if isinstance(value, dict):
        yield None, tuple(value)
        for item in value.values():
            yield from _parts(item)
    elif isinstance(value, (list, tuple)):
        yield None, len(value)
        for item in value:
            yield from _parts(item)
    else:
        yield value, private.version_of(value) if isinstance(value, torch.Tensor) else None


def _name(function: Callable[..., Any]) -> str:
    owner = private.owner_of(function)
    return getattr(owner, "__qualname__", type(owner).__name__)
