"""The Markdown of a model card has the page's numbers."""

from __future__ import annotations

import math

import numpy as np
from page_samples import DICE, sample_report

from monai_smia.reports import CLEAN, RobustnessReport, bootstrap_interval
from monai_smia.reports.model_card import report_markdown
from monai_smia.reports.readout import Reading


def test_sections_and_numbers() -> None:
    text = report_markdown(sample_report(), {"seed": "7"}, reading=Reading(names={"dice": "Dice of all"}))
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("#")] == ["## Adversarial robustness", "### How it was made"]
    assert lines[2].startswith("Without an attack the mean Dice of all over 3 cases is 0.93. Changes of at most 5 HU")
    worst = np.nanmin([DICE["PGD_5HU"][:3], DICE["SMIA_5HU"][:3]], 0)
    cells = [
        f"{values.mean():.3f} ({low:.3f} to {high:.3f})"
        for values in (np.array(DICE[CLEAN][:3]), worst, np.array(DICE["PGD_20HU"][:3]))
        for low, high in [bootstrap_interval(values)]
    ]
    assert f"| Dice of all | {' | '.join(cells)} |" in lines
    assert "| AUC | 0.900 | 0.700 | 0.600 |" in lines
    assert "| PGD_20HU | 20 HU | `PGD(DiceLoss(), eps=0.014285714285714285, bounds=(0.0, 1.0))` |" in lines
    assert lines[-1] == "- seed: 7"
    assert text.endswith("7\n")


def test_names_do_not_break_the_table() -> None:
    report = RobustnessReport({CLEAN: {"a|b": math.nan}}, (), {"x|<img>\ny": "P(|)"}, "HU")
    lines = report_markdown(report).splitlines()
    assert "| a\\|b | undefined | undefined |" in lines
    assert "| x\\|&lt;img> y | unknown | `P(\\|)` |" in lines


def test_an_empty_report() -> None:
    assert report_markdown(RobustnessReport({}, (), {}, "HU")) == (
        "## Adversarial robustness\n\nThe report holds no metric.\n\n### How it was made\n"
    )
