# SPDX-License-Identifier: Apache-2.0
"""The file of an evaluation that goes on after a kill: records are appended, so that each costs the same."""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from monai_smia.engines.fingerprint import Fingerprint
from monai_smia.engines.progress import Progress, Record
from monai_smia.reports.files import write_whole, writing

LOG = logging.getLogger(__name__)
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
        end: where the file ends, as this run knows it; ``None`` while there is no file.
    """

    settings: dict[str, str]
    shard: tuple[int, int] | None = None
    batches: int | None = None
    progress: Progress = field(default_factory=Progress)
    end: int | None = None


def append_record(file: Path, log: ProgressLog, record: Record) -> None:
    """Note a batch. The file is made, whole or not at all, if there is none."""
    _append(file, log, {"record": record.values()})


def append_end(file: Path, log: ProgressLog) -> None:
    """Note that all is done."""
    _append(file, log, {"batches": log.batches})


def read_log(file: Path, mend: bool = False) -> ProgressLog:
    """What a file holds; what is not a whole record does not count, and its batch is done anew.

    That is a record that a kill cut off, the zeros that a power cut leaves, and a record whose checksum is wrong.

    Args:
        file: what `append_record` wrote.
        mend: cut off what follows the last whole record, so that others can be appended, and say so.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is none, or its beginning is damaged.
    """
    content = file.read_bytes()
    try:
        if not content.startswith(MAGIC):
            raise ValueError("it does not begin as one")
        log: ProgressLog | None = None
        end, lost = len(MAGIC), 0
        for values, after in _frames(content):
            if values is None:
                if log is None:
                    raise ValueError("its beginning is damaged")
                lost += 1
                continue
            end = after
            if log is None:
                shard = values["shard"]
                log = ProgressLog(dict(values["settings"]), None if shard is None else (shard[0], shard[1]))
            elif "record" in values:
                record = Record.of(values["record"])
                log.progress.records[record.number] = record  # the last one, where a batch was done anew
            else:
                log.batches = values["batches"]
        if log is None:
            raise ValueError("it is empty")
    except Exception as error:  # whatever torch's loading makes of other bytes
        raise ValueError(
            f"folder: {file} cannot be read ({type(error).__name__}: {error}); expected the file of a run"
        ) from error
    log.end = len(content)
    if mend and end < len(content):
        with writing(file), open(file, "r+b") as stream:
            stream.truncate(end)
        log.end = end
    if mend and (lost or end < len(content)):
        LOG.warning(
            "monai-smia: %s ended in %d bytes that are no record, and %d before are damaged; their cases are done anew",
            file, len(content) - end, lost,
        )  # fmt: skip
    return log


def refuse_other_settings(old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Raises `ValueError`, naming the first difference."""
    Fingerprint(new).refuse_other(old)


def _append(file: Path, log: ProgressLog, values: dict[str, Any]) -> None:
    if log.end is None:
        head = {"settings": log.settings, "shard": None if log.shard is None else list(log.shard)}
        content = MAGIC + _frame(head) + _frame(values)
        write_whole(file, content)
        log.end = len(content)
        return
    with writing(file), open(file, "r+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        if end != log.end:
            raise FileExistsError(f"folder: {file} was written by another run meanwhile; expected one run at a time")
        content = _frame(values)
        try:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        except OSError:
            _cut(file, end)  # half a record, of a disk that is full
            raise
        log.end = end + len(content)


def _cut(file: Path, end: int) -> None:
    """Take away what could not be written whole; where that fails too, the next reading does."""
    try:
        os.truncate(file, end)
    except OSError:
        return


def _frame(values: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer)
    content = buffer.getvalue()
    return HEAD.pack(len(content), zlib.crc32(content)) + content


def _frames(content: bytes) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """Each frame, and where it ends; ``None`` for a damaged one that others follow."""
    start, damaged = len(MAGIC), 0
    while start + HEAD.size <= len(content):
        length, checksum = HEAD.unpack_from(content, start)
        end = start + HEAD.size + length
        if length == 0 or end > len(content):  # zeros have the checksum of nothing
            return
        frame = content[start + HEAD.size : end]
        if zlib.crc32(frame) != checksum:
            damaged += 1
        else:
            for _ in range(damaged):
                yield None, start
            damaged = 0
            yield torch.load(io.BytesIO(frame), map_location="cpu", weights_only=True), end
        start = end
