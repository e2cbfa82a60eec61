# SPDX-License-Identifier: Apache-2.0
"""`Keeper`: where an evaluation case by case keeps what is done, alone, as a shard or in a distributed group."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import ignite.distributed as idist

from monai_smia.engines.faults import MachineFault, of_machine
from monai_smia.engines.file_digests import FileDigests
from monai_smia.engines.folder_lock import FolderLock
from monai_smia.engines.progress import Progress, Record
from monai_smia.engines.progress_log import ProgressLog, append_end, append_record, read_log, refuse_other_settings
from monai_smia.engines.shards import (
    WHOLE_RUN,
    Shard,
    group_shard,
    merge_folder,
    merge_logs,
    missing_shards,
    refuse_another_division,
    shard_files,
)

P = ParamSpec("P")
R = TypeVar("R")


class Keeper:
    """The progress of a run, in memory and in its file.

    Args:
        folder: of the file; ``None`` for none.
        settings: what the run is made of, name to text.
        shard: see `Shard.of`; ``None`` for all batches, or in a distributed group for the share of this process.
        resume: go on with what `folder` holds.
        retry_failed: go on, and do those batches anew in which cases failed.

    Raises:
        FileExistsError: when `folder` holds the progress of an earlier run and `resume` is false.
        ValueError: when that cannot be gone on with.
    """

    def __init__(
        self,
        folder: str | Path | None,
        settings: Mapping[str, str],
        shard: Any,
        resume: bool,
        retry_failed: bool = False,
    ) -> None:
        self.group = shard is None and group_shard() is not None
        self.shard = group_shard() if shard is None else Shard.of(shard)
        self.folder = None if folder is None else Path(folder)
        self.complete = False
        self._log = ProgressLog(dict(settings), None if self.shard is None else (self.shard.index, self.shard.count))
        self._file: Path | None = None
        if self.folder is None:
            return
        with _all_or_none() if self.group else nullcontext():
            self._open(self.folder, resume or retry_failed)
            if retry_failed:
                self.reopen(number for number, record in self.state.records.items() if record.failures)

    def _open(self, folder: Path, resume: bool) -> None:
        """Go on with what the folder holds, see `Keeper`."""
        refuse_another_division(folder, self.shard)
        if self.shard is None and shard_files(folder):
            self._refuse(folder, resume)
            self._log.progress = merge_folder(folder, self._log.settings)
            self.complete = True
            return
        self._file = folder / (WHOLE_RUN if self.shard is None else f"{self.shard.name}.pt")
        if self._file.exists():
            self._refuse(folder, resume)
            log = read_log(self._file, mend=True)
            refuse_other_settings(log.settings, self._log.settings)
            self._log = log

    @property
    def state(self) -> Progress:
        """What is done."""
        return self._log.progress

    @property
    def is_first(self) -> bool:
        """Whether the first batch of the evaluation is in here."""
        return self.shard is None or self.shard.index == 1

    @property
    def shows(self) -> bool:
        """Whether a bar is of use: one in a group is enough."""
        return not self.group or self.is_first

    def share(self, batches: int | None) -> int | None:
        """How many of so many batches are to be done here."""
        if batches is None or self.shard is None:
            return batches
        return sum(map(self.shard.has, range(batches)))

    def wants(self, number: int) -> bool:
        """Whether the batch of this number is to be done here, and is not yet."""
        return number not in self.state.records and (self.shard is None or self.shard.has(number))

    def digests(self) -> FileDigests:
        """Of the cases' files, those that other shards know included."""
        if self.folder is None:
            return FileDigests()
        own = ".monai-smia-digests.json" if self.shard is None else f".monai-smia-{self.shard.name}-digests.json"
        return FileDigests(self.folder / own, sorted(self.folder.glob(".monai-smia-*digests.json")))

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder is this run's, or this shard's, while it lasts."""
        if self.folder is None:
            yield
            return
        with hold(self.folder, self.shard):
            there = self._file is not None and self._file.exists()
            if there and (self._log.end is None or self._file.stat().st_size != self._log.end):  # type: ignore[union-attr]
                raise FileExistsError(
                    f"folder: {self._file} was written by another run meanwhile; expected one run at a time"
                )
            yield

    def reopen(self, numbers: Iterable[int]) -> None:
        """Batches that are to be done anew; what replaces them counts.

        Raises:
            ValueError: when they are of shards that are put together.
        """
        numbers = list(numbers)
        if numbers and self.complete and self.folder is not None and self._file is None:
            raise ValueError(
                f"retry_failed: {self.folder} holds finished shards; expected shard=i/n as well, one shard at a time"
            )
        for number in numbers:
            self.state.records.pop(number, None)
            self.complete = False

    def keep(self, record: Record) -> None:
        """A batch is done."""
        self.state.add(record)
        if self._file is not None:
            append_record(self._file, self._log, record)

    def finish(self, batches: int) -> None:
        """All batches in here are done; if it was the last shard, what all did is put together.

        Args:
            batches: how many the whole evaluation has.
        """
        if self.shard is None:
            self.complete = True
            if not self.state.names:
                self.forget()
            return
        if self._log.batches is None:
            self._log.batches = batches
            if self._file is not None:
                append_end(self._file, self._log)
        if self.group or self.folder is None or missing_shards(self.folder):
            return
        merged = merge_folder(self.folder, self._log.settings)
        self._log = ProgressLog(self._log.settings, self._log.shard, batches, merged)
        self.complete = True

    def forget(self) -> None:
        """Leave the folder free for a run with better arguments: of this one nothing is worth going on with."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._log.end = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """The processes of a group wait at its end, and have what all did afterwards.

        Raises:
            RuntimeError: when another process failed; it names which, and the error.
        """
        if not self.group:
            yield
            return
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        found: list[Any] = idist.all_gather((_words(failed), _packed(self._log)))
        _raise(failed, [words for words, _ in found])
        logs = [_unpacked(log) for _, log in found]
        self._log = ProgressLog(
            self._log.settings, self._log.shard, self._log.batches, merge_logs(logs, self._log.settings)
        )
        self.complete = True

    @staticmethod
    def _refuse(folder: Path, resume: bool) -> None:
        if not resume:
            raise FileExistsError(
                f"folder: {folder} holds an earlier run; expected an empty folder, or resume=True to go on with it"
            )


@contextmanager
def _all_or_none() -> Iterator[None]:
    """An error inside it in one process of the group is raised in all, so that none waits for the others in vain."""
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    _raise(failed, idist.all_gather(_words(failed)))


def _words(failed: Exception | None) -> tuple[str, bool]:
    """An error for the other processes, and whether it is the machine's; no text for none."""
    return ("", False) if failed is None else (f"{type(failed).__name__}: {failed}", of_machine(failed))


