"""Planted faults: the hook breaks what it says, verdicts are right, and the quick form loses nothing."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import faults
from benchmarks._fault_hook import Fault
from benchmarks._fault_inputs import KINDS, damaged
from benchmarks._fault_runs import Ended, end, start
from benchmarks._fault_trials import LOST, Trial, chosen, plan

REPORT = b"0123456789" * 10


def write(out: Path) -> Callable[[], int]:
    """A program that writes `a`, moves it to `b`, and writes `c`."""

    def work() -> int:
        try:
            out.mkdir()
            (out / "a").write_bytes(REPORT)
            os.replace(out / "a", out / "b")
            (out / "c").write_text("text")
        except OSError as error:
            return error.errno or 0
        return 0

    return work


CHANGES = ["mkdir .", "open a", "write a", "move b", "open c", "write c"]


def faulty(folder: Path, kind: str, at: int) -> tuple[int, dict[str, bytes]]:
    """How the program ends, and the files that it leaves."""
    out, log = folder / "out", folder / "log"
    ended = end(start(write(out), folder, log, Fault(out, kind, at)), log)
    return ended.code, {path.name: path.read_bytes() for path in out.iterdir()} if out.exists() else {}


def test_every_change_is_seen_in_order(tmp_path: Path) -> None:
    out, seen = tmp_path / "out", tmp_path / "seen"
    assert end(start(write(out), tmp_path, tmp_path / "log", Fault(out), seen), tmp_path / "log").code == 0
    assert seen.read_text().splitlines() == CHANGES


@pytest.mark.parametrize(
    ("at", "left"),
    [
        (1, {}),
        (2, {}),
        (3, {"a": REPORT[:50]}),
        (4, {"a": REPORT}),
        (5, {"b": REPORT}),
        (6, {"b": REPORT, "c": b"te"}),
    ],
)
def test_a_kill_leaves_what_was_written_so_far(tmp_path: Path, at: int, left: dict[str, bytes]) -> None:
    assert faulty(tmp_path, "kill", at) == (-signal.SIGKILL, left)


@pytest.mark.parametrize(("kind", "number"), [("full", errno.ENOSPC), ("denied", errno.EACCES)])
def test_a_disk_fails_from_then_on(tmp_path: Path, kind: str, number: int) -> None:
    assert faulty(tmp_path, kind, 3) == (number, {"a": REPORT[:50]})


@pytest.mark.parametrize(("kind", "content"), [("torn", REPORT[:50]), ("zeros", REPORT[:50] + bytes(50))])
def test_a_power_cut_spoils_what_was_not_forced_to_the_disk(tmp_path: Path, kind: str, content: bytes) -> None:
    assert faulty(tmp_path, kind, 4) == (-signal.SIGKILL, {"b": content})


def test_what_was_forced_to_the_disk_outlasts_a_power_cut(tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"

    def work() -> int:
        out.mkdir()
        with open(out / "a", "wb") as stream:
            stream.write(REPORT)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(out / "a", out / "b")
        return 0

    assert end(start(work, tmp_path, log, Fault(out, "torn", 1)), log).code == -signal.SIGKILL
    assert (out / "b").read_bytes() == REPORT


def test_damage_is_what_it_says_and_the_same_again() -> None:
    for kind in KINDS:
        for seed in range(20):
            found = damaged(REPORT, kind, seed)
            assert found == damaged(REPORT, kind, seed)
            assert found != REPORT or kind in ("zeros", "random", "flipped")
            assert len(found) == len(REPORT) if kind in ("flipped", "zeros", "random") else REPORT.startswith(found)
    flipped = [
        sum((a ^ b).bit_count() for a, b in zip(damaged(REPORT, "flipped", s), REPORT, strict=True)) for s in range(50)
    ]
    assert max(flipped) <= 8 < 2 * max(flipped)


@pytest.mark.parametrize(
    ("code", "text", "unclear"),
    [
        (0, "", False),
        (1, "failed: case_1", False),
        (2, "monai-smia: eps: expected a unit", False),
        (3, "monai-smia: No space left on device", False),
        (2, "", True),
        (-signal.SIGSEGV, "", True),
        (1, "Traceback (most recent call last):\nOSError", True),
    ],
)
def test_what_a_user_would_understand(code: int, text: str, unclear: bool) -> None:
    assert Ended(code, text).unclear == unclear


def test_the_plan_has_every_change_and_a_choice_has_every_kind() -> None:
    trials = list(plan({"evaluate": CHANGES}, small_disks=False))
    assert [trial.at for trial in trials if trial.kind == "kill"] == list(range(1, 7))
    assert [trial.at for trial in trials if trial.kind in ("torn", "zeros")] == [4, 4]
    few = chosen(trials, 6, seed=1)
    assert {trial.kind for trial in few} == {"kill", "full", "denied", "torn", "zeros", "wait"}
    assert few == chosen(list(reversed(list(reversed(trials)))), 6, seed=1)
    assert sorted(map(str, chosen(trials, None, seed=1))) == sorted(map(str, trials))


def test_the_table_counts_verdicts() -> None:
    trials = [Trial("export", "kill", 1), Trial("export", "kill", 2), Trial("train", "full", 1)]
    verdicts = {trials[0].name: ("survived", ""), trials[1].name: (LOST, "why"), trials[2].name: ("refused", "full")}
    lines = faults.table(trials, [], verdicts).splitlines()
    assert lines[2:] == [
        "| export | killed at a change | 2 | 1 | 0 | 0 | 1 |",
        "| train | disk full from a change on | 1 | 0 | 1 | 0 | 0 |",
        "| all |  | 3 | 1 | 1 | 0 | 1 |",
    ]


def test_verdicts_are_kept_and_a_torn_line_does_not_count(tmp_path: Path) -> None:
    kept = faults.Kept(tmp_path / "verdicts.jsonl")
    kept.add("one", ("survived", ""))
    with open(kept.file, "a") as stream:
        stream.write('{"name": "two", "ver')
    assert faults.Kept(kept.file).verdicts == {"one": ("survived", "")}


def test_the_page_takes_whole_results_only(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert page.count(faults.BEGIN) == page.count(faults.END) == 1
    with pytest.raises(SystemExit, match="^2$"):
        faults.parse(["--quick", "--write", "docs/reliability.md"])
    assert "--write takes results only" in capsys.readouterr().err


@pytest.mark.slow
def test_no_fault_of_the_quick_form_loses_anything(tmp_path: Path) -> None:
    """In a process of its own, which forks: this one may have threads."""
    import subprocess
    import sys

    arguments = ["faults", "--quick", "--out", str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-m", "benchmarks", *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
