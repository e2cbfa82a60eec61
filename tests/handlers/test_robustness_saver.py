"""`RobustnessSaver`: what is in the files, where they go, and the handlers beside it."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
import torch
from evaluators import Task, metrics_of
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from monai.handlers import (
    CheckpointSaver,
    MetricsSaver,
    MLFlowHandler,
    StatsHandler,
    TensorBoardStatsHandler,
    ValidationHandler,
    mlflow_handler,
)

import monai_smia.handlers.robustness_saver as module
from monai_smia.attacks import PGD
from monai_smia.engines import AttackEvaluator
from monai_smia.handlers.robustness_saver import FILES, RobustnessSaver
from monai_smia.intensity import IntensityScale
from monai_smia.reports.summary import summarize

NAMES = [f"{prefix}{name}" for prefix in ("", "bim_", "pgd_") for name in ("val_dice", "val_dice_all")]


def evaluator_with(*handlers: Any, task: Task | None = None, **arguments: Any) -> AttackEvaluator:
    task = task or Task()
    return task.evaluator(
        AttackEvaluator,
        **{"attacks": task.attacks(), "progress": False, "val_handlers": list(handlers), **arguments},
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("rank", [2, 3])
def test_rows_are_what_a_loop_by_hand_gives(tmp_path: Path, rank: int) -> None:
    """Clean and adversarial Dice of each case, size in HU, success and passes, from nothing but calls of the attack."""
    task, scale = Task(rank), IntensityScale(-1000, 400, clip=True)
    evaluator = evaluator_with(RobustnessSaver(tmp_path), task=task, intensity=scale)
    evaluator.run()
    rows = rows_of(tmp_path / "epoch_0001" / "pairs.csv")
    network, attack = task.network().eval(), task.attacks()["bim"]
    result = attack(network, task.images(), task.labels())
    for i, row in enumerate(rows[:3]):
        assert (row["attack"], row["case"], row["patient"], row["unit"]) == ("bim", *[f"case_{i}.nii.gz"] * 2, "HU")
        for prefix, image in (("clean_", task.images()[i]), ("", result.adversarial[i])):
            with torch.no_grad():
                hard = network(image[None]).argmax(1)
            assert float(row[prefix + "val_dice"]) == pytest.approx(_dice(hard[0], task.labels()[i, 0]), rel=1e-5)
        assert float(row["drop_val_dice"]) == float(row["clean_val_dice"]) - float(row["val_dice"])
        change = 1400 * (result.adversarial[i] - task.images()[i]).abs().max()
        assert float(row["largest_change"]) == pytest.approx(float(change), rel=1e-5)
        assert row["success"] == str(bool(result.success[i]))
        assert (int(row["forward_passes"]), int(row["backward_passes"])) == (
            int(result.forward_passes[i]),
            int(result.backward_passes[i]),
        )
    assert [row["attack"] for row in rows] == ["bim"] * 3 + ["pgd"] * 3


def _dice(hard: torch.Tensor, label: torch.Tensor) -> float:
    scores = []
    for k in (1, 2):
        p, y = hard == k, label == k
        if y.any():
            scores.append(float(2 * (p & y).sum() / (p.sum() + y.sum())))
    return float(np.mean(scores))


def test_the_files_agree_with_the_report_and_with_each_other(tmp_path: Path) -> None:
    evaluator = evaluator_with(RobustnessSaver(tmp_path, quantiles=(0.25,), level=0.8, resamples=50, seed=3))
    evaluator.run()
    folder, report = tmp_path / "epoch_0001", evaluator.report()
    assert sorted(os.listdir(folder)) == list(FILES)
    assert (folder / "cases.csv").read_text() == report.to_csv()
    assert json.loads((folder / "robustness.json").read_text()) == json.loads(report.to_json())
    expected = summarize(report, quantiles=(0.25,), level=0.8, resamples=50, seed=3)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "summary.csv"), expected, check_dtype=False)
    for name in ("pairs", "summary"):
        content = json.loads((folder / f"{name}.json").read_text())
        assert content["unit"] == "network units"
        assert content["attacks"] == {name: repr(attack) for name, attack in Task().attacks().items()}
        frame = pd.read_csv(folder / f"{name}.csv")
        pd.testing.assert_frame_equal(pd.DataFrame(content[name]), frame, check_dtype=False, rtol=1e-12)
    content = json.loads((folder / "summary.json").read_text())
    assert (content["level"], content["resamples"], content["seed"]) == (0.8, 50, 3)
    row = next(row for row in content["summary"] if (row["run"], row["column"]) == ("pgd", "val_dice"))
    assert row["mean"] == pytest.approx(evaluator.state.metrics["pgd_val_dice"], rel=1e-6)


def test_what_is_not_finite_is_null_in_json(tmp_path: Path) -> None:
    evaluator = evaluator_with(RobustnessSaver(tmp_path), task=Task(cases=1))
    evaluator.run()

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    for path in (tmp_path / "epoch_0001").glob("*.json"):
        json.loads(path.read_text(), parse_constant=refuse)
    summary = json.loads((tmp_path / "epoch_0001" / "summary.json").read_text())["summary"]
    assert all(row["std"] is None and row["low"] is None for row in summary)  # one case has no spread


class Keyed(Task):
    """Two patients; the key is in the batch, or in the image's metadata."""

    def items(self) -> list[dict[str, Any]]:
        items = super().items()
        for item, patient in zip(items, (11, 12, 11), strict=True):
            item["patient"] = patient
            item["image"] = MetaTensor(
                item["image"].as_tensor(), meta={**item["image"].meta, "PatientID": f"P{patient}"}
            )
        return items


