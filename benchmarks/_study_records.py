# SPDX-License-Identifier: Apache-2.0
"""Measurements that survive a kill: one line of JSON each, appended as soon as it is made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Key = tuple[str, int, str]
"""Model, case, attack."""


class Records:
    """Lines of JSON in a folder, one file for each process that writes.

    A line that a kill cut short is no record: it is skipped, and the next record starts a line of its own.

    Args:
        folder: of one bundle and split.
        shard: names the file that this process appends to.
    """

    def __init__(self, folder: Path, shard: int = 0) -> None:
        self.folder = folder
        self.file = folder / f"records-{shard}.jsonl"

    def read(self) -> dict[Key, Record]:
        """Everything measured, whoever wrote it; of two records of the same the later one."""
        lines = (line for file in sorted(self.folder.glob("records-*.jsonl")) for line in _whole_lines(file))
        return {key_of(record): record for record in lines}

    def add(self, record: Record) -> None:
        """Append one record as a whole line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.file, "ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()


def key_of(record: Record) -> Key:
    """What a record is of."""
    return record["model"], record["case"], record["attack"]


def by_attack(records: Iterable[Record], model: str) -> dict[str, dict[int, Record]]:
    """Attack to case to record, of one network."""
    found: dict[str, dict[int, Record]] = {}
    for record in records:
        if record["model"] == model:
            found.setdefault(record["attack"], {})[record["case"]] = record
    return found


def _whole_lines(file: Path) -> Iterator[Record]:
    for line in file.read_bytes().split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue  # cut short, or the empty end
