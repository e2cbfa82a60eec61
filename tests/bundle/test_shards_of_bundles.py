"""`monai-smia evaluate --shard`, `monai-smia merge` and `torchrun`: the report of one process, from any bundle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import bundle_layouts
import pytest
from bundle_layouts import save_data, save_weights

from monai_smia.bundle import evaluate_under_attack, open_bundle
from monai_smia.bundle.commands import main
from monai_smia.bundle.torchrun import shard_of_process
from monai_smia.reports import RobustnessReport

PGD = ("--attacks", "PGD", "--steps", "3", "--views", "2", "--random_start", "True", "--eps", "10intensity")


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    save_data(tmp_path / "data")
    save_weights(bundle_layouts.standard(tmp_path / "bundle"))
    monkeypatch.chdir(tmp_path)
    return "evaluate", "bundle", *PGD, "--dataset_dir", "data"


def run(*arguments: str) -> int:
    return main(list(arguments))


def pictures(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((folder / "views").iterdir())]


def test_shards_and_their_merge(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*arguments, "--out", "whole") == 0
    whole = RobustnessReport.load("whole")
    assert run(*arguments, "--out", "out", "--shard", "2/2") == 0
    assert "the others of" in (said := capsys.readouterr().out)
    assert "1/2 (not begun)" in said
    assert not Path("out", "report.json").exists()
    assert run("merge", "out") == 2
    assert "missing: 1/2 (not begun)" in capsys.readouterr().err
    assert run(*arguments, "--out", "out", "--shard", "0/2") == 2
    assert "shard: expected i/n with i from 1 to n" in capsys.readouterr().err
    assert run(*arguments, "--out", "out", "--shard", "1/2") == 0
    assert RobustnessReport.load("out") == whole
    assert pictures(Path("out")) == pictures(Path("whole"))
    for file in ("report.json", "report.html", "report.md"):
        Path("out", file).unlink()
    monkeypatch.chdir(tmp_path / "data")  # relative places are those of the shards' own call
    assert run("merge", str(tmp_path / "out")) == 0
    assert RobustnessReport.load(tmp_path / "out") == whole
    assert (tmp_path / "out" / "report.html").exists()
    assert run("merge", str(tmp_path / "whole")) == 2
    assert "out: expected the --out of evaluations with --shard" in capsys.readouterr().err


def test_in_python(arguments: tuple[str, ...]) -> None:
    def outcome(folder: str, shard: str | None) -> RobustnessReport:
        with open_bundle("bundle", dataset_dir="data") as bundle:
            out = Path(arguments[-1]).parent.absolute() / folder
            done = evaluate_under_attack(
                bundle.evaluator(), ["PGD"], "10intensity", loss_function=bundle.loss(), out=out, shard=shard, steps=2,
                preprocessing=bundle.preprocessing(), progress=False, value_range=(0, 100),
            )  # fmt: skip
        assert (done.page is None) is (shard == "1/2")
        assert done.missing == (("2/2 (not begun)",) if shard == "1/2" else ())
        return done.report

    reports = [outcome("python", "1/2"), outcome("python", "2/2")]
    assert reports[1] == outcome("python_whole", None)


def test_torchrun(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of three cases, started as a user starts them."""
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "monai_smia"]
    done = subprocess.run([*launched, *arguments, "--out", "two"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    shards = sorted(file.name for file in Path("two", "progress").glob("*.pt"))
    assert shards == ["shard-1-of-2.pt", "shard-2-of-2.pt"]
    assert run(*arguments, "--out", "one") == 0
    assert RobustnessReport.load("two") == RobustnessReport.load("one")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert shard_of_process() == "4/4"
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert shard_of_process() is None
