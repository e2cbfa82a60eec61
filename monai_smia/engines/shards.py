# SPDX-License-Identifier: Apache-2.0
"""`Shard`: a share of an evaluation's batches, and how the shares become one evaluation again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from monai_smia.engines.progress import Progress
from monai_smia.engines.progress_log import ProgressLog, read_log, refuse_other_settings

WHOLE_RUN = "progress.pt"
MOST = 100_000
"""Shards of an evaluation: more than the tasks of any job array, and few enough to count."""
_TEXT = re.compile(r"\s*(\d+)\s*/\s*(\d+)\s*")
_FILE = re.compile(r"shard-(\d+)-of-(\d+)\.pt")


@dataclass(frozen=True)
class Shard:
    """The batches `index`, `index` + `count`, ... counted from 1: the i-th of n equal shares.

    The batches are those of the whole evaluation, so that every case has the batch mates and the random numbers that it
    has there. Shares of fewer batches than shards are empty.

    Attributes:
        index: from 1 to `count`.
        count: of the shards.

    Example:
        >>> Shard.of("2/4")
        Shard(index=2, count=4)
        >>> [number for number in range(10) if Shard(2, 4).has(number)]
        [1, 5, 9]
    """

    index: int
    count: int

    @classmethod
    def of(cls, value: Any) -> Shard:
        """From ``"i/n"``, a pair, or a shard.

        Raises:
            ValueError: for anything but two whole numbers with 1 <= i <= n <= 100,000.
        """
        if isinstance(value, cls):
            return value
        found = _TEXT.fullmatch(value) if isinstance(value, str) else None
        pair: Sequence[Any] = found.groups() if found else value if isinstance(value, (tuple, list)) else ()
        numbers = [int(item) for item in pair if isinstance(item, (int, str)) and not isinstance(item, bool)]
        if len(pair) != 2 or len(numbers) != 2:
            raise ValueError(f"shard: expected i/n, such as 2/4; got {value!r}")
        index, count = numbers
        if not 1 <= index <= count:
            raise ValueError(
                f"shard: expected i/n with i from 1 to n (as the tasks of a job array --array=1-n); got {value!r}"
            )
        if count > MOST:
            raise ValueError(f"shard: expected i/n with n up to {MOST}, not more than there are batches; got {value!r}")
        return cls(index, count)

    def has(self, number: int) -> bool:
        """Whether the batch of this number, from 0, is in it."""
        return number % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """Of its file, without the ending."""
        return f"shard-{self.index}-of-{self.count}"


def group_shard() -> Shard | None:
    """The share of this process of a distributed group; ``None`` without a group."""
    return Shard(idist.get_rank() + 1, idist.get_world_size()) if idist.get_world_size() > 1 else None


def shard_files(folder: Path) -> dict[Shard, Path]:
    """The files of the shards in a folder.

    Raises:
        ValueError: when they are of different divisions.
    """
    found = ((_FILE.fullmatch(path.name), path) for path in sorted(folder.glob("shard-*.pt")))
    files = {Shard(int(match[1]), int(match[2])): path for match, path in found if match}
    counts = sorted({shard.count for shard in files})
    if len(counts) > 1:
        raise ValueError(f"folder: {folder} holds shards of {counts}; expected all of one division")
    return dict(sorted(files.items(), key=lambda item: item[0].index))


def refuse_another_division(folder: Path, shard: Shard | None) -> None:
    """A folder is of one run: in one piece, or in so many shards.

    Raises:
        ValueError: when `folder` holds something else than shards like `shard`.
    """
    files = shard_files(folder)
    if shard is not None and (folder / WHOLE_RUN).exists():
        raise ValueError(f"shard: {folder} holds a run in one piece; expected a new folder, or no shard")
    if shard is not None and files and next(iter(files)).count != shard.count:
        raise ValueError(
            f"shard: {folder} holds shards of {next(iter(files)).count}; expected one of these, or a new folder; "
            f"got {shard}"
        )


def missing_shards(folder: Path) -> list[str]:
    """What of the shards in a folder is not finished, in words; empty when all are."""
    files = shard_files(folder)
    count = next(iter(files)).count if files else 0
    words = []
    for index in range(1, count + 1):
        shard = Shard(index, count)
        if shard not in files:
            words.append(f"{shard} (not begun)")
        elif (log := read_log(files[shard])).batches is None:
            words.append(f"{shard} (unfinished: {len(log.progress.records)} batches)")
    return words


def merge_folder(folder: Path, settings: Mapping[str, str]) -> Progress:
    """What all shards in a folder did.

    Raises:
        ValueError: when a shard is missing, unfinished, of other settings or of another evaluation.
    """
    missing = missing_shards(folder)
    if missing:
        raise ValueError(f"shard: expected all shards in {folder}, finished; missing: {', '.join(missing)}")
    logs = []
    for shard, file in shard_files(folder).items():
        log = read_log(file)
        if log.shard != (shard.index, shard.count):
            raise ValueError(f"shard: {file} holds shard {log.shard}; expected that of its name")
        logs.append(log)
    return merge_logs(logs, settings)


def merge_logs(logs: Iterable[ProgressLog], settings: Mapping[str, str]) -> Progress:
    """The progress of finished shards, put together.

    Raises:
        ValueError: when they are of other settings, overlap, or do not make a whole.
    """
    merged, batches = Progress(), set[int]()
    for log in logs:
        refuse_other_settings(log.settings, settings)
        assert log.shard is not None
        shard = Shard(*log.shard)
        for number, record in log.progress.records.items():
            if not shard.has(number):
                raise ValueError(f"shard: batch {number} is not in shard {shard}; expected batches of its own")
            merged.add(record)
        batches.add(-1 if log.batches is None else log.batches)
    if len(batches) != 1 or merged.done != list(range(max(batches))):
        raise ValueError(f"shard: expected shards that make a whole; got batches {merged.done} of {sorted(batches)}")
    return merged
