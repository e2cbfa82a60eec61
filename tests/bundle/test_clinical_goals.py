"""A clinical goal from a JSON file, on a bundle whose network says 1 above 0.5: areas counted by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bundle_layouts
import nibabel
import pytest
import torch
from bundle_layouts import save_data, save_weights
from monai.bundle import ConfigParser
from torch import nn

from monai_smia.attacks import CrossGrade, Towards
from monai_smia.bundle import attack_grid
from monai_smia.bundle.attack_options import read_attack_options
from monai_smia.bundle.commands import main
from monai_smia.bundle.errors import BundleError
from monai_smia.reports import RobustnessReport

ERASE: dict[str, Any] = {"_target_": "monai_smia.attacks.Erase", "structure": 1, "tolerance": 40.0}
SHRINK: dict[str, Any] = {"_target_": "monai_smia.attacks.ShiftVolume", "structure": 1, "by": -18.0}


def prepared(tmp_path: Path) -> list[torch.Tensor]:
    """A bundle and its data, of 2 x 3 mm; its images in network units."""
    save_data(tmp_path / "data")
    images = []
    for file in sorted((tmp_path / "data").rglob("*.nii.gz")):
        values = nibabel.load(file).get_fdata()
        affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])).numpy()
        nibabel.save(nibabel.Nifti1Image(values.astype("float32"), affine), file)
        if file.parent.name == "images":
            images.append(torch.as_tensor(values / 100))
    save_weights(bundle_layouts.standard(tmp_path / "bundle"))
    return images


@pytest.mark.parametrize("goal", [ERASE, SHRINK], ids=["erase", "shrink"])
def test_one_command_erases_and_shrinks(
    goal: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = prepared(tmp_path)
    (tmp_path / "goals.json").write_text(json.dumps({"PGD": {"goal": goal}}))
    arguments = ["evaluate", "bundle", "--dataset_dir", "data", "--options", "goals.json", "--eps", "10intensity"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["monai-smia", *arguments])
    assert main([*arguments, "--steps", "5", "--out", "out"]) == 0
    report = RobustnessReport.load(tmp_path / "out")
    rows = [row for row in report.cases if row["attack"] == "PGD_10intensity"]
    before = [6.0 * int((x > 0.5).sum()) for x in images]
    assert [row["clean_measured [mm2]"] for row in rows] == before
    after = [row["measured [mm2]"] for row in rows]
    if goal is ERASE:
        assert after == [6.0 * int((x - 0.1 > 0.5).sum()) for x in images]
        assert [row["success"] for row in rows] == [left <= 40.0 for left in after]
    else:
        assert [row["success"] for row in rows] == [
            left <= first - 18.0 for left, first in zip(after, before, strict=True)
        ]
        assert all(row["success"] for row in rows)
    assert report.to_frame().loc["PGD_10intensity", "measured [mm2]"] == pytest.approx(sum(after) / 3)
    assert "measured [mm2]" in capsys.readouterr().out
    assert f"{goal['_target_'].rpartition('.')[2]}(1, " in report.attacks["PGD_10intensity"]


def test_what_is_wrong_with_a_file_of_options_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(tmp_path)
    monkeypatch.chdir(tmp_path)
    files = {
        "nowhere.json": (None, "options: expected a JSON or YAML file"),
        "list.json": (["PGD"], "options: expected an attack's name to its arguments"),
        "zero.json": ({"PGD": {"goal": {**SHRINK, "by": 0}}}, "by: expected ml or mm2"),
        "impossible.json": ({"PGD": {"goal": {**SHRINK, "by": -999.0}}}, "it cannot change by -999"),
        "stray.json": ({"PGD": {"goal": "erase"}}, "goal: expected a ClinicalGoal"),
    }
    for name, (content, says) in files.items():
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
        assert main(["evaluate", "bundle", "--dataset_dir", "data", "--options", name, "--eps", "10intensity"]) == 2
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("monai-smia: ")]
        assert says in said
    with pytest.raises(BundleError, match="options"):
        read_attack_options({"PGD": {"goal": {"_target_": "monai_smia.attacks.Nothing"}}})


def test_a_bundles_own_attack_options_hold_a_goal() -> None:
    """As in the ``attack.json`` of the bundles: the head is the loss's, the budget is replaced as in any attack."""
    config = {
        "imports": ["$from monai_smia.bundle import attack_grid"],
        "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
        "attack_options": {
            "PGD": {"goal": {"_target_": "monai_smia.attacks.CrossGrade", "threshold": 1, "direction": "down"}}
        },
        "attacks": "$attack_grid(['PGD', 'FGSM'], [0.1, 0.2], @loss, options=@attack_options, steps=3)",
    }
    attacks = ConfigParser(json.loads(json.dumps(config))).get_parsed_content("attacks")
    assert list(attacks) == ["PGD_0.1", "PGD_0.2", "FGSM_0.1", "FGSM_0.2"]
    assert isinstance(attacks["PGD_0.2"], Towards)
    assert (attacks["PGD_0.2"].eps, attacks["PGD_0.2"].attack.eps, attacks["PGD_0.2"].attack.steps) == (0.2, 0.2, 3)
    assert attacks["PGD_0.1"].goal == CrossGrade(1, direction="down")
    assert not isinstance(attacks["FGSM_0.1"], Towards)
    (same,) = attack_grid(["PGD"], [0.1], nn.CrossEntropyLoss(), options={"PGD": {"goal": None}}).values()
    assert not isinstance(same, Towards)
