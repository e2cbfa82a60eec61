# SPDX-License-Identifier: Apache-2.0
"""The batches of an evaluation one at a time, so that one that cannot be read does not stop the others."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from monai_smia.engines.faults import MachineFault, is_mistake, of_machine, one_line
from monai_smia.handlers.batch import case_files

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A case that could not be evaluated.

    Attributes:
        case: its file, or its number.
        stage: what failed: ``"loading"``, ``"clean"`` or the name of an attack.
        error: the error's type and first line.
    """

    case: str
    stage: str
    error: str

    @classmethod
    def of(cls, case: str, stage: str, error: BaseException) -> Failure:
        """From an error."""
        lines = str(root_cause(error)).strip().splitlines() or [""]
        return cls(case, stage, f"{type(root_cause(error)).__name__}: {lines[0]}")


class Loaded(NamedTuple):
    """A batch that was loaded.

    Attributes:
        batch: as the loader gives it; ``None`` where no item could be loaded.
        failures: of the items that could not.
        indices: of the items that could; empty where the loader has no index.
    """

    batch: Any
    failures: list[Failure]
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Planned:
    """A batch not yet loaded.

    Attributes:
        number: of the batch, from 0.
        indices: of its items in the dataset; empty where the loader has no index.
        first: number of its first case among all cases.
        load: gives the batch of the items asked for.
        name: the file of the item of an index.
        places: how many items of the file of each of `indices` come up to it, as the data list has it: 1 is the first.
    """

    number: int
    indices: tuple[int, ...]
    first: int
    load: Callable[[Sequence[int]], Loaded]
    name: Callable[[int], str] = str
    places: tuple[int, ...] = ()

    def places_of(self, indices: Sequence[int]) -> list[int]:
        """The places of some of the items."""
        if tuple(indices) == self.indices:
            return list(self.places)
        known = dict(zip(self.indices, self.places, strict=True))
        return [known[index] for index in indices]


def failure_of(case: str, stage: str, error: Exception) -> Failure:
    """The failure of a case; an error in the program comes with its traceback on stderr, others in debugging.

    Raises:
        MachineFault: for an error that is not the case's.
    """
    if of_machine(error):
        raise MachineFault(f"{case} ({stage}): {one_line(root_cause(error))}") from error
    level = logging.ERROR if is_mistake(root_cause(error)) else logging.DEBUG
    LOG.log(level, "%s (%s): failed", case, stage, exc_info=error)
    return Failure.of(case, stage, error)


def plan(loader: Any, image_key: str, length: int | None = None) -> Iterator[Planned]:
    """The batches of an evaluation, in the order of the loader's sampler.

    A sampler that only shuffles is read in the order of its data, so that an interrupted run can go on. The
    `DistributedSampler` of a group deals out what a `Shard` deals out here, and is read as one for all. Items are
    loaded here, one by one, not by the loader's workers.

    Args:
        loader: a `DataLoader` over a dataset with an index, or anything that gives batches when iterated over.
        image_key: names a case by its file.
        length: how many batches, the first ones, as an evaluator's ``epoch_length``; ``None`` for all.

    Raises:
        ValueError: when the loader gives fewer batches, or its sampler other cases at every run.
    """
    if not _has_index(loader):
        first = 0
        for number, batch in enumerate(islice(loader, length)):
            yield Planned(number, (), first, partial(_loaded, batch))
            first += len(case_files(batch, image_key))
        return
    dataset, collate = loader.dataset, loader.collate_fn

    def load(indices: Sequence[int]) -> Loaded:
        items, failures, read = [], [], []
        for index in indices:
            try:
                items.append(dataset[index])
                read.append(index)
            except Exception as error:
                failures.append(failure_of(named(dataset, index, image_key), "loading", error))
        return Loaded(collate(items) if items else None, failures, tuple(read))

    first, seen = 0, Counter[str]()
    for number, indices in enumerate(index_batches(loader, length)):
        places = []
        for index in indices:
            seen[file := named(dataset, index, image_key)] += 1
            places.append(seen[file])
        yield Planned(number, indices, first, load, lambda index: named(dataset, index, image_key), tuple(places))
        first += len(indices)


def count(loader: Any, length: int | None = None) -> int | None:
    """How many batches `plan` gives, where that is known."""
    if _has_index(loader):
        return len(index_batches(loader, length))
    try:
        return len(loader) if length is None else length
    except TypeError:
        return None


def check_length(evaluator: Any) -> None:
    """Refuse an evaluation without an end, and one that begins its data again before it is over.

    Raises:
        ValueError: naming the evaluator's loader and ``epoch_length``.
    """
    length, batches = evaluator.state.epoch_length, None
    with suppress(TypeError):
        batches = len(evaluator.data_loader)
    if length is None and batches is None:
        raise ValueError(
            f"evaluator: its loader, a {type(evaluator.data_loader).__name__}, has no length, so that it may never "
            "end; expected epoch_length=, the number of its batches"
        )
    if length is not None and batches is not None and length > batches:
        raise ValueError(
            f"evaluator: expected an epoch_length of at most the {batches} batches of its loader, each once; "
            f"got {length}"
        )


