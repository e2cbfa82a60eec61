# SPDX-License-Identifier: Apache-2.0
"""`FolderLock`: a second run is refused, a killed one leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from monai_smia.engines.folder_lock import NAME, FolderInUse, FolderLock

HOLD = """
import sys
from monai_smia.engines.folder_lock import FolderLock
with FolderLock(sys.argv[1], *sys.argv[2:]):
    print("held", flush=True)
    sys.stdin.read()
"""

FORKED = """
import os, sys
from monai_smia.engines.folder_lock import FolderLock
with FolderLock(sys.argv[1]):
    if os.fork() == 0:  # a worker that outlives its parent: it tells its number and waits for its end
        print(os.getpid(), flush=True)
        sys.stdin.read()
        os._exit(0)
    os.kill(os.getpid(), 9)
"""


def holding(folder: Path, *part: str, code: str = HOLD) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *part], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_second_run_is_refused_by_name_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with holding(folder) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=f"out: {folder} is in use by process {other.pid} on ") as refused:
            FolderLock(folder).__enter__()
        assert "\n" not in str(refused.value)
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (folder / NAME).exists()  # of the killed one; only its file is left
    with FolderLock(folder):
        pass
    assert not (folder / NAME).exists()
    assert folder.exists()  # this run did not make it


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_of_a_killed_run_does_not_hold_the_folder(tmp_path: Path) -> None:
    with holding(tmp_path, code=FORKED) as other:
        assert other.stdout is not None
        child = int(other.stdout.readline())
        other.wait()
        os.kill(child, 0)  # it lives
        with FolderLock(tmp_path):
            pass


def test_shards_hold_their_own_and_not_each_other(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "shard-1-of-2"), FolderLock(tmp_path, "shard-2-of-2"):
        with pytest.raises(FolderInUse, match="in use by"):
            FolderLock(tmp_path, "shard-1-of-2").__enter__()
        with pytest.raises(FolderInUse, match="in use by"):
            FolderLock(tmp_path).__enter__()
    with FolderLock(tmp_path), pytest.raises(FolderInUse, match=f"in use by process {os.getpid()} on"):
        FolderLock(tmp_path, "shard-1-of-2").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_it_is_released_after_an_error_and_takes_an_empty_folder_with_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a"), FolderLock(tmp_path / "a" / "b"):
        raise KeyError("a")
    assert list(tmp_path.iterdir()) == []
    with FolderLock(tmp_path / "a"):
        (tmp_path / "a" / "file").write_text("x")
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["file"]


def test_a_folder_below_a_file_is_an_error_of_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="Not a directory"):
        FolderLock(tmp_path / "file" / "out").__enter__()
    assert (tmp_path / "file").read_text() == "x"