@pytest.mark.parametrize("decollate", [True, False])
@pytest.mark.parametrize(
    ("patient_of", "expected"),
    [
        ("patient", ["11", "12", "11"]),
        ("PatientID", ["P11", "P12", "P11"]),
        (lambda case: "even" if case in ("case_0.nii.gz", "case_2.nii.gz") else "odd", ["even", "odd", "even"]),
    ],
    ids=["batch", "metadata", "callable"],
)
def test_patients(tmp_path: Path, patient_of: Any, expected: list[str], decollate: bool) -> None:
    evaluator = evaluator_with(
        RobustnessSaver(tmp_path, patient_of=patient_of),
        task=Keyed(dense=False),
        decollate=decollate,
        postprocessing=None,
        additional_metrics=None,
    )
    for epoch in (1, 2):  # nothing is left of the first run in the second
        evaluator.run(epoch)
        rows = rows_of(tmp_path / f"epoch_000{epoch}" / "pairs.csv")
        assert [row["patient"] for row in rows] == expected * 2
        summary = rows_of(tmp_path / f"epoch_000{epoch}" / "summary.csv")
        assert {row["patients"] for row in summary} == {"2"}


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patient_of: expected the key 'patient' in the batch or in the metadata of"):
        evaluator_with(RobustnessSaver(tmp_path, patient_of="patient")).run()
    assert list(tmp_path.iterdir()) == []