def index_batches(loader: Any, length: int | None = None) -> list[tuple[int, ...]]:
    """The indices of every batch of a loader that has an index, see `plan`."""
    batches = loader.batch_sampler
    if type(batches) is not BatchSampler:
        first, again = _drawn(batches, length)
        if first != again:
            raise ValueError(
                f"evaluator: its loader's {type(batches).__name__} gives other batches at every run; expected the same"
            )
        return _first_ones([tuple(batch) for batch in first], length)
    sampler: Any = batches.sampler
    if length is not None and _deals_out(sampler):  # so many in each process
        length = None if length == len(loader) else length * sampler.num_replicas
    size = None if length is None else length * batches.batch_size
    order: list[int]
    if isinstance(sampler, SequentialSampler) or _deals_out(sampler):
        order = list(range(len(loader.dataset)))
    else:
        order, again = _drawn(sampler, size)
        if order != again:
            if sorted(order) != sorted(again):
                raise ValueError(
                    f"evaluator: its loader's {type(sampler).__name__} gives other cases at every run; expected the "
                    "same ones, as of a sequential sampler"
                )
            order.sort()
    own = BatchSampler(order, batches.batch_size, batches.drop_last)
    return _first_ones([tuple(batch) for batch in own], length)


@contextmanager
def other_loader(evaluator: Any, loader: Any) -> Iterator[None]:
    """The evaluator inside it runs through all of another loader; it has its own, and its length, again afterwards."""
    kept = evaluator.data_loader, evaluator.state.epoch_length
    evaluator.data_loader, evaluator.state.epoch_length = loader, len(loader)
    try:
        yield
    finally:
        evaluator.data_loader, evaluator.state.epoch_length = kept


def one_by_one(evaluator: Any) -> DataLoader[Any]:
    """A loader of the evaluator's cases, those of its sampler and ``epoch_length``, in batches of one."""
    loader = evaluator.data_loader
    order = [index for batch in index_batches(loader, evaluator.state.epoch_length) for index in batch]
    return DataLoader(loader.dataset, batch_size=1, sampler=order, num_workers=0, collate_fn=loader.collate_fn)


def _first_ones(batches: list[tuple[int, ...]], length: int | None) -> list[tuple[int, ...]]:
    if length is not None and length > len(batches):
        raise ValueError(
            f"evaluator: expected an epoch_length of at most the {len(batches)} batches of its loader, each once; "
            f"got {length}"
        )
    return batches[:length]


def _deals_out(sampler: Any) -> bool:
    """Whether a sampler gives this process of a group its share."""
    group = torch.distributed.is_available() and torch.distributed.is_initialized()
    size = torch.distributed.get_world_size() if group else 1
    return isinstance(sampler, DistributedSampler) and size > 1 and sampler.num_replicas == size


def _drawn(sampler: Any, size: int | None) -> tuple[list[Any], list[Any]]:
    """What a sampler gives, two times; all randomness is left as it was found.

    Args:
        sampler: of indices or of batches.
        size: how many to take from one that has no length, which may never end.
    """
    try:
        len(sampler)
        size = None
    except (TypeError, NotImplementedError):
        if size is None:
            raise ValueError(
                f"evaluator: its loader's {type(sampler).__name__} has no length, so that it may never end; expected "
                "epoch_length=, the number of batches"
            ) from None
    own = getattr(sampler, "generator", None)
    state = own.get_state() if isinstance(own, torch.Generator) else None
    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 (what a sampler may draw from)
    try:
        with torch.random.fork_rng(devices=[]):
            return list(islice(sampler, size)), list(islice(sampler, size))
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)  # noqa: NPY002
        if state is not None:
            own.set_state(state)  # type: ignore[union-attr]


def _has_index(loader: Any) -> bool:
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
    )


def _loaded(batch: Any, indices: Sequence[int]) -> Loaded:
    return Loaded(batch, [], ())


def named(dataset: Any, index: int, image_key: str) -> str:
    """The file of a case that was not loaded, or its number."""
    data = getattr(dataset, "data", None)
    try:
        item = data[index]  # type: ignore[index]
        file = item[image_key] if isinstance(item, dict) else item
        file = getattr(file, "meta", {}).get("filename_or_obj", file)
        file = file[0] if isinstance(file, (list, tuple)) and file else file
        return str(file) if isinstance(file, (str, bytes)) or hasattr(file, "__fspath__") else str(index)
    except Exception:
        return str(index)


def item_of(dataset: Any, index: int) -> Any:
    """What a dataset makes a case of: the entry of its data list; ``None`` where it does not tell."""
    while isinstance(dataset, Subset):
        dataset, index = dataset.dataset, int(dataset.indices[index])
    data = dataset if isinstance(dataset, (list, tuple, TensorDataset)) else getattr(dataset, "data", None)
    try:
        return data[index] if len(data) == len(dataset) else None  # type: ignore[arg-type, index]
    except (TypeError, KeyError, IndexError):  # no list
        return None


def root_cause(error: BaseException) -> BaseException:
    """The error behind MONAI's "applying transform ..." wrappers."""
    while type(error) is RuntimeError and error.__cause__ is not None and "applying transform" in str(error):
        error = error.__cause__
    return error
