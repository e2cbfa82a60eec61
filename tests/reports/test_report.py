"""`RobustnessReport` on numbers made by hand."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from monai_smia.reports import CLEAN, RobustnessReport

FILES = ["cases.csv", "robustness.csv", "robustness.json", "robustness.md"]


def case(attack: str, name: str, dice: float, **more: Any) -> dict[str, Any]:
    return {"attack": attack, "case": name, "dice": dice, **more}


def attacked(name: str, dice: float, loss: float, success: bool, change: float) -> dict[str, Any]:
    return case(
        "pgd",
        name,
        dice,
        clean_loss=loss / 2,
        loss=loss,
        clean_success=False,
        success=success,
        largest_change=change,
        forward_passes=12,
        backward_passes=10,
        nonfinite_gradients=0,
    )


@pytest.fixture
def report() -> RobustnessReport:
    return RobustnessReport(
        {CLEAN: {"dice": 0.9, "iou": 0.8}, "pgd": {"dice": 0.25, "iou": 0.125}},
        (
            case(CLEAN, "a.nii", 0.95),
            case(CLEAN, "b.nii", 0.85),
            attacked("a.nii", 0.3, 1.0, True, 4.5),
            attacked("b.nii", 0.2, 2.0, False, 5.0),
        ),
        {"pgd": "PGD(DiceLoss(), eps=5)"},
        "HU",
    )


def test_to_frame(report: RobustnessReport) -> None:
    frame = report.to_frame()
    assert list(frame.index) == [CLEAN, "pgd"]
    assert frame.loc["pgd"].to_dict() == {
        "dice": 0.25,
        "iou": 0.125,
        "success_rate": 0.5,
        "loss": 1.5,
        "largest_change [HU]": 5.0,
        "forward_passes": 12.0,
        "backward_passes": 10.0,
    }
    clean = frame.loc[CLEAN]
    assert clean[["dice", "iou", "success_rate", "loss"]].tolist() == [0.9, 0.8, 0.0, 0.75]
    assert clean[["largest_change [HU]", "forward_passes", "backward_passes"]].isna().all()


def test_to_markdown(report: RobustnessReport) -> None:
    assert report.to_markdown().splitlines() == [
        "| attack | dice | iou | success_rate | loss | largest_change [HU] | forward_passes | backward_passes |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
        "| clean | 0.9000 | 0.8000 | 0.0000 | 0.7500 |  |  |  |",
        "| pgd | 0.2500 | 0.1250 | 0.5000 | 1.5000 | 5.0000 | 12 | 10 |",
    ]


def test_csv_holds_the_cases(report: RobustnessReport, tmp_path: Path) -> None:
    text = report.to_csv(tmp_path / "cases.csv")
    assert (tmp_path / "cases.csv").read_text() == text
    again = pd.read_csv(io.StringIO(text))
    pd.testing.assert_frame_equal(again, report.cases_frame(), check_dtype=False)
    assert again["dice"].tolist() == [0.95, 0.85, 0.3, 0.2]


def test_json_round_trip(report: RobustnessReport, tmp_path: Path) -> None:
    text = report.to_json(tmp_path / "r.json")
    read = json.loads((tmp_path / "r.json").read_text())
    assert read == json.loads(text)
    assert RobustnessReport(read["metrics"], tuple(read["cases"]), read["attacks"], read["unit"]) == report


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def test_json_of_tensors_arrays_and_what_is_undefined() -> None:
    metrics = {
        CLEAN: {"per_class": torch.tensor([0.5, math.nan]), "auc": np.float64(0.25), "worst": math.inf},
        "pgd": {"per_class": np.array([0.125, 0.0]), "auc": math.nan, "worst": np.int64(3)},
    }
    report = RobustnessReport(metrics, (case(CLEAN, "a", math.nan),), {"pgd": "PGD()"}, "network units")
    read = json.loads(report.to_json(), parse_constant=refuse)
    assert read["metrics"] == {
        CLEAN: {"per_class": [0.5, None], "auc": 0.25, "worst": None},
        "pgd": {"per_class": [0.125, 0.0], "auc": None, "worst": 3},
    }
    assert read["cases"] == [{"attack": CLEAN, "case": "a", "dice": None}]
    assert "| pgd | [0.125, 0.0] |  | 3.0000 |" in report.to_markdown()


def test_save(report: RobustnessReport, tmp_path: Path) -> None:
    report.save(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(os.listdir(folder)) == FILES
    assert (folder / "robustness.md").read_text() == report.to_markdown() + "\n"
    assert (folder / "cases.csv").read_text() == report.to_csv()
    assert json.loads((folder / "robustness.json").read_text()) == json.loads(report.to_json())
    runs = pd.read_csv(folder / "robustness.csv", index_col="attack")
    pd.testing.assert_frame_equal(runs, report.to_frame(), check_dtype=False)


@pytest.mark.parametrize("name", FILES)
def test_save_refuses_to_overwrite_and_then_writes_nothing(report: RobustnessReport, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("old")
    with pytest.raises(FileExistsError, match=f"folder: .*{name} exists"):
        report.save(tmp_path)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "old"
    report.save(tmp_path, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == FILES
    assert (tmp_path / name).read_text() != "old"
    for write in (report.to_json, report.to_csv):
        with pytest.raises(FileExistsError, match="expected a new file"):
            write(tmp_path / name)


def test_a_report_without_cases_has_only_metrics() -> None:
    report = RobustnessReport({CLEAN: {"dice": 0.9}, "pgd": {"dice": 0.3}}, (), {"pgd": "PGD()"}, "HU")
    assert report.to_frame()["dice"].to_dict() == {CLEAN: 0.9, "pgd": 0.3}
    assert list(report.to_frame().columns) == ["dice"]
