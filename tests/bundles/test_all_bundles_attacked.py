"""Every bundle under attack, and trained under attack, on tiny data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_rows import ROWS, Row
from bundle_runs import Trained, finished
from ignite.engine import Events

from monai_smia.attacks import Attack
from monai_smia.bundle.command_evaluate import evaluate
from monai_smia.reports import RobustnessReport

KINDS = ("FGSM", "SMIA")
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def test_a_report_of_clean_and_attacked_metrics(trained: Trained, tmp_path: Path) -> None:
    unit, width = trained.row.unit, trained.row.width
    clean = trained.run("train.json", "evaluate.json", output_dir=str(tmp_path / "clean"))
    clean = clean.get_parsed_content("validate#evaluator").state.metrics
    config = trained.row.config_file("attack.json")
    (budgets,) = [key for key in config if key.startswith("eps_")]
    options: dict[str, Any] = {"attack_names": list(KINDS), "steps": 2, budgets: [2]}
    if "+validate#handlers" in config:
        options["validate#handlers#3#max_cases"] = 1
    parser = trained.run("train.json", "evaluate.json", "attack.json", output_dir=str(tmp_path), **options)

    attacks: dict[str, Attack] = parser.get_parsed_content("attacks")
    names = [f"{kind}_2{unit}" for kind in KINDS]
    assert list(attacks) == names
    assert all(attack.eps == pytest.approx(2 / width) and attack.bounds == (0, 1) for attack in attacks.values())
    assert attacks[names[1]].steps == 2

    found = parser.get_parsed_content("validate#evaluator").state.metrics
    assert {name: found[name] for name in clean} == pytest.approx(clean, abs=1e-6)
    assert found.keys() == {*clean, *(f"{attack}_{name}" for attack in names for name in clean)}

    folder = tmp_path / "robustness"
    assert all((folder / name).is_file() for name in ("robustness.md", "robustness.csv", "cases.csv"))
    report = json.loads((folder / "robustness.json").read_text())
    assert report["unit"] == unit
    assert report["metrics"]["clean"] == pytest.approx(clean, abs=1e-6)
    for attack in names:
        assert report["metrics"][attack] == pytest.approx({name: found[f"{attack}_{name}"] for name in clean})
    cases = [case for case in report["cases"] if case["attack"] in names]
    assert len(cases) == 2 * 3
    options = {key: value for key, value in options.items() if not key.startswith("validate#")}
    same_by_command(trained, tmp_path, options, RobustnessReport.load(folder))
    assert all(0 < case["largest_change"] <= 2 * (1 + 1e-5) for case in cases)
    assert all(case["loss"] >= case["clean_loss"] - 1e-6 for case in cases)


def same_by_command(trained: Trained, folder: Path, options: dict[str, Any], expected: RobustnessReport) -> None:
    """`monai-smia evaluate` gives the numbers of the bundle's own attack.json, and writes nothing into the bundle."""
    before = {path: path.stat().st_mtime_ns for path in trained.row.root.rglob("*") if "__pycache__" not in path.parts}
    where = {"dataset_dir": str(trained.data), "ckpt_dir": str(trained.models), "out": str(folder / "command")}
    assert evaluate(str(trained.row.root), **where, **trained.row.small, **options) == 0
    found = RobustnessReport.load(folder / "command")
    assert found.metrics == {run: pytest.approx(values, abs=1e-6) for run, values in expected.metrics.items()}
    assert len(found.cases) == len(expected.cases)
    for one, other in zip(found.cases, expected.cases, strict=True):
        assert one == pytest.approx(other, abs=1e-6, nan_ok=True) if "loss" not in one else one.keys() == other.keys()
    if trained.row.unit != "percent":  # what attack.json calls so is stored intensity to the command
        named = {name: value for name, value in options.items() if not name.startswith(("attack_", "eps_"))}
        named |= {"attacks": KINDS, "eps": f"2{trained.row.unit}", "out": str(folder / "named")}
        assert evaluate(str(trained.row.root), **{**where, **trained.row.small, **named}) == 0
        found = RobustnessReport.load(folder / "named")
        assert found.metrics == {run: pytest.approx(values, abs=1e-6) for run, values in expected.metrics.items()}
    after = {path: path.stat().st_mtime_ns for path in trained.row.root.rglob("*") if "__pycache__" not in path.parts}
    assert after == before
    assert (folder / "command" / "report.html").stat().st_size < 15_000_000


@rows
def test_adversarial_training_is_training_with_one_handler_more(row: Row) -> None:
    plain, overlay = row.config("train.json"), row.config_file("adversarial_train.json")
    merged = row.config("train.json", "adversarial_train.json")
    assert plain["model_file"] == "model.pt"
    assert merged["model_file"] == "model_robust.pt"
    new = {key for key in overlay if not key.startswith("+")} - {"model_file"}
    assert not new & plain.keys()
    assert merged.keys() == plain.keys() | new
    assert merged["imports"][: len(plain["imports"])] == plain["imports"]
    handlers = merged["train"].pop("handlers")
    assert handlers[:-1] == plain["train"].pop("handlers")
    assert handlers[-1]["_target_"] == "monai_smia.handlers.AttackHandler"
    for key in plain.keys() - {"model_file", "imports"}:
        assert merged[key] == plain[key], key


def test_adversarial_training_stays_inside_its_budget(trained: Trained, tmp_path: Path) -> None:
    """What the network is trained on differs from what the loader gives, by eps at most; model.pt stays."""
    row = trained.row
    (tmp_path / "model.pt").write_bytes(b"of the plain training")
    flow = trained.workflow("train.json", "adversarial_train.json", ckpt_dir=str(tmp_path), epochs=1)
    trainer = flow.parser.get_parsed_content("train#trainer")
    given: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if module.training:
            seen.append(inputs[0].detach().clone())

    trainer.add_event_handler(
        Events.GET_BATCH_COMPLETED, lambda engine: given.append(engine.state.batch["image"].clone())
    )
    trainer.add_event_handler(Events.STARTED, lambda engine: engine.network.register_forward_pre_hook(keep))
    finished(flow)
    (size,) = [
        value for key, value in row.config_file("adversarial_train.json").items() if key.startswith("train_eps_")
    ]
    eps = size / row.width
    assert len(given) == len(seen) == 2
    (handler,) = [
        item
        for name, items in row.config_file("adversarial_train.json").items()
        if name.endswith("handlers")
        for item in items
        if item["_target_"].endswith("AttackHandler")
    ]
    largest = [float((adversarial - clean).abs().max()) for clean, adversarial in zip(given, seen, strict=True)]
    assert 0.5 * eps < max(largest)
    assert max(largest) <= eps + 1e-6
    if handler.get("probability", 1.0) == 1.0:  # else some images stay clean
        assert min(largest) > 0.5 * eps
    for adversarial in seen:
        assert 0 <= float(adversarial.min()) <= float(adversarial.max()) <= 1
    assert (tmp_path / "model.pt").read_bytes() == b"of the plain training"
    state = torch.load(tmp_path / "model_robust.pt", weights_only=True)
    assert state.keys() == trained.start.keys()
    assert all(torch.isfinite(value).all() for value in state.values())
