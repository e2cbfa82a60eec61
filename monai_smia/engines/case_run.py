# SPDX-License-Identifier: Apache-2.0
"""`run_batch`: one batch through an evaluator, clean or attacked, as if its loader held nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys

from monai_smia.attacks import Attack, AttackResult
from monai_smia.engines.ignite import private
from monai_smia.engines.records import CaseRecorder
from monai_smia.engines.tally import Entry, Tally

Fitted = Callable[[str, Attack, torch.Tensor], Attack]
"""``(name, attack, image) -> attack`` with what depends on the batch, such as an eps relative to each image."""

Made = Callable[[str, Any, Any, torch.Generator], tuple[Any, AttackResult]]
"""``(name, engine, batch, generator) -> (batch, result)``: a batch made in another way than by an attack on it."""


class Watcher(Protocol):
    """Sees every run of every batch, to keep pictures of it."""

    def saw(self, run: str, batch: Any, output: Any, forward: Any, result: AttackResult | None) -> None:
        """A run of the batch is done; `forward` is the network's own output, `output` the postprocessed one."""

    def keep(self, names: Sequence[str], recorder: CaseRecorder) -> None:
        """All runs of the batch are done."""

    def drop(self) -> None:
        """A run of the batch failed."""

    def noted(self) -> None:
        """What was kept last is in the log: a kill cannot lose it any more."""


@dataclass
class Seen:
    """What a run of a batch left.

    Attributes:
        batch: as the network saw it.
        output: as the metrics saw it.
        forward: the network's own output, before postprocessing.
        result: of the attack; ``None`` where there was none.
        entries: what each metric counted.
    """

    batch: Any = None
    output: Any = None
    forward: Any = None
    result: Any = None
    entries: Any = None


def run_batch(
    evaluator: Any,
    batch: Any,
    number: int,
    tally: Tally,
    *,
    attack: Callable[[Any], tuple[Any, AttackResult]] | None,
    before: Sequence[Entry],
    indices: Sequence[int] = (),
) -> Seen:
    """Run the evaluator over one batch.

    Args:
        evaluator: its loader and the length of its epochs are put back.
        batch: as the loader gave it.
        number: of the batch in the evaluation; the seed of its attacks depends on it.
        tally: counts.
        attack: ``engine -> (batch, result)``, before the network sees the batch; ``None`` for a clean run.
        before: see `Tally.begin`.
        indices: of the batch's items in the dataset, for what makes a batch in another way.
    """
    seen = Seen()

    def begin(engine: Any) -> None:
        engine.state.iteration = number  # for handlers of some iterations only
        tally.begin(before)

    def attacked(engine: Any) -> None:
        if attack is not None:
            engine.state.batch, seen.result = attack(engine)

    def forward(engine: Any) -> None:
        output = engine.state.output
        seen.forward = output.get(CommonKeys.PRED) if isinstance(output, dict) else output

    def end(engine: Any) -> None:
        seen.batch, seen.output = engine.state.batch, engine.state.output
        seen.entries = tally.taken(engine)

    def failed(engine: Any, error: BaseException) -> None:
        raise error  # ignite goes on after an error that a handler has seen, even after an interrupt

    events: dict[Any, Callable[..., None]] = {
        Events.EPOCH_STARTED: begin,
        Events.ITERATION_STARTED: attacked,
        Events.ITERATION_COMPLETED: end,
        Events.EXCEPTION_RAISED: failed,
    }
    if private.knows_event(evaluator, IterationEvents.FORWARD_COMPLETED):
        events[IterationEvents.FORWARD_COMPLETED] = forward
    loader, length = evaluator.data_loader, evaluator.state.epoch_length
    try:
        for event, handler in events.items():
            evaluator.add_event_handler(event, handler)
        evaluator.data_loader, evaluator.state.epoch_length = [batch], 1
        evaluator.state.first_batch, evaluator.state.indices = number, tuple(indices)
        private.forget_run(evaluator)
        evaluator.run()
    finally:
        private.forget_run(evaluator)
        evaluator.data_loader, evaluator.state.epoch_length = loader, length
        for name in ("first_batch", "indices"):
            vars(evaluator.state).pop(name, None)
        for event, handler in events.items():
            evaluator.remove_event_handler(handler, event)
            if not private.handlers_of(evaluator)[event]:
                del private.handlers_of(evaluator)[event]
    return seen