def test_an_epoch_has_a_folder_and_a_second_evaluation_in_it_another(tmp_path: Path) -> None:
    evaluator = evaluator_with(RobustnessSaver(tmp_path))
    for epoch in (1, 5, 5, 5, 12):
        evaluator.run(epoch)
    names = ["epoch_0001", "epoch_0005", "epoch_0005_2", "epoch_0005_3", "epoch_0012"]
    assert sorted(os.listdir(tmp_path)) == names
    assert all(sorted(os.listdir(tmp_path / name)) == list(FILES) for name in names)


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_overwritten_and_that_is_known_before_any_pass(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "epoch_0001"
    folder.mkdir()
    (folder / name).write_text("old")
    evaluator = evaluator_with(RobustnessSaver(tmp_path))
    iterations: list[int] = []
    evaluator.add_event_handler(Events.ITERATION_STARTED, lambda: iterations.append(1))
    with pytest.raises(FileExistsError, match=f"folder: .*{name} exists; expected a new folder, by_epoch=True or"):
        evaluator.run()
    assert iterations == []
    assert os.listdir(folder) == [name]
    assert (folder / name).read_text() == "old"


def test_one_folder_for_one_evaluation_unless_told(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_text("another's")
    evaluator = evaluator_with(RobustnessSaver(tmp_path, by_epoch=False))
    evaluator.run()
    first = (tmp_path / "pairs.csv").read_text()
    with pytest.raises(FileExistsError, match="folder: "):
        evaluator.run(2)
    (tmp_path / "pairs.csv").write_text("old")
    evaluator_with(RobustnessSaver(tmp_path, by_epoch=False, overwrite=True)).run()
    assert (tmp_path / "pairs.csv").read_text() == first
    assert sorted(os.listdir(tmp_path)) == sorted([*FILES, "picture.png"])


class Stop(Exception):
    pass


@pytest.mark.parametrize("how", ["raise", "terminate"])
def test_an_evaluation_that_did_not_end_writes_nothing(tmp_path: Path, how: str) -> None:
    evaluator = evaluator_with(RobustnessSaver(tmp_path), dataflow := Interruption(how))
    if how == "raise":
        with pytest.raises(Stop, match="planted"):
            evaluator.run()
    else:
        evaluator.run()
    assert list(tmp_path.iterdir()) == []
    dataflow.how = None
    evaluator.run()
    assert os.listdir(tmp_path) == ["epoch_0001"]


class Interruption:
    """Ends the first evaluation after its first batch."""

    def __init__(self, how: str | None) -> None:
        self.how = how

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self)

    def __call__(self, engine: Any) -> None:
        if self.how == "raise":
            raise Stop("planted")
        if self.how == "terminate":
            engine.terminate()


class Writer:
    """A TensorBoard writer that remembers."""

    def __init__(self) -> None:
        self.scalars: dict[str, float] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name] = value

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_beside_monais_handlers_in_any_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    task, writer, lines = Task(), Writer(), []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.getLogger(f"robustness_saver_{order}")
    logger.setLevel(logging.INFO)
    logger.addHandler(Lines())
    network = task.network()
    groups: list[list[Any]] = [
        [RobustnessSaver(tmp_path / "ours")],
        [
            MetricsSaver(
                str(tmp_path / "monai"),
                metric_details="*",
                summary_ops="*",
                batch_transform=lambda batch: [item["image"].meta for item in batch],
            ),
            StatsHandler(name=logger.name, output_transform=lambda output: None),
        ],
        [
            TensorBoardStatsHandler(summary_writer=writer, output_transform=lambda output: None),
            CheckpointSaver(
                str(tmp_path / "models"), {"net": network}, save_key_metric=True, key_metric_name="pgd_val_dice"
            ),
        ],
    ]
    evaluator = evaluator_with(*itertools.chain(*(groups[i] for i in order)), task=task, network=network)
    metrics = metrics_of(evaluator)
    assert metrics == metrics_of(evaluator_with(task=task))  # nothing changes for the handlers beside it
    assert {name: writer.scalars[name] for name in NAMES} == {name: metrics[name] for name in NAMES}
    assert all(f" {name}: {metrics[name]:.4f} " in " ".join(lines) for name in NAMES)
    saved = dict(line.split(",") for line in (tmp_path / "monai" / "metrics.csv").read_text().splitlines())
    assert {name: float(saved[name]) for name in NAMES} == metrics
    assert os.listdir(tmp_path / "models") == [f"net_key_metric={metrics['pgd_val_dice']:.4f}.pt"]
    pairs = [row for row in rows_of(tmp_path / "ours" / "epoch_0001" / "pairs.csv") if row["attack"] == "pgd"]
    raw = rows_of(tmp_path / "monai" / "pgd_val_dice_raw.csv")
    assert [float(row["val_dice"]) for row in pairs] == pytest.approx([float(row["mean"]) for row in raw], abs=1e-4)
    assert [row["case"] for row in pairs] == [Path(row["filename"]).name for row in raw]


