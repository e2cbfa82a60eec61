"""The detection bundle retrained on EAD-2019: the overlay reads YOLO texts, and keeps boxes and classes with images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bundle_runs
import pytest
import tiny_data
import torch
from bundle_rows import ROWS

(ROW,) = [row for row in ROWS if row.name == "endoscopy_detection"]
NAMES = ("train.json", "train_ead2019.json")


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Overrides: the tiny data, small images, and a folder for checkpoints."""
    bundle_runs.own_scripts(monkeypatch, ROW)
    tiny_data.artefacts(tmp_path / "data")
    folders = {"dataset_dir": "data", "ckpt_dir": "models", "output_dir": "eval"}
    return {**ROW.small, **{key: str(tmp_path / name) for key, name in folders.items()}, "batch_size": 4}


def test_boxes_and_classes_are_those_of_the_texts(where: dict[str, Any]) -> None:
    parser = bundle_runs.workflow(ROW, *NAMES, split="test", **where).parser
    items = list(parser.get_parsed_content("validate#dataset"))
    numbers = [0, 10]  # the rule's test split of twelve frames
    assert [Path(item["image"].meta["filename_or_obj"]).stem for item in items] == [f"{i:05}" for i in numbers]
    for item, number in zip(items, numbers, strict=True):
        native = torch.tensor(tiny_data.polyp_boxes(number % 4), dtype=torch.float32)
        expected = native * torch.tensor([128 / 256, 128 / 192] * 2)
        torch.testing.assert_close(item["label"]["boxes"], expected)
        assert item["label"]["labels"].tolist() == [number % 7] * len(native)
        for x1, y1, x2, y2 in expected.int().tolist():
            assert item["image"][:, x1:x2, y1:y2].min() > 0.95


def test_it_trains_and_evaluates(where: dict[str, Any]) -> None:
    trainer = bundle_runs.finished(bundle_runs.workflow(ROW, *NAMES, epochs=1, **where))
    assert trainer.get_parsed_content("train#trainer").state.iteration == 2
    (model,) = Path(where["ckpt_dir"]).glob("model*.pt")
    assert model.name == "model_ead2019.pt"
    state = torch.load(model, weights_only=True)
    assert all(torch.isfinite(value).all() for value in state.values())
    parser = bundle_runs.finished(
        bundle_runs.workflow(ROW, "train.json", "evaluate.json", "train_ead2019.json", **where)
    )
    metrics = parser.get_parsed_content("validate#evaluator").state.metrics
    assert metrics.keys() == ROW.metrics.keys()
    assert all(0 <= value <= 1 for value in metrics.values())
