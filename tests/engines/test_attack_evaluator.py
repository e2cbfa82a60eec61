"""`AttackEvaluator`: what handlers see, what it refuses, and what an attack that fails leaves behind."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import contract
import networks
import pytest
import torch
from evaluators import BOUNDS, EPS, Task, counted, metrics_of, seen
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import FolderLayoutBase
from monai.handlers import CheckpointSaver, MetricsSaver, StatsHandler, TensorBoardStatsHandler
from monai.transforms import Compose, SaveImage, SaveImaged
from tqdm.auto import tqdm

from monai_smia.attacks import BIM
from monai_smia.engines import AttackEvaluator, evaluate_robustness
from monai_smia.engines.guards import image_savers
from monai_smia.handlers import AttackEvents


def one_pass(task: Task, **arguments: Any) -> AttackEvaluator:
    return task.evaluator(AttackEvaluator, **{"attacks": task.attacks(), "progress": False, **arguments})


NAMES = [f"{prefix}{name}" for prefix in ("", "bim_", "pgd_") for name in ("val_dice", "val_dice_all")]


def test_the_key_metric_stays_clean() -> None:
    task = Task()
    evaluator = one_pass(task)
    metrics = metrics_of(evaluator)
    clean = metrics_of(task.evaluator())
    assert sorted(metrics) == sorted(NAMES)
    assert {name: metrics[name] for name in clean} == clean
    assert evaluator.state.key_metric_name == "val_dice"
    assert evaluator.state.best_metric == clean["val_dice"]
    assert metrics["bim_val_dice"] < clean["val_dice"]


class Writer:
    """A TensorBoard writer that remembers."""

    def __init__(self) -> None:
        self.scalars: dict[str, float] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name] = value

    def flush(self) -> None:
        pass


def test_monais_handlers_see_every_metric(tmp_path: Path) -> None:
    task, writer, lines = Task(), Writer(), []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.getLogger("test_monais_handlers_see_every_metric")
    logger.setLevel(logging.INFO)
    logger.addHandler(Lines())
    saver = MetricsSaver(
        str(tmp_path),
        metrics="*",
        metric_details="*",
        summary_ops="mean",
        batch_transform=lambda batch: [item["image"].meta for item in batch],
    )
    handlers = [
        StatsHandler(name=logger.name, output_transform=lambda output: None),
        TensorBoardStatsHandler(summary_writer=writer, output_transform=lambda output: None),
        saver,
    ]
    metrics = metrics_of(one_pass(task, val_handlers=handlers))
    assert {name: writer.scalars[name] for name in NAMES} == {name: metrics[name] for name in NAMES}
    text = " ".join(lines)
    assert all(f" {name}: {metrics[name]:.4f} " in text for name in NAMES)
    saved = dict(line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines())
    assert {name: float(saved[name]) for name in NAMES} == metrics
    for name in NAMES:
        with open(tmp_path / f"{name}_raw.csv") as file:
            rows = list(csv.reader(file))[1:]
        assert [Path(row[0]).name for row in rows] == [f"case_{i}.nii.gz" for i in range(3)]
        assert sum(float(row[-1]) for row in rows) / 3 == pytest.approx(metrics[name], rel=1e-6)


def test_handlers_of_the_evaluator_see_the_clean_iteration() -> None:
    task = Task()
    evaluator = one_pass(task)
    batches = seen(evaluator, Events.ITERATION_COMPLETED, lambda e: set(e.state.batch[0]))
    names = seen(evaluator, AttackEvents.ATTACK_COMPLETED, lambda e: e.state.attack_name)
    pairs = seen(
        evaluator, AttackEvents.ATTACK_COMPLETED, lambda e: (e.state.batch, e.state.output, e.state.clean_output)
    )
    evaluator.run()
    assert batches == [{"image", "label"}] * 2
    assert names == ["bim", "pgd"] * 2
    network = task.network().eval()
    for batch, output, clean in pairs:
        for item, adversarial, before in zip(batch, output, clean, strict=True):
            with torch.no_grad():
                hard = [network(item[key].as_tensor()[None]).argmax(1) for key in ("image", "image_clean")]
            assert torch.equal(adversarial["pred"].argmax(0)[None], hard[0])
            assert torch.equal(before["pred"].argmax(0)[None], hard[1])


@pytest.mark.parametrize(
    "postprocessing",
    [SaveImaged("pred"), SaveImage(), Compose([SaveImaged("pred")]), Compose([Compose([SaveImaged("pred")])])],
    ids=["dictionary", "array", "composed", "nested"],
)
def test_postprocessing_that_saves_where_nobody_knows_is_refused(postprocessing: Any) -> None:
    for saver in image_savers(postprocessing):
        saver.folder_layout = OwnLayout()
    with pytest.raises(ValueError, match="postprocessing: SaveImage with a OwnLayout would write adversarial"):
        one_pass(Task(), postprocessing=postprocessing)


class OwnLayout(FolderLayoutBase):
    def filename(self, **kwargs: Any) -> str:
        return "always_the_same.nii.gz"


def attack() -> BIM:
    return BIM(torch.nn.CrossEntropyLoss(), eps=EPS, bounds=BOUNDS)


@pytest.mark.parametrize(
    ("attacks", "error", "message"),
    [
        ({"clean": attack()}, ValueError, "attacks: 'clean' names the run without an attack"),
        ({}, ValueError, "attacks: expected at least one"),
        ([], ValueError, "attacks: expected at least one"),
        (attack(), ValueError, "attacks: expected at least one"),
        (
            {"bim": attack(), "net": torch.nn.Identity()},
            TypeError,
            "attacks: expected an Attack under 'net'; got Identity",
        ),
    ],
)
def test_wrong_attacks_are_refused_by_both(attacks: Any, error: type[Exception], message: str) -> None:
    task = Task(2, dense=False)
    with pytest.raises(error, match=message):
        one_pass(task, attacks=attacks)
    with pytest.raises(error, match=message):
        evaluate_robustness(task.evaluator(), attacks, progress=False)


def test_a_sequence_is_named_by_class() -> None:
    task = Task(2, dense=False)
    evaluator = one_pass(task, attacks=[attack(), task.attacks()["pgd"], attack()])
    assert list(evaluator.attacks) == ["BIM_1", "PGD", "BIM_2"]


def test_a_checkpoint_saver_of_an_attack_evaluator_chooses_by_the_clean_metric(tmp_path: Path) -> None:
    task = Task()
    network = task.network()
    saver = CheckpointSaver(str(tmp_path), {"net": network}, save_key_metric=True)
    evaluator = one_pass(task, network=network, val_handlers=[saver])
    evaluator.run()
    assert [path.name for path in tmp_path.iterdir()] == [
        f"net_key_metric={evaluator.state.metrics['val_dice']:.4f}.pt"
    ]


@pytest.mark.parametrize("at", [2, 5, 8])
@pytest.mark.parametrize("one", [True, False], ids=["one pass", "many passes"])
def test_a_failure_in_the_middle_leaves_everything_usable(one: bool, at: int) -> None:
    task = Task()
    network = networks.Failing(task.network(), at)
    evaluator = one_pass(task, network=network) if one else task.evaluator(network=network)
    handlers = counted(evaluator)
    flags = [parameter.requires_grad for parameter in network.parameters()]

    def run() -> Any:
        if one:
            evaluator.run()
            return evaluator.report()
        return evaluate_robustness(evaluator, task.attacks(), diagnose=False, progress=False)

    with pytest.raises(KeyboardInterrupt, match="planted"):
        run()
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert counted(evaluator) == handlers
    expected = one_pass(task)
    expected.run()
    assert run() == expected.report()


def test_a_failure_in_an_attack_leaves_the_key_metric_clean() -> None:
    """The second attack fails; the first one's "better" loss must not stay the best metric."""
    task = Task(2, dense=False)
    loss = {"metric_cmp_fn": lambda current, best: current < best}
    network = networks.Failing(task.network(), at=2 + 2 * (3 + 1) + 2)
    evaluator = task.evaluator(network=network, **loss)
    clean = metrics_of(task.evaluator(**loss))["val_accuracy"]
    with pytest.raises(KeyboardInterrupt, match="planted"):
        evaluate_robustness(
            evaluator, {"first": task.attacks()["bim"], "second": task.attacks()["bim"]}, progress=False
        )
    assert evaluator.state.best_metric == clean


