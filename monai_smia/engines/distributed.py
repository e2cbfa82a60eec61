# SPDX-License-Identifier: Apache-2.0
"""What an evaluation in a distributed group needs: every case once, and all of them in the order of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.metrics import Cumulative
from torch.utils.data.distributed import DistributedSampler

from monai_smia.engines.guards import only_handlers
from monai_smia.engines.ignite import private
from monai_smia.engines.metric_state import metrics_of
from monai_smia.engines.records import CaseRecorder


@contextmanager
def without_padding(evaluator: Any) -> Iterator[None]:
    """Inside it the loader's `DistributedSampler` gives every case to one process, and no process a case twice.

    By default (``even_divisible=True``) it repeats the first cases, so that all processes have as many.

    Raises:
        ValueError: when there are fewer cases than processes.
    """
    loader = evaluator.data_loader
    sampler = getattr(loader, "sampler", None)
    size = len(sampler.dataset) if isinstance(sampler, DistributedSampler) else 0  # type: ignore[arg-type]
    if not isinstance(sampler, DistributedSampler) or not private.is_padded(sampler, size):
        yield
        return
    if size < sampler.num_replicas:
        raise ValueError(f"evaluator: expected a case for each of {sampler.num_replicas} processes; got {size}")
    kept, padded = evaluator.state.epoch_length, len(loader)
    with private.unpadded(sampler, size):
        if kept == padded:
            evaluator.state.epoch_length = len(loader)
        try:
            yield
        finally:
            evaluator.state.epoch_length = kept


class Together:
    """Puts together what the processes of a group have; alone it changes nothing.

    Args:
        evaluator: whose loader has been run through.
        names: the cases of this process, in their order.

    Raises:
        ValueError: when two processes have the same case.
    """

    def __init__(self, evaluator: Any, names: Sequence[str]) -> None:
        self._evaluator = evaluator
        self._size = idist.get_world_size()
        if self._size == 1:
            return
        sampler = getattr(evaluator.data_loader, "sampler", None)
        places = list(sampler)[: len(names)] if isinstance(sampler, DistributedSampler) else None
        unnamed = list(names) == [str(i) for i in range(len(names))]
        found = _gathered((list(names), places, unnamed))
        known = [places for _, places, _ in found if places is not None]
        total = sum(len(names) for names, _, _ in found)
        all_places = list(chain.from_iterable(known)) if len(known) == len(found) else list(range(total))
        self._order = sorted(range(total), key=all_places.__getitem__)
        before = sum(len(names) for names, _, _ in found[: idist.get_rank()])
        own = all_places[before : before + len(names)]
        self._names = dict(zip(names, map(str, own) if unnamed else names, strict=True))
        files = list(chain.from_iterable(names for names, _, unnamed in found if not unnamed))
        twice = next((name for name, often in Counter(files).items() if often > 1), None)
        if twice is not None or len(set(all_places)) < total:
            raise ValueError(
                f"evaluator: expected every case in one process, as from MONAI's DistributedSampler; got {twice} twice"
            )

    def sort_metrics(self) -> None:
        """After a run: what MONAI's metrics gathered, in the order of the data, and their values of that."""
        if self._size == 1:
            return
        for metric in metrics_of(self._evaluator):
            cumulative = getattr(metric, "metric_fn", None)
            if not isinstance(cumulative, Cumulative):
                continue
            gathered = private.gathered(cumulative)
            if gathered is not None and all(len(tensor) == len(self._order) for tensor in gathered):
                private.put_gathered(cumulative, [tensor[torch.as_tensor(self._order)] for tensor in gathered])
        with only_handlers(self._evaluator, Metric):
            self._evaluator.fire_event(Events.EPOCH_COMPLETED)

    def gather(self, recorder: CaseRecorder) -> None:
        """The rows of all processes into every process's recorder."""
        if self._size == 1:
            return
        own = [{**row, "case": self._names[row["case"]]} for row in recorder.certificates]
        found = _gathered(([self._names[name] for name in recorder.names], recorder.rows, own))
        names = list(chain.from_iterable(names for names, _, _ in found))
        recorder.names = [names[i] for i in self._order]
        rows = {run: list(chain.from_iterable(rows[run] for _, rows, _ in found)) for run in recorder.rows}
        recorder.rows = {run: [values[i] for i in self._order] for run, values in rows.items()}
        places = {name: i for i, name in enumerate(recorder.names)}
        certificates = chain.from_iterable(certificates for _, _, certificates in found)
        recorder.certificates = sorted(certificates, key=lambda row: places[row["case"]])


def of_first(value: Any) -> Any:
    """What the first process has, in all of them."""
    return value if idist.get_world_size() == 1 else _gathered(value)[0]


def _gathered(value: Any) -> list[Any]:
    """One value of each process; in a tuple, so that ignite takes any as it is."""
    found: Any = idist.all_gather((value,))
    return [item[0] for item in found]
