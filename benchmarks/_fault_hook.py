# SPDX-License-Identifier: Apache-2.0
"""Faults planted into the running process: at the n-th change that it makes to a folder, something goes wrong.

A change is whatever Python does to a file or folder below the watched one: open it for writing, write, truncate, move,
remove, make a folder, and force it to the disk. Nothing in the package knows of this module.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

KINDS = ("none", "kill", "full", "denied", "torn", "zeros", "wait")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
ERRNO = {"full": errno.ENOSPC, "denied": errno.EACCES}


@dataclass
class Fault:
    """What goes wrong, and when.

    Attributes:
        under: the watched folder, absolute.
        kind: ``kill`` ends the process by SIGKILL in the middle of a write or before any other change; ``full`` leaves
            half a write and lets everything fail that needs room, from then on; ``denied`` lets every change fail from
            then on; ``torn`` and ``zeros`` end the process after a move of a file that was never forced to the disk,
            and cut it in half or end it in zeros, as a power cut does; ``wait`` lets the process wait until another
            one closes a pipe; ``none`` counts.
        at: number of the change, from 1.
        pipe: descriptors of ``wait``: one is closed when the change is reached, from the other is read.
        closing: the other process's ends of the pipes, which this one does not keep.
        seen: the changes so far, one line each.
        forced: files that were forced to the disk.
    """

    under: Path
    kind: str = "none"
    at: int = 0
    pipe: tuple[int, int] = (-1, -1)
    closing: tuple[int, int] = (-1, -1)
    seen: list[str] = field(default_factory=list)
    forced: set[int] = field(default_factory=set)
    process: int = field(default_factory=os.getpid)

    def below(self, path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return False
        place = os.path.abspath(os.fsdecode(path))
        return place == str(self.under) or place.startswith(f"{self.under}{os.sep}")

    def change(self, what: str, path: Any, raw: Any = None, data: Any = b"") -> None:
        """Note a change that is about to be made, and let it go wrong."""
        if os.getpid() != self.process:
            return
        self.seen.append(f"{what} {os.path.relpath(os.fsdecode(path), self.under)}")
        number = len(self.seen)
        if self.kind in ERRNO and number >= self.at and not (self.kind == "full" and what in ("remove", "rmdir")):
            if raw is not None and number == self.at:
                io.FileIO.write(raw, bytes(data)[: len(data) // 2])
            raise OSError(ERRNO[self.kind], os.strerror(ERRNO[self.kind]), os.fsdecode(path))
        if number != self.at:
            return
        if self.kind == "kill":
            if raw is not None:
                io.FileIO.write(raw, bytes(data)[: len(data) // 2])
            os.kill(self.process, signal.SIGKILL)
        if self.kind == "wait":
            os.close(self.pipe[0])
            os.read(self.pipe[1], 1)

    def moved(self, path: Any) -> None:
        """After a move: what a power cut makes of a file that was never forced to the disk."""
        if self.kind not in ("torn", "zeros") or os.getpid() != self.process or len(self.seen) < self.at:
            return
        if os.path.isfile(path) and os.stat(path).st_ino not in self.forced:
            size = os.path.getsize(path)
            os.truncate(path, size // 2)
            if self.kind == "zeros":
                os.truncate(path, size)
        os.kill(self.process, signal.SIGKILL)


def plant(fault: Fault) -> None:
    """Watch this process from now on; there is no way back."""

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            fault.change("write", self.name if not isinstance(self.name, int) else _path(self.name), self, data)
            return super().write(data)

        def truncate(self, size: int | None = None) -> int:
            fault.change("truncate", self.name if not isinstance(self.name, int) else _path(self.name))
            return super().truncate(size)

    whole, force, replace, rename = io.open, os.fsync, os.replace, os.rename

    def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
        path = _path(file) if isinstance(file, int) else file
        if not set(mode) & set("wax+") or not fault.below(path) or options.get("opener") or len(args) > 3:
            return whole(file, mode, buffering, *args, **options)
        closing = options.get("closefd", True)
        raw = Raw(file, "".join(letter for letter in mode if letter not in "bt"), closefd=closing)
        if buffering == 0:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        if "b" in mode:
            return buffered
        text = dict(zip(("encoding", "errors", "newline"), args, strict=False)) | {
            name: options[name] for name in ("encoding", "errors", "newline") if name in options
        }
        return io.TextIOWrapper(buffered, **text, line_buffering=buffering == 1)

    def forced(handle: Any) -> None:
        number = handle if isinstance(handle, int) else handle.fileno()
        if fault.below(_path(number)):
            fault.change("force", _path(number))
            fault.forced.add(os.fstat(number).st_ino)
        force(handle)

    def moving(move: Any) -> Any:
        def call(old: Any, new: Any, **options: Any) -> None:
            move(old, new, **options)
            if fault.below(new):
                fault.moved(new)

        return call

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and arguments[2] & WRITING and fault.below(arguments[0]):
            fault.change("open", arguments[0])
        elif event == "os.rename" and fault.below(arguments[1]):
            fault.change("move", arguments[1])
        elif event in ("os.remove", "os.rmdir", "os.mkdir", "os.truncate") and fault.below(arguments[0]):
            fault.change(event[3:], arguments[0])

    if fault.kind == "wait":
        for handle in fault.closing:
            os.close(handle)
    save = torch.save

    def saved(content: Any, file: Any, *args: Any, **options: Any) -> None:
        """Through Python: torch writes a file given by name in C++, where nothing can be planted."""
        if not isinstance(file, (str, os.PathLike)) or not fault.below(file):
            save(content, file, *args, **options)
            return
        buffer = io.BytesIO()
        save(content, buffer, *args, **options)
        with opened(file, "wb") as stream:
            stream.write(buffer.getvalue())

    torch.save = saved
    io.open = builtins.open = opened  # type: ignore[assignment]
    os.fsync, os.replace, os.rename = forced, moving(replace), moving(rename)
    sys.addaudithook(heard)


def _path(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")
