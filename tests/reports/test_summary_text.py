"""The sentence that a page starts with says what the numbers say."""

from __future__ import annotations

from monai_smia.reports import RobustnessReport
from monai_smia.reports.readout import read_report
from monai_smia.reports.summary_text import summary_sentences


def test_a_larger_budget_allows_what_a_smaller_one_did() -> None:
    """An attack may do worse with more room; the sentence, "at most", says what was reached."""
    values = {"clean": 0.9, "PGD_5HU": 0.3, "PGD_10HU": 0.6}
    rows = tuple({"attack": run, "case": case, "dice": dice} for run, dice in values.items() for case in "ab")
    report = RobustnessReport({"clean": {"dice": 0.9}}, rows, {"PGD_5HU": "PGD()", "PGD_10HU": "PGD()"}, "HU")
    said = summary_sentences(read_report(report))
    assert "at most 5 HU bring it down to 0.30" in said
    assert "at most 10 HU to 0.30" in said