def test_a_run_that_failed_leaves_no_bar_open() -> None:
    task = Task()
    evaluator = one_pass(task, network=networks.Failing(task.network(), 5), progress=True)
    with pytest.raises(KeyboardInterrupt, match="planted"):
        evaluator.run()
    assert evaluator._bar not in tqdm._instances


BUNDLE = {
    "imports": ["$import evaluators"],
    "task": "$evaluators.Task(2)",
    "network": "$@task.network()",
    "loss": "$@task.loss()",
    "validate": {
        "dataloader": "$@task.loader(2)",
        "postprocessing": "$@task.postprocessing()",
        "key_metric": "$@task.metrics()['key_val_metric']",
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "$torch.device('cpu')",
            "val_data_loader": "@validate#dataloader",
            "network": "@network",
            "postprocessing": "@validate#postprocessing",
            "key_val_metric": "@validate#key_metric",
        },
    },
}
OVERRIDE = {
    "+imports": ["$import torch"],
    "validate#evaluator#_target_": "monai_smia.engines.AttackEvaluator",
    "validate#evaluator#progress": False,
    "validate#evaluator#attacks": {
        "pgd": {
            "_target_": "monai_smia.attacks.PGD",
            "loss_function": "@loss",
            "eps": EPS,
            "steps": 2,
            "bounds": [0, 1],
            "random_start": True,
        }
    },
}


def test_a_bundle_gets_it_by_one_more_file(tmp_path: Path) -> None:
    task = Task(2)
    files = []
    for name, content in (("train.json", BUNDLE), ("attack.json", OVERRIDE)):
        files.append(str(tmp_path / name))
        Path(files[-1]).write_text(json.dumps(content))
    parser = ConfigParser()
    parser.read_config(files)
    evaluator = parser.get_parsed_content("validate#evaluator", instantiate=True)
    assert type(evaluator) is AttackEvaluator
    evaluator.run()
    one = one_pass(task, attacks={"pgd": task.attacks()["pgd"]}, additional_metrics=None)
    one.run()
    assert evaluator.report() == one.report()


def test_network_as_found() -> None:
    task = Task()
    network = task.network()
    network[1].train()  # MONAI's own eval_mode ends with train() on everything
    with contract.unchanged(network):
        one_pass(task, network=network).run()
