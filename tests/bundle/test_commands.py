"""`monai-smia` as a newcomer calls it: one command, a report; one line where something is wrong."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import bundle_layouts
import nibabel
import numpy as np
import pytest
from bundle_layouts import hashes, save_data, save_weights
from scipy.stats import norm

from monai_smia.bundle import evaluate_under_attack, open_bundle
from monai_smia.bundle.commands import main
from monai_smia.engines.progress_log import read_log
from monai_smia.reports import RobustnessReport

LABELLED = {
    "standard": bundle_layouts.standard,
    "train-only": bundle_layouts.train_only,
    "saving": bundle_layouts.saving,
    "template": bundle_layouts.template,
    "subclass": bundle_layouts.subclass,
    "workflow": bundle_layouts.workflow,
}
UNIT = "{}intensity"
PGD = ("--attacks", "PGD", "--steps", "5", "--views", "1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    save_data(tmp_path / "data")
    return tmp_path / "data"


def made(layout: Any, tmp_path: Path, name: str = "bundle") -> Path:
    root: Path = layout(tmp_path / name)
    save_weights(root)
    return root


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["monai-smia", *arguments])
    return main(list(arguments))


def dice_by_hand(data: Path, eps: float) -> list[float]:
    """The network says 1 above 0.5. An attack of this size turns every pixel that is nearer to 0.5 than that."""
    scores = []
    for file in sorted((data / "images").iterdir()):
        x = nibabel.load(file).get_fdata() / 100
        label = nibabel.load(data / "labels" / file.name).get_fdata() > 0.5
        wrong = np.where(label, x - eps <= 0.5, x + eps > 0.5)
        predicted = label ^ wrong
        scores.append(2 * (predicted & label).sum() / (predicted.sum() + label.sum()))
    return scores


@pytest.mark.parametrize("layout", LABELLED.values(), ids=LABELLED)
def test_every_layout_unmodified(
    tmp_path: Path, data: Path, layout: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Dice, clean and under attack, is that of a calculation by hand; the bundle is as it was."""
    root = made(layout, tmp_path)
    before = hashes(root)
    where = ("--dataset_dir", str(data), "--out", str(tmp_path / "out"))
    assert (
        run(tmp_path, monkeypatch, "evaluate", str(root), *PGD, "--eps", UNIT.format(10) + "," + UNIT.format(3), *where)
        == 0
    )
    assert hashes(root) == before
    report = RobustnessReport.load(tmp_path / "out")
    (metric,) = report.metrics["clean"]
    runs = {"clean": 0.0, "PGD_10intensity": 0.1, "PGD_3intensity": 0.03}
    assert list(report.metrics) == list(runs)
    for name, eps in runs.items():
        expected = dice_by_hand(data, eps)
        rows = [row for row in report.cases if row["attack"] == name]
        assert [row["case"] for row in rows] == [f"case_{i}.nii.gz" for i in range(3)]
        assert [row[metric] for row in rows] == pytest.approx(expected, abs=1e-6)
        assert report.metrics[name][metric] == pytest.approx(sum(expected) / 3, abs=1e-6)
    assert report.metrics["PGD_10intensity"] != report.metrics["PGD_3intensity"]
    assert max(row["largest_change"] for row in report.cases if row["attack"] == "PGD_10intensity") <= 10 * (1 + 1e-5)
    printed = capsys.readouterr().out
    assert "| PGD_10intensity |" in printed
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in printed


