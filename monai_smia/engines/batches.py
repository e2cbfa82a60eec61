# SPDX-License-Identifier: Apache-2.0
"""The batches of an evaluation one at a time, so that one that cannot be read does not stop the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Subset, TensorDataset

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


@dataclass(frozen=True)
class Planned:
    """A batch not yet loaded.

    Attributes:
        number: of the batch, from 0.
        indices: of its items in the dataset; empty where the loader has no index.
        first: number of its first case among all cases.
        load: gives the batch, of the items asked for or of all, and the failures of those that could not be loaded.
        name: the file of the item of an index.
    """

    number: int
    indices: tuple[int, ...]
    first: int
    load: Callable[[Sequence[int]], tuple[Any, list[Failure]]]
    name: Callable[[int], str] = str


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


def plan(loader: Any, image_key: str) -> Iterator[Planned]:
    """Every batch of a loader, in the order of its dataset where it has one, whatever its sampler says.

    Items are loaded here, one by one, not by the loader's workers.

    Args:
        loader: a `DataLoader` over a dataset with an index, or anything that gives batches when iterated over.
        image_key: names a case by its file.
    """
    if not _has_index(loader):
        first = 0
        for number, batch in enumerate(loader):
            yield Planned(number, (), first, partial(_loaded, batch))
            first += len(case_files(batch, image_key))
        return
    dataset, collate = loader.dataset, loader.collate_fn

    def load(indices: Sequence[int]) -> tuple[Any, list[Failure]]:
        items, failures = [], []
        for index in indices:
            try:
                items.append(dataset[index])
            except Exception as error:
                failures.append(failure_of(named(dataset, index, image_key), "loading", error))
        return (collate(items) if items else None), failures

    sampler = BatchSampler(range(len(dataset)), loader.batch_size, loader.drop_last)
    for number, indices in enumerate(sampler):
        yield Planned(number, tuple(indices), indices[0], load, lambda index: named(dataset, index, image_key))


def _has_index(loader: Any) -> bool:
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_size is not None
    )


def _loaded(batch: Any, indices: Sequence[int]) -> tuple[Any, list[Failure]]:
    return batch, []


def count(loader: Any) -> int | None:
    """How many batches `plan` gives, where that is known."""
    if _has_index(loader):
        size = loader.batch_size
        return len(loader.dataset) // size if loader.drop_last else -(-len(loader.dataset) // size)
    try:
        return len(loader)
    except TypeError:
        return None


def named(dataset: Any, index: int, image_key: str) -> str:
    """The file of a case that was not loaded, or its number."""
    data = getattr(dataset, "data", None)
    try:
        item = data[index]  # type: ignore[index]
        file = item[image_key] if isinstance(item, dict) else item
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
