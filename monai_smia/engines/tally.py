# SPDX-License-Identifier: Apache-2.0
"""`Tally`: what an evaluator's metrics accumulate, batch by batch, and what they say of any number of batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Events
from ignite.metrics import Metric, RunningAverage

from monai_smia.engines.guards import only_handlers
from monai_smia.engines.ignite import private
from monai_smia.engines.increments import added, same
from monai_smia.engines.metric_state import State, from_file, metrics_of, restore, state_of

ADDED, WHOLE = "added", "whole"
ROUNDING = 1e-6  # of a sum in another order, in single precision

Entry = dict[str, State]
"""Of one metric: ``{"added": what it counted in the batch}``, or ``{"whole": all that it has counted so far}``."""


class Tally:
    """Takes what each metric counted in a batch, so that batches add up whoever evaluated them, in any order.

    MONAI's and ignite's metrics add up: they keep the values of all cases, or sums. That is checked on the first batch
    that a metric counts anything of: it has to count it twice, and must then hold the sum. A metric that does not, such
    as a running average or one that is computed anew for every batch, is carried from batch to batch instead; then its
    batches cannot be split among processes.

    Args:
        evaluator: whose metrics.

    Raises:
        ValueError: for a metric that counts once an epoch, what is left of the last batch.
    """

    def __init__(self, evaluator: Any) -> None:
        self._evaluator = evaluator
        self._metrics = metrics_of(evaluator)
        self._kinds: dict[int, str] = {i: WHOLE for i, metric in enumerate(self._metrics) if _runs(evaluator, metric)}
        self._resets: list[State] | None = None

    def know(self, entries: Sequence[Sequence[Entry]]) -> None:
        """Learn from the entries of an earlier run which metrics do not add up."""
        for part in entries:
            self._kinds.update({i: WHOLE for i, entry in enumerate(part) if WHOLE in entry})

    @property
    def carried(self) -> list[str]:
        """Metrics that do not add up."""
        return [type(self._metrics[i]).__name__ for i, kind in sorted(self._kinds.items()) if kind == WHOLE]

    def begin(self, before: Sequence[Entry]) -> None:
        """A batch begins, after the metrics were reset.

        Args:
            before: what `taken` gave for the batch before, of the same run; empty for the first.
        """
        if self._resets is None:
            self._resets = [state_of(metric) for metric in self._metrics]
        for i, metric in enumerate(self._metrics):
            if self._kinds.get(i) == WHOLE and before:
                restore(metric, next(iter(before[i].values())))

    def taken(self, engine: Any) -> list[Entry]:
        """A batch is counted: what each metric makes of it."""
        entries = []
        for i, metric in enumerate(self._metrics):
            state = state_of(metric)
            if i not in self._kinds:
                self._check(i, metric, state, engine)
            kind = self._kinds.get(i, ADDED)
            entries.append({kind: state if kind == WHOLE else _on_cpu(state)})
        return entries

    def computed(self, parts: Sequence[Sequence[Entry]]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The metrics, and their details by case, of all these batches; nothing without any.

        Args:
            parts: what `taken` gave for each of them, in the order of the data.
        """
        if not parts:
            return {}, {}
        engine = self._evaluator
        kept = {name: vars(engine.state)[name] for name in ("metrics", "metric_details") if name in vars(engine.state)}
        engine.state.metrics, engine.state.metric_details = {}, {}
        try:
            with only_handlers(engine, Metric):
                for metric in self._metrics:
                    metric.reset()
                resets = [state_of(metric) for metric in self._metrics]
                for i, metric in enumerate(self._metrics):
                    restore(metric, _total(resets[i], [part[i] for part in parts]))
                for entry in private.handlers_of(engine).get(Events.ITERATION_COMPLETED, []):
                    if _does(entry, "completed"):  # a metric that is computed after every batch
                        private.call(engine, entry)
                engine.fire_event(Events.EPOCH_COMPLETED)
                engine.fire_event(Events.COMPLETED)
            return dict(engine.state.metrics), dict(engine.state.metric_details)
        finally:
            for name, value in kept.items():
                setattr(engine.state, name, value)

    def _check(self, i: int, metric: Metric, state: State, engine: Any) -> None:
        """Count the batch a second time: does that add up?"""
        assert self._resets is not None
        reset = self._resets[i]
        if same(state, reset):
            return
        metric.iteration_completed(engine)
        twice = state_of(metric)
        restore(metric, state)
        summed = added(reset, state, state)
        if same(twice, state) and same(twice, summed):  # zeros: a sum and a running value look alike
            return
        self._kinds[i] = ADDED if same(twice, summed, ROUNDING) else WHOLE


def _runs(engine: Any, metric: Metric) -> bool:
    """Whether a metric goes on from batch to batch otherwise than by adding up: by its class, or by its usage.

    Raises:
        ValueError: for a metric that counts at the end of an epoch what is no metric.
    """
    handlers = private.handlers_of(engine)
    own = {
        event: [entry for entry in entries if private.owner_of(entry[0]) is metric]
        for event, entries in handlers.items()
    }
    counts_epochs = any(_does(entry, "iteration_completed") for entry in own.get(Events.EPOCH_COMPLETED, []))
    if counts_epochs and getattr(metric, "src", None) is None:
        raise ValueError(
            f"evaluator: a {type(metric).__name__} counts the output of the last batch when an epoch ends; expected "
            "a metric that counts every batch"
        )
    after_batches = any(_does(entry, "completed") for entry in own.get(Events.ITERATION_COMPLETED, []))
    return after_batches or (isinstance(metric, RunningAverage) and not counts_epochs)


def _does(entry: private.Entry, method: str) -> bool:
    """Whether a handler is this method of a metric."""
    function = getattr(entry[0], "__wrapped__", entry[0])
    return isinstance(private.owner_of(entry[0]), Metric) and getattr(function, "__name__", "") == method


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {name: _on_cpu(item) for name, item in value.items()}
    return type(value)(_on_cpu(item) for item in value) if type(value) in (list, tuple, set) else value


def _total(reset: State, entries: Sequence[Entry]) -> State:
    if WHOLE in entries[-1]:
        return entries[-1][WHOLE]
    zero = total = _on_cpu(reset)
    for entry in entries:
        total = added(zero, total, from_file(entry[ADDED]))
    return dict(total)
