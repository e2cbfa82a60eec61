"""`write_whole`: a file is there whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from monai_smia.reports.files import write_whole


def test_writes_text_and_bytes_and_makes_the_folder(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b" / "text.md", "ε = 5 HU\n")
    assert (tmp_path / "a" / "b" / "text.md").read_bytes() == "ε = 5 HU\n".encode()
    write_whole(str(tmp_path / "picture.png"), b"\x00\xff")
    assert (tmp_path / "picture.png").read_bytes() == b"\x00\xff"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "picture.png"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    ordinary, ours = tmp_path / "ordinary", tmp_path / "ours"
    ordinary.write_text("x")
    write_whole(ours, "x")
    assert stat.S_IMODE(ours.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_an_existing_file_stays_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    path.write_text("old")
    with pytest.raises(FileExistsError, match="path: .*report.md exists"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    write_whole(path, "new", overwrite=True)
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["report.md"]


class Full:
    """A file on a disk that is full after the first bytes."""

    def __init__(self, handle: int, mode: str) -> None:
        self.file = open(handle, mode)  # noqa: SIM115

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        self.file.write(content[:3])
        raise OSError(28, "No space left on device")


FAILURES = {
    "writing": (OSError, "No space left on device"),
    "moving": (KeyboardInterrupt, "planted"),
    "encoding": (UnicodeEncodeError, "surrogates not allowed"),
}


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("where", FAILURES)
def test_a_failure_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, existing: bool
) -> None:
    path = tmp_path / "report.md"
    if existing:
        path.write_text("old")

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt("planted")

    if where == "writing":
        monkeypatch.setattr(os, "fdopen", Full)
    elif where == "moving":
        monkeypatch.setattr(os, "replace", interrupted)
    content = "new \ud800" if where == "encoding" else "new"
    kind, message = FAILURES[where]
    with pytest.raises(kind, match=message):
        write_whole(path, content, overwrite=True)
    assert os.listdir(tmp_path) == (["report.md"] if existing else [])
    assert not existing or path.read_text() == "old"
