"""The bundles' multi-GPU configs: two processes with gloo on CPU, for a bundle of each task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bundle_runs
import known_networks
import pytest
import torch
from bundle_rows import ROWS, Row
from monai.bundle import ConfigParser, ReferenceResolver
from PIL import Image

TESTS = Path(__file__).parents[1]
LIMIT = 500.0  # seconds; about 35 are needed
CASES = 3  # of the test split: one process has two of them, the other one
TOGETHER = [
    row
    for row in ROWS
    if row.name in ("endoscopy_detection", "fundus_dr_classification", "hippocampus_mri_segmentation")
]
every = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
some = pytest.mark.parametrize("row", TOGETHER, ids=lambda row: row.name)


def arguments(row: Row, folder: Path, *names: str, **override: Any) -> dict[str, Any]:
    """What one run of a bundle is given."""
    configs = row.root / "configs"
    return {
        **row.small,
        "config_file": [str(configs / name) for name in names],
        "meta_file": str(configs / "metadata.json"),
        "logging_file": str(configs / "logging.conf"),
        "bundle_root": str(row.root),
        "dataset_dir": str(folder / row.name / "data"),
        "ckpt_dir": str(folder / row.name / "models"),
        "output_dir": str(folder / row.name / "eval"),
        "epochs": 2,
        "save_every": 1,
        **override,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes write when they train and evaluate, one bundle after the other."""
    folder = tmp_path_factory.mktemp("gloo")
    jobs = []
    for row in TOGETHER:
        row.data(folder / row.name / "data")
        jobs.append(arguments(row, folder, "train.json", "multi_gpu_train.json"))
        evaluation = ("train.json", "evaluate.json", "multi_gpu_evaluate.json")
        jobs.append(arguments(row, folder, *evaluation, **evaluated(row, folder)))
    adversarial = ("train.json", "adversarial_train.json", "multi_gpu_train.json")
    jobs.append(arguments(TOGETHER[0], folder, *adversarial, epochs=1))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    launch(folder)
    return folder


def evaluated(row: Row, folder: Path) -> dict[str, Any]:
    """What is evaluated: the weights just trained; a detector finds nothing with these, so the one that is known."""
    if row.name != "endoscopy_detection":
        return {"batch_size": 1}
    with Image.open(folder / row.name / "data" / "images" / "test1.png") as frame:
        frame.point(lambda grey: 0).save(frame.filename)
    (folder / "known").mkdir(exist_ok=True)
    torch.save(known_networks.Known.weights(), folder / "known" / "model.pt")
    return {"batch_size": 1, "network_def": row.known, "ckpt_dir": str(folder / "known")}


def launch(folder: Path) -> None:
    """Run the jobs, and stop what does not end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(TESTS / "bundle_process.py"), str(folder / "jobs.json")]
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                process.terminate()  # which stops the two processes; they are in sessions of their own
                process.wait()
    lines = [line for line in (folder / "log").read_text().splitlines() if "GHSA" not in line]
    end = "\n".join(lines[-80:])
    assert code == 0, f"expected an end with 0 within {LIMIT:g} s, got {code}:\n{end}"


@some
def test_two_processes_write_one_model(row: Row, folder: Path) -> None:
    written = {path.name for path in (folder / row.name / "models").iterdir()}
    plain = {name for name in written if not name.startswith("model_robust")}
    assert plain == {"model.pt", "model_checkpoint_epoch=1.pt", "model_checkpoint_epoch=2.pt"}  # the last two are kept
    state = torch.load(folder / row.name / "models" / "model.pt", weights_only=True)
    assert not any(name.startswith("module.") for name in state)
    assert all(torch.isfinite(value).all() for value in state.values())


@some
def test_their_metrics_are_those_of_one_process(
    row: Row, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (folder / row.name / "eval" / "metrics.csv").read_text().splitlines()
    assert len(lines) == len(row.metrics)
    found = {name: float(value) for name, value in (line.split(",") for line in lines)}
    bundle_runs.own_scripts(monkeypatch, row)
    one = {**arguments(row, folder), **evaluated(row, folder), "output_dir": str(tmp_path)}
    for key in ("config_file", "meta_file", "logging_file", "bundle_root", "epochs"):
        del one[key]
    parser = bundle_runs.finished(bundle_runs.workflow(row, "train.json", "evaluate.json", **one))
    evaluator = parser.get_parsed_content("validate#evaluator")
    assert len(evaluator.data_loader) == CASES
    assert found == pytest.approx(evaluator.state.metrics, abs=1e-4)
    if row.name == "endoscopy_detection":  # 3 of 4 squares, the other one in a frame that is black
        assert found == pytest.approx({"val_ap50": 76 / 101, "val_ap30": 76 / 101}, abs=1e-4)


def test_they_train_under_attack(folder: Path) -> None:
    models = folder / TOGETHER[0].name / "models"
    state = torch.load(models / "model_robust.pt", weights_only=True)
    assert state.keys() == torch.load(models / "model.pt", weights_only=True).keys()
    assert all(torch.isfinite(value).all() for value in state.values())


@every
def test_what_the_configs_refer_to_is_there(row: Row) -> None:
    for names in (
        ("train.json", "multi_gpu_train.json"),
        ("train.json", "adversarial_train.json", "multi_gpu_train.json"),
        ("train.json", "evaluate.json", "multi_gpu_evaluate.json"),
    ):
        parser = ConfigParser(row.config(*names))
        parser.parse()
        items = parser.ref_resolver.items
        assert "DistributedDataParallel" in items["network"].get_config()["_target_"]
        for name, item in items.items():
            assert set(ReferenceResolver.find_refs_in_config(item.get_config(), id=name)) <= items.keys(), name


@every
def test_one_process_speaks_and_saves(row: Row) -> None:
    """Overlays change how the processes share the work: nothing of network, loss, optimizer, schedule or transforms."""
    plain = row.config("train.json")
    merged = row.config("train.json", "multi_gpu_train.json")
    for key in ("network_def", "loss", "optimizer", "lr_scheduler", "epochs", "batch_size", "seed"):
        assert merged.get(key) == plain.get(key), key
    for part in ("train", "validate"):
        changed = {key for key in merged[part] if merged[part][key] != plain[part].get(key)}
        allowed = {"sampler", "dataloader", "dataset", "trainer", "evaluator", "additional_metrics"}
        assert changed <= allowed, changed
    assert "get_rank() == 0" in merged["train"]["trainer"]["train_handlers"]
    assert merged["train"]["dataloader"]["sampler"] == "@train#sampler"
    assert not merged["train"]["dataloader"].get("shuffle", False)  # the sampler shuffles
