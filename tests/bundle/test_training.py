"""`monai-smia train`: any bundle's training with an attack in it, which writes nothing into the bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bundle_layouts
import pytest
import torch
from bundle_layouts import hashes, save_data
from bundle_rows import ROWS
from bundle_runs import finished, own_scripts, workflow
from ignite.engine import Events
from monai.bundle import ConfigParser

from monai_smia.attacks import PGD
from monai_smia.bundle.commands import main
from monai_smia.bundle.training import AdversarialTraining
from monai_smia.bundle.training_methods import METHODS

EPS = "5intensity"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle in the zoo's layout and its data, in the working folder."""
    file = bundle_layouts.train_only(tmp_path / "bundle") / "configs" / "train.json"
    config = json.loads(file.read_text())
    config["train"]["dataset"] = {
        "_target_": "DataLoader",
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': i, 'label': l} for i, l in zip(@images, @labels)]",
            "transform": {"_target_": "Compose", "transforms": "@train#deterministic_transforms"},
        },
        "batch_size": 2,
    }
    config["train"]["handlers"] = [bundle_layouts.STATS, {**bundle_layouts.SAVER, "save_key_metric": False}]
    config["train"]["trainer"]["train_handlers"] = "@train#handlers"
    file.write_text(json.dumps(config))
    save_data(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["monai-smia", *arguments])
    return main(list(arguments))


def training(place: Path, method: str | None = "pgd", **arguments: Any) -> AdversarialTraining:
    given = {"eps": EPS, "out": place / "out", "dataset_dir": place / "data", "epochs": 2, "seed": 3, **arguments}
    return AdversarialTraining(place / "bundle", method, **given)


def weights(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], value) for name, value in other.items())


def test_the_weights_are_those_of_a_loop_by_hand(place: Path) -> None:
    """Two epochs over the bundle's own batches: attack, loss, step; nothing else."""
    with training(place, steps=3, bounds=(0, 1)) as ours:
        start = {name: value.clone() for name, value in ours.network.state_dict().items()}
        batches = [[], []]
        ours.trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda e: batches[e.state.epoch - 1].append((e.state.batch, e.state.output)),
        )
        found = weights(ours.run())
        parser = ConfigParser(ours.parser.config)
        network = parser.get_parsed_content(ours._network_id)
        network.load_state_dict(start)
        loss = ours.trainer.loss_function
        optimizer = type(ours.trainer.optimizer)(network.parameters(), **_options(ours.trainer.optimizer))
        attack = PGD(loss, eps=0.05, steps=3, bounds=(0, 1))
        for epoch, seen in enumerate(batches, start=1):
            source = torch.Generator().manual_seed(3 + epoch)
            for batch, _ in seen:
                image = torch.stack([item["image_clean"].as_tensor() for item in batch])
                label = torch.stack([torch.as_tensor(item["label"]) for item in batch])
                adversarial = attack(network, image, label, generator=source).adversarial
                network.train()
                optimizer.zero_grad()
                loss(network(adversarial), label).backward()
                optimizer.step()
    assert any(not torch.equal(found[name], value) for name, value in start.items())
    for name, value in network.state_dict().items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-5, atol=1e-7)


def _options(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    group = optimizer.param_groups[0]
    return {
        name: group[name] for name in optimizer.defaults if name in ("lr", "betas", "eps", "weight_decay", "momentum")
    }


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_the_bundle_is_as_it_was(
    place: Path, method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hashes(place / "bundle")
    common = ("--eps", EPS, "--dataset_dir", "data", "--epochs", "1", "--out", "out", "--bounds", "0,1", "--steps", "2")
    assert run(monkeypatch, "train", "bundle", "--method", method, *common) == 0
    assert hashes(place / "bundle") == before
    file = place / "out" / "model.pt"
    assert capsys.readouterr().out.strip().endswith(str(file))
    assert (
        run(monkeypatch, "evaluate", "bundle", "--weights", str(file), "--dataset_dir", "data", "--attacks", "PGD") == 0
    )


def test_an_interrupted_training_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with training(place, out=place / "whole", epochs=4) as whole:
        expected = weights(whole.run())
    with training(place, epochs=4) as first:

        def stop(engine: Any) -> None:
            raise KeyboardInterrupt("planted")

        first.trainer.add_event_handler(Events.ITERATION_STARTED(once=8), stop)
        with pytest.raises(KeyboardInterrupt, match="planted"):
            first.run()
    assert not (place / "out" / "model.pt").exists()
    with pytest.raises(FileExistsError, match="out: .* holds a training"):
        training(place, epochs=4)
    with training(place, epochs=4, resume=True) as again:
        found = weights(again.run())
    assert equal(found, expected)


def test_one_of_ours_by_its_own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a method: adversarial_train.json, to the bit of MONAI's command with it."""
    (row,) = (row for row in ROWS if row.name == "hippocampus_mri_segmentation")
    row.data(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    own_scripts(monkeypatch, row)
    before = hashes(row.root / "configs")
    options = {**row.small, "epochs": 1}
    torch.manual_seed(5)
    start = ConfigParser(row.config("train.json")).get_parsed_content("network_def").state_dict()
    torch.save(start, tmp_path / "start.pt")
    place = {
        "dataset_dir": str(tmp_path / "data"),
        "ckpt_dir": str(tmp_path / "monai"),
        "output_dir": str(tmp_path / "eval"),
    }
    more = {"initial_weights": str(tmp_path / "start.pt")}
    finished(workflow(row, "train.json", "adversarial_train.json", **place, **options, **more))
    with AdversarialTraining(
        row.root, None, out=tmp_path / "out", dataset_dir=tmp_path / "data", overrides={**options, **more}
    ) as ours:
        found = weights(ours.run())
    assert equal(found, weights(tmp_path / "monai" / "model_robust.pt"))
    assert hashes(row.root / "configs") == before


BAD = {
    "method": (["--method", "pdg", "--eps", EPS], "method: expected one of pgd"),
    "none of its own": (["--eps", EPS], "method: expected one of"),
    "no eps": (["--method", "pgd"], "eps: expected one budget"),
    "no unit": (["--method", "pgd", "--eps", "5"], "eps: expected a unit"),
    "unknown id": (["--method", "pgd", "--eps", EPS, "--step", "5"], "step: "),
    "nothing to resume": (["--method", "pgd", "--eps", EPS, "--resume"], "resume: expected checkpoints"),
}


@pytest.mark.parametrize(("arguments", "says"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_one_line(
    place: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "train", "bundle", "--dataset_dir", "data", *arguments) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("monai-smia: ")]
    assert len(said) == 1
    assert says in said[0]
