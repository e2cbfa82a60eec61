"""The weights that ship reach, on the real test cases, what the metadata state."""

from __future__ import annotations

from pathlib import Path

import bundle_runs
import pytest
from bundle_rows import ROWS, Row

FOLDERS = {
    "chest_xray_classification": "chest_xray",
    "chest_xray_segmentation": "chest_xray",
    "endoscopy_detection": "endoscopy_polyp",
    "endoscopy_polyp_segmentation": "endoscopy_polyp",
    "fundus_dr_classification": "fundus_dr",
    "hippocampus_mri_segmentation": "hippocampus_mri",
}


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in FOLDERS], ids=lambda row: row.name)
def test_clean_metrics_are_those_of_the_metadata(
    row: Row, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle_runs.own_scripts(monkeypatch, row)
    # the training images are only listed: this reads the test images alone
    flow = bundle_runs.workflow(
        row, "train.json", "evaluate.json", dataset_dir=str(shared_data / FOLDERS[row.name]), output_dir=str(tmp_path)
    )
    metrics = bundle_runs.finished(flow).get_parsed_content("validate#evaluator").state.metrics
    stated = row.config_file("metadata.json")["eval_metrics"]
    assert stated.keys() == row.metrics.keys()
    assert metrics == pytest.approx(stated, abs=0.02)  # other hardware may move a case across a threshold
