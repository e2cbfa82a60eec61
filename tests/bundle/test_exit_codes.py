# SPDX-License-Identifier: Apache-2.0
"""With what status `monai-smia` ends, and that an evaluation that goes on mixes and replaces nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import bundle_layouts
import pytest
import torch
from bundle_layouts import save_data, save_weights

from monai_smia.bundle import command_evaluate, commands
from monai_smia.bundle.commands import main
from monai_smia.bundle.errors import BAD_INPUT, MACHINE, OURS, SOME_FAILED, STOPPED, SUCCESS, BundleError, status_of
from monai_smia.engines.folder_lock import FolderLock
from monai_smia.engines.progress_log import read_log

Call = Any


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """``call(*more)``: an evaluation of a bundle into ``out``."""
    save_data(tmp_path / "data")
    save_weights(bundle_layouts.standard(tmp_path / "bundle"))
    monkeypatch.chdir(tmp_path)

    def evaluate(*more: str, out: str = "out") -> int:
        data = ("--dataset_dir", str(tmp_path / "data"), "--out", out)
        attack = ("--attacks", "PGD", "--eps", "10intensity", "--steps", "2", "--views", "1", "--no_doctor")
        return main(["evaluate", "bundle", *data, *attack, *more])

    return evaluate


def said(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], bool]:
    """The lines of the command itself, and whether there was a traceback."""
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if line.startswith("monai-smia: ")]
    return lines, "Traceback (most recent call last)" in text


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_path_that_cannot_be_is_bad_input(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for out in ("file/out", "x" * 300):
        assert call(out=out) == BAD_INPUT
        lines, traced = said(capsys)
        assert len(lines) == 1
        assert out.split("/")[0] in lines[0]
        assert not traced
    assert (tmp_path / "file").read_text() == "mine"


def refused(number: int) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number), str(args[0]))

    return refuse


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
def test_a_folder_that_may_not_be_written_is_the_machines(
    call: Call, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("monai_smia.engines.folder_lock.Path.mkdir", refused(number))
    assert call() == MACHINE
    lines, traced = said(capsys)
    assert len(lines) == 1
    assert os.strerror(number) in lines[0]
    assert not traced


def test_a_full_disk_stops_with_3_and_resume_ends_it(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if (tmp_path / "out" / "progress" / "progress.pt").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        true(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert call() == MACHINE
    lines, traced = said(capsys)
    assert "No space left on device" in lines[-1]
    assert "--resume" in lines[-1]
    assert not traced
    monkeypatch.setattr(os, "fsync", true)
    assert len(read_log(tmp_path / "out" / "progress" / "progress.pt").progress.done) == 1
    assert call("--resume") == SUCCESS
    assert call(out="whole") == SUCCESS
    assert (tmp_path / "out" / "report.json").read_bytes() == (tmp_path / "whole" / "report.json").read_bytes()


@pytest.mark.parametrize("error", [AttributeError("a"), KeyError("b"), RuntimeError("of a library"), TypeError("c")])
def test_an_error_in_the_program_comes_with_its_traceback(
    call: Call, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mistaken(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(command_evaluate, "about", mistaken)
    assert call() == OURS
    lines, traced = said(capsys)
    assert lines[-1].startswith("monai-smia: an error in the program")
    assert traced


def test_an_error_of_torch_that_nobody_expected_is_ours(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_evaluate, "about", lambda *args: torch.zeros(2) + torch.zeros(3))
    assert call() == OURS
    assert said(capsys)[1]


def test_debug_gives_the_traceback_of_everything(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--seed", "0", "--eps", "10") == BAD_INPUT
    assert not said(capsys)[1]
    assert call("--debug", "--eps", "10") == BAD_INPUT
    lines, traced = said(capsys)
    assert len(lines) == 1
    assert traced
    assert main(["report", "nowhere", "--debug"]) == BAD_INPUT
    assert said(capsys)[1]


def test_an_interrupt_ends_with_130(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_evaluate, "about", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert call() == STOPPED
    assert said(capsys)[0] == ["monai-smia: interrupted; the same command with --resume goes on where it was"]


def test_the_statuses_are_what_the_docs_say() -> None:
    assert [SUCCESS, SOME_FAILED, BAD_INPUT, MACHINE, OURS, STOPPED] == [0, 1, 2, 3, 70, 130]
    assert commands.main.__doc__ is not None
    assert status_of(BundleError("a")) == BAD_INPUT
    full = BundleError("cannot be built")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert status_of(full) == MACHINE


@pytest.mark.parametrize("shard", ["1/100000000000000000000", "0/2", "3/2", "x"])
def test_a_shard_that_is_none_is_refused_at_once(
    call: Call, tmp_path: Path, shard: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--shard", shard) == BAD_INPUT
    lines, _ = said(capsys)
    assert len(lines) == 1
    assert lines[0].startswith("monai-smia: shard: expected i/n")
    assert not (tmp_path / "out").exists()


def test_a_second_run_is_refused(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FolderLock(tmp_path / "out"):
        assert call() == BAD_INPUT
        assert f"out: {tmp_path / 'out'} is in use by process {os.getpid()}" in said(capsys)[0][0]
        assert call("--shard", "1/2") == BAD_INPUT
    assert call() == SUCCESS


def test_a_failed_case_is_tried_again_when_asked(call: Call, tmp_path: Path) -> None:
    image = tmp_path / "data" / "images" / "case_1.nii.gz"
    content = image.read_bytes()
    image.write_bytes(b"cut off")
    assert call() == SOME_FAILED
    image.write_bytes(content)
    assert call("--resume") == SOME_FAILED
    assert call("--retry-failed") == SUCCESS
    assert call(out="whole") == SUCCESS
    assert (tmp_path / "out" / "report.json").read_bytes() == (tmp_path / "whole" / "report.json").read_bytes()


def test_another_evaluation_is_refused_by_the_part_that_differs(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call() == SUCCESS
    before = everything(tmp_path / "out")
    files = [file for file in (tmp_path / "bundle" / "configs").iterdir() if "EnsureTyped" in file.read_text()]
    kept = {file: file.read_text() for file in files}
    assert kept

    def refused_for(part: str, *more: str) -> None:
        capsys.readouterr()
        assert call("--resume", *more) == BAD_INPUT
        lines, _ = said(capsys)
        assert f"resume: the earlier run had {part}" in lines[-1]
        assert everything(tmp_path / "out") == before

    for file, text in kept.items():
        file.write_text(text.replace('"EnsureTyped"', '"CastToTyped"'))
    refused_for("preprocessing")
    for file, text in kept.items():
        file.write_text(text)
    refused_for("seed", "--seed", "1")
    label = tmp_path / "data" / "labels" / "case_0.nii.gz"
    content = label.read_bytes()
    label.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused_for(str(tmp_path / "data" / "images" / "case_0.nii.gz"))
    label.write_bytes(content)
    weights = tmp_path / "bundle" / "models" / "model.pt"
    state = torch.load(weights)
    for value in (state.get("model", state)).values():
        value *= 1.01
    torch.save(state, weights)
    refused_for("weights")


@pytest.mark.parametrize("name", ["report.html", "cases.csv"])
def test_a_file_that_is_not_ours_is_not_replaced(
    call: Call, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither where no run was, nor where one was and somebody wrote over its file."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    for more in ((), ("--resume",)):
        assert call(*more) == BAD_INPUT
        assert str(tmp_path / "out" / name) in said(capsys)[0][-1]
    assert everything(tmp_path / "out") == {name: b"mine"}
    (tmp_path / "out" / name).unlink()
    assert call() == SUCCESS
    assert call("--resume") == SUCCESS
    (tmp_path / "out" / name).write_text("mine")
    assert call("--resume") == BAD_INPUT
    assert main(["report", "out"]) == BAD_INPUT
    assert (tmp_path / "out" / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["progress", "views"])
def test_a_link_in_place_of_a_folder_is_refused(
    call: Call, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "0.npz").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "precious")
    assert call() == BAD_INPUT
    assert call("--resume") == BAD_INPUT
    assert "is a link; expected a folder" in said(capsys)[0][-1]
    assert everything(tmp_path / "precious") == {"0.npz": b"mine"}


def test_views_of_somebody_else_stay(call: Call, tmp_path: Path) -> None:
    (tmp_path / "out" / "progress").mkdir(parents=True)
    (tmp_path / "out" / "progress" / "0.npz").write_text("mine")
    assert call() == SUCCESS
    assert (tmp_path / "out" / "progress" / "0.npz").read_text() == "mine"
