"""`open_bundle` on the bundles that ship: their evaluator, their attacks, and the numbers of MONAI's own run."""

from __future__ import annotations

from pathlib import Path

import bundle_layouts as layouts
import pytest
from bundle_rows import ROWS, Row
from bundle_runs import own_scripts, workflow
from monai.engines import SupervisedEvaluator
from monai.utils import set_determinism

from monai_smia.attacks import Attack
from monai_smia.bundle.opening import open_bundle
from monai_smia.intensity import IntensityScale


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_our_bundles_are_found_with_their_attacks(row: Row, tmp_path: Path) -> None:
    before = layouts.hashes(row.root)
    with open_bundle(row.root) as bundle:
        assert bundle.kind == "evaluate"
        assert [path.name for path in bundle.config_files] == ["train.json", "evaluate.json", "attack.json"]
        assert bundle.attack_config == row.root / "configs" / "attack.json"
        found = bundle.found()
        assert found["evaluator"] == "validate#evaluator (SupervisedEvaluator)"
        assert found["metrics"].split(", ") == list(row.metrics)
        assert found["weights"] == "models/model.pt, loaded by validate#handlers#0"
        assert {entry.argument for entry in bundle.missing()} <= {"dataset_dir"}
    row.data(tmp_path / "data")  # which some losses count
    with open_bundle(row.root, dataset_dir=tmp_path / "data") as bundle:
        attack = row.config_file("attack.json")
        sizes = attack[next(key for key in attack if key.startswith("eps_"))]
        names = [f"{name}_{size:g}{row.unit}" for name in attack["attack_names"] for size in sizes]
        assert list(bundle.attacks()) == names
        assert all(isinstance(value, Attack) for value in bundle.attacks().values())
        scale = bundle.intensity()
        assert isinstance(scale, IntensityScale)
        assert scale.to_network(row.width) == pytest.approx(1.0)
        assert bundle.attacks() is bundle.attacks()
    assert layouts.hashes(row.root) == before


def test_our_inference_has_no_attacks(tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.name == "hippocampus_mri_segmentation")
    row.data(tmp_path / "data")
    overrides = {"preprocessing#transforms#5#spatial_size": [16, 32, 16]}
    before = layouts.hashes(row.root)
    images = tmp_path / "data" / row.images
    with open_bundle(row.root, configs="inference", dataset_dir=images, overrides=overrides, cases=1) as bundle:
        assert (bundle.kind, bundle.attack_config, bundle.attacks()) == ("inference", None, None)
        bundle.evaluator().run()
        assert set(bundle.evaluator().state.output[0]["pred"].unique().tolist()) <= {0.0, 1.0, 2.0}
    assert layouts.hashes(row.root) == before


@pytest.mark.parametrize("name", ["hippocampus_mri_segmentation", "endoscopy_detection", "chest_xray_classification"])
def test_our_bundles_give_the_metrics_of_monai_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in ROWS if row.name == name)
    row.data(tmp_path / "data")
    own_scripts(monkeypatch, row)
    where = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "eval")}
    flow = workflow(row, "train.json", "evaluate.json", **where, **row.small)
    flow.run()
    expected = flow.parser.get_parsed_content("validate#evaluator").state.metrics
    set_determinism(None)
    before = layouts.hashes(row.root)
    with open_bundle(row.root, dataset_dir=tmp_path / "data", overrides=row.small, split="test") as bundle:
        evaluator = bundle.evaluator()
        assert type(evaluator) is SupervisedEvaluator
        evaluator.run()
        assert evaluator.state.metrics == pytest.approx(expected)
    assert layouts.hashes(row.root) == before
