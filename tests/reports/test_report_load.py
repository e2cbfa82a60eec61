"""A report comes back from its file as it was."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from page_samples import sample_report

from monai_smia.reports import CLEAN, RobustnessReport

WHOLE = {"metrics": {CLEAN: {}}, "attacks": {}, "unit": "HU", "cases": [{"attack": CLEAN, "case": "a"}]}


def finite() -> RobustnessReport:
    rows = (
        {"attack": CLEAN, "case": "ä.nii", "dice": 0.1 + 0.2, "flag": False},
        {"attack": "pgd", "case": "ä.nii", "dice": 1e-300, "flag": True, "passes": 2**40, "note": "x"},
    )
    return RobustnessReport({CLEAN: {"dice": [0.5, 1 / 3]}, "pgd": {"dice": [0.0, 1]}}, rows, {"pgd": "PGD()"}, "µm")


@pytest.mark.parametrize("name", ["robustness.json", "report.json", "other.json"])
def test_load_gives_what_was_saved(name: str, tmp_path: Path) -> None:
    report = finite()
    report.to_json(tmp_path / name)
    assert RobustnessReport.load(tmp_path / name) == report
    if name != "other.json":
        again = RobustnessReport.load(str(tmp_path))
        assert again == report
        assert again.to_json() == report.to_json()
        assert type(again.cases[1]["passes"]) is int
        assert again.cases[1]["flag"] is True
        again.save(tmp_path / "again")
        assert RobustnessReport.load(tmp_path / "again") == report


def test_the_folder_of_save_comes_first(tmp_path: Path) -> None:
    RobustnessReport({CLEAN: {"dice": 0.0}}, (), {}, "HU").to_json(tmp_path / "report.json")
    finite().save(tmp_path)
    assert RobustnessReport.load(tmp_path) == finite()


def test_what_is_not_finite_is_nan(tmp_path: Path) -> None:
    metrics = {CLEAN: {"auc": math.inf, "dice": torch.tensor([0.5, math.nan]), "n": np.float64(0.25)}}
    rows = ({"attack": CLEAN, "case": "a", "dice": -math.inf, "none": None},)
    RobustnessReport(metrics, rows, {}, "HU").to_json(tmp_path / "r.json")
    again = RobustnessReport.load(tmp_path / "r.json")
    assert math.isnan(again.metrics[CLEAN]["auc"])
    assert again.metrics[CLEAN]["n"] == 0.25
    assert again.metrics[CLEAN]["dice"] == pytest.approx([0.5, math.nan], nan_ok=True)
    assert math.isnan(again.cases[0]["dice"])
    assert math.isnan(again.cases[0]["none"])


def test_tables_of_a_loaded_report_are_the_same(tmp_path: Path) -> None:
    report = sample_report()
    report.save(tmp_path)
    again = RobustnessReport.load(tmp_path)
    assert again.to_markdown() == report.to_markdown()
    for name in ("robustness.csv", "robustness.json", "robustness.md"):
        again.save(tmp_path / "again", overwrite=True)
        assert (tmp_path / "again" / name).read_text() == (tmp_path / name).read_text()


def test_a_loaded_report_gives_the_same_curve(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = sample_report()
    report.save(tmp_path)
    lines = [drawn.figure().axes[0].lines for drawn in (report, RobustnessReport.load(tmp_path))]
    for one, other in zip(*lines, strict=True):
        assert np.array_equal(one.get_xydata(), other.get_xydata())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "expected a report as JSON; got .*r.json"),
        ("[]", "the file: expected an object of names and values; got"),
        (json.dumps({**WHOLE, "metrics": 1}), "metrics: expected an object of names and values; got 1"),
        (json.dumps({"metrics": {}}), "attacks: expected it to be there; got nothing"),
        (json.dumps({**WHOLE, "metrics": {"pgd": 0.5}}), "metrics.pgd: expected an object of names and values"),
        (json.dumps({**WHOLE, "cases": [*WHOLE["cases"], {"case": "a"}]}), "cases.1.attack: expected it to be there"),
    ],
)
def test_other_files_are_no_reports(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ValueError, match=f"folder_or_file: .*{words}"):
        RobustnessReport.load(tmp_path / "r.json")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="folder_or_file: .*none does not exist"):
        RobustnessReport.load(tmp_path / "none")
    (tmp_path / "cases.csv").touch()
    with pytest.raises(FileNotFoundError, match="expected robustness.json or report.json in .*; got cases.csv"):
        RobustnessReport.load(tmp_path)