def _raise(failed: Exception | None, found: list[tuple[str, bool]]) -> None:
    """The error of this process, else that of another."""
    if failed is not None:
        raise failed
    for rank, (words, machine) in enumerate(found):
        if words:
            raise (MachineFault if machine else RuntimeError)(f"rank {rank}: {words}")


@contextmanager
def hold(folder: Path, shard: Shard | None) -> Iterator[None]:
    """A folder is this run's while it lasts, see `FolderLock`; in a group all of its processes hold it, or none.

    Raises:
        FolderInUse: when another run, or another process with the same shard, writes into it.
    """
    with ExitStack() as stack:
        lock = FolderLock(folder, None if shard is None else shard.name)
        if idist.get_world_size() > 1 and shard == group_shard():
            with _all_or_none():
                stack.enter_context(lock)
        else:
            stack.enter_context(lock)
        yield


def holding(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: the folder in the argument of this name is the call's while it lasts, see `hold`.

    With an argument ``shard``, or in a distributed group, it is that shard's.
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def held(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments.get("shard")
            shared = "shard" in signature.parameters
            shard = Shard.of(given) if given is not None else group_shard() if shared else None
            with hold(Path(bound.arguments[name]).absolute(), shard):
                return function(*args, **kwargs)

        return held

    return decorated


def _packed(log: ProgressLog) -> Any:
    records = [record.values() for record in log.progress.records.values()]
    return log.settings, log.shard, log.batches, records


def _unpacked(values: Any) -> ProgressLog:
    settings, shard, batches, records = values
    progress = Progress()
    for record in records:
        progress.add(Record.of(record))
    return ProgressLog(settings, shard, batches, progress)