class Threshold(torch.nn.Module):
    """Class 1 where the image is over a threshold, class 0 elsewhere, class 2 nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.level - image, image - self.level, image.detach() * 0 - 9), 1)


def test_a_training_chooses_its_checkpoint_by_the_adversarial_metric(tmp_path: Path) -> None:
    """Background 0.3, structure 0.7 and a little of it 0.45; attacks move every voxel by up to 0.15.

    A threshold of 0.4 is perfect on clean images and loses everything but 0.7 under attack, 0.5 misses the 0.45 and
    keeps what it has. So the best clean epoch is the second, the best robust one the third.
    """
    levels, task, network = [0.8, 0.4, 0.5, 0.1], Task(), Threshold()
    image = torch.full((3, 1, 8, 8), 0.3)
    image[..., :4], image[..., :1, 4] = 0.7, 0.45
    label = (image > 0.4).long()
    validator = evaluator_with(
        CheckpointSaver(
            str(tmp_path / "models"), {"net": network}, save_key_metric=True, key_metric_name="pgd_val_dice"
        ),
        RobustnessSaver(tmp_path / "robustness"),
        network=network,
        val_data_loader=[{"image": image, "label": label}],
        attacks={"pgd": PGD(task.loss(), eps=0.15, steps=3, bounds=(0, 1), random_start=True)},
    )
    history: list[dict[str, float]] = []
    validator.add_event_handler(Events.COMPLETED, lambda: history.append(dict(validator.state.metrics)))

    def update(engine: Any, batch: Any) -> dict[str, Any]:
        network.level.data.fill_(levels[engine.state.epoch - 1])
        return {"loss": 0.0}

    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=4,
        train_data_loader=[{"image": image, "label": label}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=task.loss(),
        iteration_update=update,
        decollate=False,
        train_handlers=[ValidationHandler(1, validator)],
    ).run()
    assert [round(values["val_dice"], 4) for values in history[:3]] == [0.0, 1.0, round(64 / 65, 4)]
    assert history[2]["pgd_val_dice"] == pytest.approx(64 / 65)
    assert max(values["pgd_val_dice"] for values in (history[0], history[1], history[3])) < 0.7
    (checkpoint,) = (tmp_path / "models").iterdir()
    assert checkpoint.name == f"net_key_metric={64 / 65:.4f}.pt"
    assert torch.load(checkpoint)["level"].item() == 0.5
    folders = sorted((tmp_path / "robustness").iterdir())
    assert [folder.name for folder in folders] == [f"epoch_{i:04d}" for i in range(1, 5)]
    for folder, values in zip(folders, history, strict=True):
        runs = {row["attack"]: float(row["val_dice"]) for row in rows_of(folder / "robustness.csv")}
        assert runs == pytest.approx({"clean": values["val_dice"], "pgd": values["pgd_val_dice"]})


def test_several_validations_in_an_epoch_of_training(tmp_path: Path) -> None:
    task = Task(dense=False)
    network = task.network()
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=DataLoader(Dataset(task.items()), batch_size=1),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.01),
        loss_function=task.loss(),
        train_handlers=[
            ValidationHandler(
                2, evaluator_with(RobustnessSaver(tmp_path), task=task, network=network), epoch_level=False
            )
        ],
    )
    trainer.run()
    assert sorted(os.listdir(tmp_path)) == ["epoch_0001", "epoch_0002", "epoch_0002_2"]


def test_mlflow_logs_the_adversarial_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for MLflow itself, which is not among the dependencies."""
    mlflow = MagicMock()
    mlflow.entities.Metric = lambda key, value, timestamp, step: (key, value)
    client = mlflow.MlflowClient.return_value
    client.get_experiment_by_name.return_value.lifecycle_stage = mlflow.entities.LifecycleStage.ACTIVE
    client.search_runs.return_value = []
    monkeypatch.setattr(mlflow_handler, "mlflow", mlflow)
    tracker = MLFlowHandler(tracking_uri="http://nowhere", iteration_log=False)
    metrics = metrics_of(evaluator_with(tracker, RobustnessSaver(tmp_path)))
    logged = dict(pair for call in client.log_batch.call_args_list for pair in call.kwargs["metrics"])
    assert logged == {name: metrics[name] for name in NAMES}
    assert os.listdir(tmp_path) == ["epoch_0001"]


def test_built_from_json(tmp_path: Path) -> None:
    config = {
        "_target_": "monai_smia.handlers.robustness_saver.RobustnessSaver",
        "folder": str(tmp_path),
        "patient_of": "$lambda case: case[:4]",
        "by_epoch": False,
        "resamples": 10,
    }
    saver = ConfigParser({"saver": config}).get_parsed_content("saver", instantiate=True)
    evaluator_with(saver).run()
    assert {row["patient"] for row in rows_of(tmp_path / "pairs.csv")} == {"case"}


def test_attached_twice_it_writes_once(tmp_path: Path) -> None:
    saver = RobustnessSaver(tmp_path)
    evaluator = evaluator_with(saver, saver)
    saver.attach(evaluator)
    evaluator.run()
    assert os.listdir(tmp_path) == ["epoch_0001"]


def test_bad_arguments_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="patient_of: expected a callable of the case's name, a key, or None; got int"):
        RobustnessSaver(tmp_path, patient_of=3)
    for arguments in ({"level": 95}, {"resamples": 0}, {"quantiles": (5,)}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))}: expected"):
            RobustnessSaver(tmp_path, **arguments)
    with pytest.raises(TypeError, match="engine: expected an AttackEvaluator, .*; got SupervisedEvaluator"):
        Task().evaluator(val_handlers=[RobustnessSaver(tmp_path)])


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = evaluator_with(RobustnessSaver(tmp_path))
    monkeypatch.setattr(module, "idist", SimpleNamespace(get_world_size=lambda: 2))
    with pytest.raises(RuntimeError, match="RobustnessSaver: expected one process, which sees all cases; got 2"):
        evaluator.run()
    assert list(tmp_path.iterdir()) == []