def test_what_is_written(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = made(bundle_layouts.standard, tmp_path)
    arguments = ("evaluate", str(root), *PGD, "--eps", UNIT.format(10), "--dataset_dir", str(data))
    assert run(tmp_path, monkeypatch, *arguments, "--views", "2") == 0
    out = tmp_path / "robustness" / "bundle"
    assert {"report.html", "report.json", "report.md", "cases.csv", "about.json"} <= {
        path.name for path in out.iterdir()
    }
    about = json.loads((out / "about.json").read_text())
    assert about["about"]["command"].startswith("monai-smia evaluate ")
    assert re.search(r"SHA-256 [0-9a-f]{64}", about["about"]["weights"])
    assert re.fullmatch(r"[0-9a-f]{64}", about["about"]["data"])
    assert len(about["views"]) == 2
    assert about["failures"] == []
    rows = list(csv.DictReader((out / "cases.csv").open()))
    assert len(rows) == 6
    page = (out / "report.html").read_text()
    assert "bundle under attack" in page
    before = {path: path.read_bytes() for path in out.rglob("*.html")}
    (out / "report.html").unlink()
    assert run(tmp_path, monkeypatch, "report", str(out)) == 0
    assert {path: path.read_bytes() for path in out.rglob("*.html")} == before


def test_certificates_beside_the_attacks(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of this bundle decides at 0.5 of each pixel: the smoothed one decides the same."""
    root = made(bundle_layouts.standard, tmp_path)
    arguments = ("evaluate", str(root), *PGD, "--eps", UNIT.format(3), "--dataset_dir", str(data))
    certified = ("--certify", UNIT.format(10), "--certify_samples", "200")
    assert run(tmp_path, monkeypatch, *arguments, *certified, "--cases", "2", "--out", "out") == 0
    report = RobustnessReport.load(tmp_path / "out")
    assert [row["case"] for row in report.certificates] == ["case_0.nii.gz", "case_1.nii.gz"]
    for row in report.certificates:
        assert row["unit"] == "intensity"
        assert row["physical_sigma"] == pytest.approx(10)
        assert row["physical_radius"] == pytest.approx(10 * norm.ppf(0.75))
        assert (row["samples"], row["first_samples"]) == (200, 20)
        assert 0 < row["certified_accuracy"] <= 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<section id="certified"' in page
    assert "### Certified by randomized smoothing" in (tmp_path / "out" / "report.md").read_text()
    before = page
    (tmp_path / "out" / "report.html").unlink()
    assert run(tmp_path, monkeypatch, "report", "out") == 0
    assert (tmp_path / "out" / "report.html").read_text() == before
    other = ("--certify", UNIT.format(5), "--certify_samples", "200")
    assert run(tmp_path, monkeypatch, *arguments, *other, "--cases", "2", "--out", "out", "--resume") == 2


def test_cases_and_ids_are_chosen_on_the_command_line(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = made(bundle_layouts.standard, tmp_path)
    arguments = ("evaluate", str(root), *PGD, "--eps", UNIT.format(10), "--dataset_dir", str(data), "--norm", "2")
    where = ("--cases", "case_2.nii.gz", "--out", "chosen")
    assert run(tmp_path, monkeypatch, *arguments, *where) == 0
    report = RobustnessReport.load(tmp_path / "chosen")
    assert {row["case"] for row in report.cases} == {"case_2.nii.gz"}
    assert "norm=2" in report.attacks["PGD_10intensity"]


def test_without_labels_against_the_clean_prediction(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = made(bundle_layouts.inference, tmp_path)
    before = hashes(root)
    arguments = ("evaluate", str(root), *PGD, "--eps", UNIT.format(10), "--dataset_dir", str(data), "--out", "free")
    assert run(tmp_path, monkeypatch, *arguments) == 0
    assert hashes(root) == before
    report = RobustnessReport.load(tmp_path / "free")
    expected = []
    for file in sorted((data / "images").iterdir()):
        x = nibabel.load(file).get_fdata() / 100
        clean = x > 0.5
        attacked = clean ^ (np.abs(x - 0.5) < 0.1)
        expected.append(2 * (clean & attacked).sum() / (clean.sum() + attacked.sum()))
    metric = "dice_with_clean_prediction"
    assert report.metrics["clean"] == {metric: 1.0}
    assert report.metrics["PGD_10intensity"][metric] == pytest.approx(sum(expected) / 3, abs=1e-6)
    assert "own clean prediction" in (tmp_path / "free" / "report.html").read_text()


KILLED = """
import os, pathlib, signal, sys
from monai_smia.bundle.commands import main
from monai_smia.engines.progress_log import read_log

progress, here = pathlib.Path(sys.argv[1]), os.getpid()

def then_killed(function):
    def call(*arguments, **options):
        result = function(*arguments, **options)
        if os.getpid() == here and progress.exists() and read_log(progress).progress.done:
            os.kill(here, signal.SIGKILL)
        return result
    return call

os.replace, os.fsync = then_killed(os.replace), then_killed(os.fsync)
sys.exit(main(sys.argv[2:]))
"""
"""`monai-smia` in a process that is killed as soon as a first case is noted in its progress file."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "monai_smia", *arguments]


def test_a_killed_evaluation_goes_on(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle, resumed: nothing twice, nothing lost, the numbers of an evaluation in one go."""
    root = made(bundle_layouts.standard, tmp_path)
    arguments = ["evaluate", str(root), "--attacks", "PGD", "--eps", UNIT.format(10), "--dataset_dir", str(data)]
    cut = ["--steps", "20", "--out", str(tmp_path / "killed")]
    progress = tmp_path / "killed" / "progress" / "progress.pt"
    process = [sys.executable, "-c", KILLED, str(progress), *arguments, *cut]
    assert subprocess.run(process, cwd=tmp_path, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert len(read_log(progress).progress.done) == 1
    assert run(tmp_path, monkeypatch, *arguments, *cut) == 2  # not without --resume
    assert run(tmp_path, monkeypatch, *arguments, *cut, "--resume") == 0
    whole = ["--steps", "20", "--out", str(tmp_path / "whole")]
    assert run(tmp_path, monkeypatch, *arguments, *whole) == 0
    assert RobustnessReport.load(tmp_path / "killed") == RobustnessReport.load(tmp_path / "whole")


def test_a_bad_case_is_reported_and_the_rest_goes_on(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = made(bundle_layouts.standard, tmp_path)
    (data / "images" / "case_1.nii.gz").write_bytes(b"cut off")
    arguments = ("evaluate", str(root), *PGD, "--eps", UNIT.format(10), "--dataset_dir", str(data), "--out", "out")
    assert run(tmp_path, monkeypatch, *arguments) == 1
    assert "failed: " in capsys.readouterr().err
    report = RobustnessReport.load(tmp_path / "out")
    assert {row["case"] for row in report.cases} == {"case_0.nii.gz", "case_2.nii.gz"}
    assert "case_1.nii.gz" in (tmp_path / "out" / "report.html").read_text()


BAD = {
    "not a bundle": (["evaluate", "data"], "configs"),
    "no such folder": (["evaluate", "nowhere"], "nowhere"),
    "no weights": (["evaluate", "weightless", "--dataset_dir", "data"], "weights"),
    "no data": (["evaluate", "bundle", "--dataset_dir", "nowhere"], "dataset_dir"),
    "no unit": (["evaluate", "bundle", "--dataset_dir", "data", "--eps", "10"], "eps: expected a unit"),
    "another unit": (["evaluate", "bundle", "--dataset_dir", "data", "--eps", "10HU"], "eps: expected a unit"),
    "unknown attack": (["evaluate", "bundle", "--dataset_dir", "data", "--attacks", "PDG"], "'PDG'"),
    "no steps": (["evaluate", "bundle", "--dataset_dir", "data", "--steps", "0"], "steps"),
    "unknown id": (["evaluate", "bundle", "--dataset_dir", "data", "--step", "5"], "step"),
    "no report": (["report", "data"], "report.json"),
}


@pytest.mark.parametrize(("arguments", "says"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_one_line(
    tmp_path: Path,
    data: Path,
    arguments: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made(bundle_layouts.standard, tmp_path)
    (bundle_layouts.standard(tmp_path / "weightless") / "models" / "model.pt").unlink()
    assert run(tmp_path, monkeypatch, *arguments) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("monai-smia: ")]
    assert len(said) == 1
    assert says in said[0]
    assert not (tmp_path / "robustness" / "bundle" / "report.html").exists()


def test_inspect_and_attacks(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    root = made(bundle_layouts.standard, tmp_path)
    assert run(tmp_path, monkeypatch, "inspect", str(root), "--dataset_dir", str(data)) == 0
    said = capsys.readouterr().out
    for word in ("validate#evaluator", "DiceCELoss", "ScaleIntensityRanged", "val_mean_dice", "intensity"):
        assert word in said
    assert run(tmp_path, monkeypatch, "inspect", str(root)) == 1
    assert "missing: " in capsys.readouterr().out
    assert run(tmp_path, monkeypatch, "attacks") == 0
    said = capsys.readouterr().out
    for word in ("SMIA: ", "PGD: ", "steps=10", "stabilization_weight=0.3"):
        assert word in said


@pytest.mark.parametrize("layout", ["standard", "train-only", "template", "subclass"])
def test_the_overlay_gives_the_same_numbers_by_monais_command(
    tmp_path: Path, data: Path, layout: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = made(LABELLED[layout], tmp_path)
    arguments = ("evaluate", str(root), *PGD, "--eps", UNIT.format(10), "--dataset_dir", str(data), "--out", "one")
    assert run(tmp_path, monkeypatch, *arguments) == 0
    capsys.readouterr()
    assert run(tmp_path, monkeypatch, "overlay", str(root)) == 0
    (tmp_path / "attack.json").write_text(capsys.readouterr().out)
    with open_bundle(root) as opened:
        files = [str(path) for path in opened.config_files]
    files.append(str(tmp_path / "attack.json"))
    options = ["--attack#attacks", "PGD", "--attack#eps", "10", "--attack#unit", "intensity", "--attack#steps", "5"]
    options += ["--dataset_dir", str(data), "--bundle_root", str(root), "--attack#out", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files), *options],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (RobustnessReport.load(tmp_path / name) for name in ("one", "two"))
    assert one.metrics == two.metrics


def test_a_pipeline_without_a_bundle(tmp_path: Path) -> None:
    """An evaluator made in Python: the same function, with what it does not say given."""
    from evaluators import BOUNDS, Task

    task = Task(2)
    outcome = evaluate_under_attack(
        task.evaluator(), ["PGD"], "0.02net", steps=2, bounds=BOUNDS, out=tmp_path / "out", progress=False
    )
    assert outcome.failures == ()
    assert outcome.page.is_file()
    (attacked,) = outcome.report.attacks
    assert outcome.report.metrics[attacked] != outcome.report.metrics["clean"]


def test_a_budget_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    """A forward pass of a volume may take minutes."""
    from evaluators import Task

    evaluator, passes = Task(2).evaluator(), list[Any]()
    evaluator.network.register_forward_pre_hook(lambda module, inputs: passes.append(inputs))
    with pytest.raises(ValueError, match="eps: expected a unit that this preprocessing has"):
        evaluate_under_attack(evaluator, ["PGD"], "5HU", out=tmp_path / "out", progress=False)
    assert passes == []
