# SPDX-License-Identifier: Apache-2.0
"""`FolderLock`: one run at a time writes into a folder."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import sys
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

LOG = logging.getLogger(__name__)
NAME = ".monai-smia.lock"
_WITHOUT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY)
"""What file systems say that know no locks."""

_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderInUse(RuntimeError):
    """Another run writes into the folder."""


class FolderLock:
    """Holds a folder while a ``with`` statement lasts, so that a second run is refused.

    It is a lock of the operating system on a file in the folder: it ends with its process, however that ends, and none
    is left after a kill. The file goes away with it, and so does the folder, if it was made for the lock and is empty.

    A run of one shard holds that shard, and shares the folder with other shards but not with a run of all of it.

    Args:
        folder: made, if it does not exist.
        part: name of a shard; ``None`` for the whole folder.

    Raises:
        FolderInUse: on entering, when another run holds it: one line with the folder and, where they can be read, the
            process, its machine and when it began.
        OSError: when the folder cannot be made or written into.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, FolderLock(folder):
        ...     FolderLock(folder).__enter__()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        monai_smia.engines.folder_lock.FolderInUse: out: ... is in use by process ...
    """

    def __init__(self, folder: str | Path, part: str | None = None) -> None:
        self.folder = Path(folder).absolute()
        self.part = part
        self._streams: list[tuple[Any, Path]] = []
        self._made: list[Path] = []

    def __enter__(self) -> FolderLock:
        self._made = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
        try:
            self._take(self.folder / NAME, shared=self.part is not None)
            if self.part is not None:
                self._take(self.folder / f".monai-smia-{self.part}.lock", shared=False)
        except BaseException:
            self._leave()
            raise
        _held.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _take(self, file: Path, shared: bool) -> None:
        waits = iter([0.05] * 20 if shared else ())  # a shard that leaves holds all of it for a moment
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)  # a holder that leaves may take it away
            stream = open(file, "a+b", buffering=0)  # noqa: SIM115 - held until the end of the run
            try:
                if not _locked(stream, shared):
                    if (wait := next(waits, None)) is not None:
                        stream.close()
                        time.sleep(wait)
                        continue
                    raise FolderInUse(f"out: {self.folder} is in use by {_holder(file)}; expected one run at a time")
                if _is_at(stream, file):
                    break
            except BaseException:
                stream.close()
                raise
            stream.close()  # its holder took the file away between the two steps
        self._streams.append((stream, file))
        if not shared:
            words = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            stream.truncate(0)
            stream.write(json.dumps(words).encode())

    def _leave(self) -> None:
        while self._streams:
            stream, file = self._streams.pop()
            with contextlib.suppress(OSError):
                if _is_at(stream, file) and _locked(stream, shared=False):  # of a shared one only the last
                    file.unlink()
            stream.close()
        _held.discard(self)
        for place in self._made:
            with contextlib.suppress(OSError):  # there is something in it
                place.rmdir()

    def _forked(self) -> None:
        """A child process, such as a loader's worker, does not hold the folder after its parent is gone."""
        for stream, _ in self._streams:
            stream.close()
        self._streams = []


def _locked(stream: Any, shared: bool) -> bool:
    """Whether the lock could be had; on a file system without locks it is said that there is none."""
    try:
        _lock(stream, shared)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK):
            return False
        if error.errno not in _WITHOUT:
            raise
        LOG.warning("monai-smia: %s cannot be locked (%s); let one run at a time", stream.name, error.strerror)
    return True


if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _lock(stream: Any, shared: bool) -> None:
        """There are no shared locks: shards lock their own file alone."""
        if not shared:
            stream.seek(1 << 30)  # far behind what is written there, which others read
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
            stream.seek(0)

else:
    import fcntl

    def _lock(stream: Any, shared: bool) -> None:
        fcntl.flock(stream.fileno(), (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def _is_at(stream: Any, file: Path) -> bool:
    """Whether the open file is the one of that name, not one that was taken away."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(file))
    except FileNotFoundError:
        return False


def _holder(file: Path) -> str:
    """Who holds it, as far as the file says."""
    try:
        words = json.loads(file.read_text(encoding="utf-8"))
        return f"process {int(words['pid'])} on {words['host']} since {words['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"


def _after_fork() -> None:
    for lock in list(_held):
        lock._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
