# SPDX-License-Identifier: Apache-2.0
"""Evaluating some cases of a data set only: the first few, or those of given file names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from monai.data import DataLoader
from torch.utils.data import Dataset, Subset

from monai_smia.bundle.errors import BundleError
from monai_smia.engines.batches import index_batches

P = ParamSpec("P")
R = TypeVar("R")
Cases = int | str | Sequence[str] | None


def as_cases(cases: Cases) -> int | tuple[str, ...] | None:
    """A number, or file names with or without suffix, which may hold ``*``; a string of digits is a number.

    Raises:
        BundleError: for anything but a whole number of at least 1, or names.

    Example:
        >>> as_cases("20"), as_cases("spleen_10, spleen_2*")
        (20, ('spleen_10', 'spleen_2*'))
    """
    if cases is None:
        return None
    if isinstance(cases, str):
        cases = int(cases) if cases.strip().isdigit() else [name.strip() for name in cases.split(",") if name.strip()]
    several = isinstance(cases, (list, tuple)) and all(isinstance(name, str) and name.strip() for name in cases)
    number = isinstance(cases, int) and not isinstance(cases, bool) and cases >= 1
    if not number and not (several and cases):
        raise BundleError(f"cases: expected a number of at least 1, or file names; got {cases!r}")
    return cases if isinstance(cases, int) else tuple(cases)


def limited(dataset: Any, cases: int | tuple[str, ...] | None) -> Any:
    """The data set with the wanted cases only: the same object with a shorter ``data``, else a subset of it.

    Raises:
        BundleError: when the data set has no length or a name is in no case.
    """
    if cases is None:
        return dataset
    if not hasattr(dataset, "__len__"):
        raise BundleError(f"cases: expected a data set with a length; {type(dataset).__name__} has none")
    data = _list_of(dataset)
    sized = data is not None
    items: Any = [] if data is None else data
    wanted = list(range(min(cases, len(dataset)))) if isinstance(cases, int) else _named(items, cases)
    if not sized:
        return Subset(dataset, wanted)
    kept = [items[index] for index in wanted]
    if callable(getattr(dataset, "set_data", None)):
        dataset.set_data(kept)  # a caching data set keeps more than the list
    else:
        dataset.data = kept
    return dataset


class ChosenCases(Dataset[Any]):
    """Some cases of a data set, which stays as it is.

    Args:
        dataset: with an index.
        indices: of the cases, in their order.
    """

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = list(indices)
        self.transform = getattr(dataset, "transform", None)
        if (data := _list_of(dataset)) is not None:
            self.data = [data[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]


def use_cases(evaluator: Any, cases: int | tuple[str, ...] | None) -> None:
    """Give the evaluator a loader of the wanted cases only, of those that its own loader gives it.

    Raises:
        BundleError: when the data set has no length or a name is in no case.
    """
    loader = evaluator.data_loader
    dataset = getattr(loader, "dataset", None)
    if not hasattr(dataset, "__len__") or getattr(loader, "batch_sampler", None) is None:
        raise BundleError(f"cases: expected a data set with a length; {type(dataset or loader).__name__} has none")
    order = [index for batch in index_batches(loader, evaluator.state.epoch_length) for index in batch]
    data = _list_of(dataset)
    if isinstance(cases, tuple):
        order = [order[i] for i in _named([] if data is None else [data[index] for index in order], cases)]
    own = ChosenCases(dataset, order[:cases] if isinstance(cases, int) else order)
    size = getattr(loader.batch_sampler, "batch_size", None) or 1
    evaluator.data_loader = DataLoader(own, batch_size=size, collate_fn=loader.collate_fn)
    evaluator.state.epoch_length = len(evaluator.data_loader)


def loader_as_found(function: Callable[P, R]) -> Callable[P, R]:
    """A function of an evaluator that leaves the evaluator its loader and its length, also after an error."""

    @functools.wraps(function)
    def kept(*args: P.args, **kwargs: P.kwargs) -> R:
        evaluator: Any = args[0] if args else kwargs["evaluator"]
        found = evaluator.data_loader, evaluator.state.epoch_length
        try:
            return function(*args, **kwargs)
        finally:
            evaluator.data_loader, evaluator.state.epoch_length = found

    return kept


def _list_of(dataset: Any) -> Sequence[Any] | None:
    """The data set's list of data, where it has one of its own length."""
    data = getattr(dataset, "data", None)
    return data if data is not None and hasattr(data, "__len__") and len(data) == len(dataset) else None


def _named(data: Sequence[Any], patterns: tuple[str, ...]) -> list[int]:
    names = [sorted(set(_file_names(item))) for item in data]
    used = set()
    wanted = []
    for index, own in enumerate(names):
        hits = {pattern for pattern in patterns for name in own if fnmatchcase(name, pattern)}
        used |= hits
        if hits:
            wanted.append(index)
    if lost := [pattern for pattern in patterns if pattern not in used]:
        there = [min(own, key=len) for own in names if own]
        some = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "")
        raise BundleError(f"cases: expected names of the {len(data)} cases ({some or 'which have none'}); got {lost}")
    return wanted


def _file_names(item: Any) -> Iterator[str]:
    """Names of the files of a case, with and without suffix."""
    if hasattr(item, "meta"):
        item = item.meta.get("filename_or_obj")
    if isinstance(item, (str, Path)):
        name = Path(item).name
        yield name
        yield Path(name.removesuffix(".gz")).stem
    elif isinstance(item, Mapping):
        for value in item.values():
            yield from _file_names(value)
    elif isinstance(item, (list, tuple)):
        for value in item:
            yield from _file_names(value)
