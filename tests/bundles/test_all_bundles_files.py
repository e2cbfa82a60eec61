"""What every bundle ships: metadata, licence, weights, configs that agree, and networks that can be exported."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import bundle_runs
import jsonschema
import numpy as np
import pytest
import torch
from bundle_rows import ROWS, Row
from bundle_runs import Trained
from monai.bundle import ConfigParser, ckpt_export, verify_net_in_out
from torch import nn

from monai_smia.attacks import PGD
from monai_smia.attacks.detection import DetectionLoss, DetectorHeads
from monai_smia.attacks.detection_criteria import BoxesMissed

SCHEMA = "meta_schema_20240725.json"
CONFIGS = {
    "adversarial_train.json",
    "attack.json",
    "evaluate.json",
    "inference.json",
    "logging.conf",
    "metadata.json",
    "multi_gpu_evaluate.json",
    "multi_gpu_train.json",
    "resume.json",
    "train.json",
}
MORE = {"endoscopy_detection": {"train_ead2019.json"}}
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@pytest.fixture(scope="session")
def schema() -> dict[str, Any]:
    """MONAI's schema of metadata; skips the test where it is not beside the checkout."""
    path = Path(__file__).parents[3] / "shared" / "schema" / SCHEMA
    if not path.is_file():
        pytest.skip(f"needs MONAI's schema of metadata: {path} is not there")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@rows
def test_metadata_follow_the_schema(row: Row, schema: dict[str, Any]) -> None:
    metadata = row.config_file("metadata.json")
    assert metadata["schema"].endswith(SCHEMA)
    jsonschema.validate(metadata, schema)


@rows
def test_metadata_say_what_the_configs_do(row: Row) -> None:
    metadata, inference = row.config_file("metadata.json"), row.config("inference.json")
    assert metadata["version"] in metadata["changelog"]
    image = metadata["network_data_format"]["inputs"]["image"]
    if (size := network_size(inference)) is not None:
        assert image["spatial_shape"] == size
    output = metadata["network_data_format"]["outputs"]["pred"]
    assert list(map(str, range(image["num_channels"]))) == list(image["channel_def"])
    assert len(output["channel_def"]) == output["num_channels"] or row.name == "endoscopy_detection"


def network_size(inference: dict[str, Any]) -> Any:
    """The spatial size that the last transform, or the window, gives the network."""
    sizes = [step["spatial_size"] for step in inference["preprocessing"]["transforms"] if "spatial_size" in step]
    size = sizes[-1] if sizes else inference["inferer"].get("roi_size")
    return inference["image_size"] if size == "@image_size" else size


@rows
def test_files_are_there(row: Row) -> None:
    found = {path.name for path in (row.root / "configs").iterdir()}
    assert found >= CONFIGS | MORE.get(row.name, set())
    assert "Apache License" in (row.root / "LICENSE").read_text()
    assert (row.root / "docs" / "README.md").read_text().startswith("# ")
    for name in ("model.pt", "model_robust.pt"):
        path = row.root / "models" / name
        assert path.stat().st_size < 6e6
        assert path.stat().st_size > 1e5


@rows
@pytest.mark.parametrize("name", ["model.pt", "model_robust.pt"])
def test_weights_fit_the_network(row: Row, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle_runs.own_scripts(monkeypatch, row)
    state = torch.load(row.root / "models" / name, weights_only=True)
    ConfigParser(row.config("train.json")).get_parsed_content("network_def").load_state_dict(state)
    assert all(torch.isfinite(value).all() for value in state.values())


@rows
def test_configs_agree(row: Row) -> None:
    """Inference does to an image what evaluation does, with the same network."""
    train, inference = row.config("train.json"), row.config("inference.json")
    shared = ("network_def", "network", "detector", "heads", "model_file", "ckpt_dir", "device", "seed")
    for key in (*shared, "image_size", "classes", "num_classes", "anchor_shapes"):
        assert train.get(key) == inference.get(key), key
    assert train["validate"]["inferer"] == inference["inferer"]

    def image_steps(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = [dict(step) for step in steps if "image" in np.atleast_1d(step["keys"])]
        for step in kept:
            for key in ("keys", "mode", "converter"):
                step[key] = "image" if key == "keys" else np.atleast_1d(step.get(key, "none"))[0]
        return kept

    steps = image_steps(train["train"]["deterministic_transforms"])
    assert steps == image_steps(inference["preprocessing"]["transforms"])


def test_the_network_is_what_metadata_say(trained: Trained) -> None:
    configs = trained.row.root / "configs"
    files = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}
    verify_net_in_out("network_def", device="cpu", **files)
    data = trained.row.config_file("metadata.json")["network_data_format"]
    image, pred = data["inputs"]["image"], data["outputs"]["pred"]
    network = trained.parser.get_parsed_content("network_def").eval()
    with torch.no_grad():
        output = network(torch.rand(1, image["num_channels"], *image["spatial_shape"]))
    assert list(output.shape) == [1, pred["num_channels"], *pred["spatial_shape"]]


@pytest.fixture
def exported(trained: Trained, tmp_path: Path) -> nn.Module:
    """The TorchScript export of the bundle's tiny weights."""
    configs = trained.row.root / "configs"
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(trained.models / "model.pt"),
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        key_in_ckpt="",
    )
    return torch.jit.load(str(tmp_path / "model.ts"))


def test_the_export_predicts_and_can_be_attacked(trained: Trained, exported: nn.Module) -> None:
    """PGD through the export finds what it finds through the network: a higher loss than the clean one."""
    parser = trained.run("train.json", "evaluate.json")
    evaluator = parser.get_parsed_content("validate#evaluator")
    image, label = evaluator.prepare_batch(next(iter(evaluator.data_loader)), torch.device("cpu"))
    image = image.as_tensor()
    network, loss = parser.get_parsed_content("network"), parser.get_parsed_content("loss")
    with torch.no_grad():
        torch.testing.assert_close(exported.eval()(image), network.eval()(image), rtol=1e-4, atol=1e-5)
    results = []
    for victim in (network, exported):
        more: dict[str, Any] = {}
        if trained.row.name == "endoscopy_detection":
            make_detector = importlib.import_module("scripts.detector").make_detector
            shapes = parser.get_parsed_content("anchor_shapes")
            victim = DetectorHeads(make_detector(victim, 1, shapes)).eval()
            loss, more = DetectionLoss(victim), {"criterion": BoxesMissed(victim)}
        attack = PGD(loss, eps=4 / 255, bounds=(0.0, 1.0), steps=2, random_start=False, **more)
        results.append(attack(victim, image, label))
    for result in results:
        change = (result.adversarial - image).flatten(1).abs().amax(1)
        assert ((change > 0) & (change <= 4 / 255 + 1e-6)).all()
        assert (result.loss > result.clean_loss).all()
    torch.testing.assert_close(results[0].clean_loss, results[1].clean_loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[0].loss, results[1].loss, rtol=1e-2, atol=1e-3)
