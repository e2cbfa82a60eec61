# SPDX-License-Identifier: Apache-2.0
"""The file of an evaluation that goes on after a kill: records are appended, so that each costs the same."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from monai_smia.engines.progress import Progress, Record
from monai_smia.reports.files import write_whole

MAGIC = b"monai-smia progress 1\n"
HEAD = struct.Struct("<QI")  # length and CRC-32 of what follows


@dataclass
class ProgressLog:
    """What a file holds.

    Attributes:
        settings: what the run is made of, name to text.
        shard: ``(index, count)``, from 1; ``None`` for all batches.
        batches: how many batches the whole evaluation has; ``None`` until the run is finished.
        progress: what is done.
    """

    settings: dict[str, str]
    shard: tuple[int, int] | None = None
    batches: int | None = None
    progress: Progress = field(default_factory=Progress)


def append_record(file: Path, log: ProgressLog, record: Record) -> None:
    """Note a batch. The file is made, whole or not at all, if there is none."""
    _append(file, log, {"record": record.values()})


def append_end(file: Path, log: ProgressLog) -> None:
    """Note that all is done."""
    _append(file, log, {"batches": log.batches})


def read_log(file: Path, mend: bool = False) -> ProgressLog:
    """What a file holds; the record that a kill cut off does not count.

    Args:
        file: what `append_record` wrote.
        mend: cut off such a record, so that others can be appended.

    Raises:
        ValueError: when the file cannot be read.
    """
    try:
        content = file.read_bytes()
        if not content.startswith(MAGIC):
            raise ValueError("it does not begin as one")
        log: ProgressLog | None = None
        end = len(MAGIC)
        for values, after in _frames(content):
            end = after
            if log is None:
                shard = values["shard"]
                log = ProgressLog(dict(values["settings"]), None if shard is None else (shard[0], shard[1]))
            elif "record" in values:
                record = Record.of(values["record"])
                if record.number not in log.progress.records:  # two runs at once did it twice, alike
                    log.progress.add(record)
            else:
                log.batches = values["batches"]
        if log is None:
            raise ValueError("it is empty")
    except Exception as error:
        raise ValueError(
            f"folder: {file} cannot be read ({type(error).__name__}: {error}); expected the file of a run"
        ) from error
    if mend and end < len(content):
        with open(file, "r+b") as stream:
            stream.truncate(end)
    return log


def refuse_other_settings(old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Raises `ValueError`, naming the first difference."""
    for name in dict.fromkeys((*new, *old)):
        if new.get(name) != old.get(name):
            raise ValueError(
                f"resume: the earlier run had {name} = {old.get(name)}; expected the same, got {new.get(name)}"
            )


def _append(file: Path, log: ProgressLog, values: dict[str, Any]) -> None:
    if not file.exists():
        head = {"settings": log.settings, "shard": None if log.shard is None else list(log.shard)}
        write_whole(file, MAGIC + _frame(head) + _frame(values))
        return
    with open(file, "ab") as stream:
        stream.write(_frame(values))
        stream.flush()
        os.fsync(stream.fileno())


def _frame(values: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer)
    content = buffer.getvalue()
    return HEAD.pack(len(content), zlib.crc32(content)) + content


def _frames(content: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """Each frame, and where it ends."""
    start = len(MAGIC)
    while start + HEAD.size <= len(content):
        length, checksum = HEAD.unpack_from(content, start)
        end = start + HEAD.size + length
        frame = content[start + HEAD.size : end]
        if end > len(content) or zlib.crc32(frame) != checksum:
            if end < len(content):
                raise ValueError(f"the record at byte {start} is damaged")
            return
        yield torch.load(io.BytesIO(frame), map_location="cpu", weights_only=True), end
        start = end
