"""`AttackEvaluator`, `evaluate_robustness` and a plain evaluator with an `AttackHandler` agree to the last digit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from evaluators import BOUNDS, CPU, EPS, Task, counted, handled, metrics_of, seen
from ignite.engine import Events
from ignite.metrics import Accuracy, Precision, Recall
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler, from_engine

from monai_smia.attacks import BIM
from monai_smia.engines import AttackEvaluator, evaluate_robustness
from monai_smia.intensity import IntensityScale
from monai_smia.reports import RobustnessReport

TASKS = {
    "2d-segmentation": Task(2),
    "3d-segmentation": Task(3),
    "2d-classification": Task(2, dense=False),
    "3d-classification": Task(3, dense=False),
}
HU = IntensityScale(-1000, 400, clip=True)


def one_pass(task: Task, batch_size: int = 2, **arguments: Any) -> AttackEvaluator:
    return task.evaluator(
        AttackEvaluator, batch_size=batch_size, **{"attacks": task.attacks(), "progress": False, **arguments}
    )


def reported(evaluator: AttackEvaluator) -> RobustnessReport:
    evaluator.run()
    return evaluator.report()


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_three_ways_agree_to_the_last_digit(task: Task, batch_size: int) -> None:
    attacks = task.attacks()
    one = reported(one_pass(task, batch_size, seed=4, intensity=HU))
    many = evaluate_robustness(
        task.evaluator(batch_size=batch_size), attacks, seed=4, intensity=HU, diagnose=False, progress=False
    )
    assert one.metrics == many.metrics
    assert one.cases == many.cases
    assert one == many
    assert one.metrics["clean"] == metrics_of(task.evaluator(batch_size=batch_size))
    for name, attack in attacks.items():
        plain = metrics_of(task.evaluator(batch_size=batch_size, **handled(attack, seed=4)))
        assert one.metrics[name] == plain
        assert plain != one.metrics["clean"]
    assert one.metrics["bim"] != one.metrics["pgd"] or not task.dense


def test_rows_per_case() -> None:
    """Names, losses, sizes and passes of each case are those of the attack called by hand."""
    task = Task(3)
    report = reported(one_pass(task, 2, intensity=HU))
    network, rows = task.network(), [row for row in report.cases if row["attack"] == "bim"]
    assert [row["case"] for row in rows] == [f"case_{i}.nii.gz" for i in range(3)]
    assert [row["attack"] for row in report.cases] == ["clean"] * 3 + ["bim"] * 3 + ["pgd"] * 3
    results = [task.attacks()["bim"](network, batch["image"], batch["label"]) for batch in task.batches()]
    for name in ("clean_loss", "loss", "clean_success", "success", "forward_passes", "backward_passes"):
        assert [row[name] for row in rows] == torch.cat([getattr(result, name) for result in results]).tolist()
    adversarial = torch.cat([result.adversarial for result in results])
    sizes = (adversarial - task.images()).flatten(1).abs().amax(1) * 1400
    assert [row["largest_change"] for row in rows] == pytest.approx(sizes.tolist(), rel=1e-6)
    assert report.unit == "HU"
    assert report.attacks == {name: repr(attack) for name, attack in task.attacks().items()}


def test_dice_per_case_and_class_is_recomputable() -> None:
    task = Task(2)
    report = reported(one_pass(task))
    network = task.network().eval()
    adversarial = task.attacks()["bim"](network, task.images(), task.labels()).adversarial
    for run, images in (("clean", task.images()), ("bim", adversarial)):
        with torch.no_grad():
            prediction = network(images).argmax(1, keepdim=True)
        rows = [row for row in report.cases if row["attack"] == run]
        for row, p, y in zip(rows, prediction, task.labels(), strict=True):
            dice = [float(2 * ((p == k) & (y == k)).sum() / ((p == k).sum() + (y == k).sum())) for k in (1, 2)]
            assert [row["val_dice_0"], row["val_dice_1"]] == pytest.approx(dice, rel=1e-6)
            assert row["val_dice"] == pytest.approx(sum(dice) / 2, rel=1e-6)
        mean = sum(row["val_dice"] for row in rows) / 3
        assert report.metrics[run]["val_dice"] == pytest.approx(mean, rel=1e-6)


def test_mask_keys_and_sequences() -> None:
    task = Task(2)

    def masked() -> list[dict[str, torch.Tensor]]:
        return [{**batch, "lung": (batch["label"] > 0).int()} for batch in task.batches()]

    attacks = list(task.attacks().values())
    one = reported(one_pass(task, val_data_loader=masked(), attacks=attacks, mask_key="lung"))
    many = evaluate_robustness(
        task.evaluator(val_data_loader=masked()), attacks, mask_key="lung", diagnose=False, progress=False
    )
    assert one == many
    assert list(one.metrics) == ["clean", "BIM", "PGD"]
    assert one.metrics["BIM"] != reported(one_pass(task)).metrics["bim"]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_pairs_instead_of_dictionaries(batch_size: int) -> None:
    task = Task(2)
    pairs = [(batch["image"], batch["label"]) for batch in task.batches(batch_size)]
    listed = [list(pair) for pair in pairs]
    expected = reported(one_pass(task, val_data_loader=task.batches(batch_size)))
    for loader in (pairs, listed):
        one = reported(one_pass(task, val_data_loader=loader))
        many = evaluate_robustness(
            task.evaluator(val_data_loader=loader), task.attacks(), diagnose=False, progress=False
        )
        assert one == many == expected


def test_subclasses_and_iterations_of_ones_own() -> None:
    task = Task(2, dense=False)
    expected = reported(one_pass(task))
    calls = []

    class Counted(SupervisedEvaluator):
        def _iteration(self, engine: Any, batchdata: Any) -> Any:
            calls.append(len(batchdata["image"]))
            return super()._iteration(engine, batchdata)

    def update(engine: Any, batch: Any) -> list[dict]:
        with torch.no_grad():
            prediction = engine.network.eval()(batch["image"].as_tensor()).softmax(1)
        return [{"pred": p, "label": y} for p, y in zip(prediction, batch["label"], strict=True)]

    assert evaluate_robustness(task.evaluator(Counted), task.attacks(), diagnose=False, progress=False) == expected
    assert calls == [2, 1] * 3
    many = evaluate_robustness(task.evaluator(iteration_update=update), task.attacks(), diagnose=False, progress=False)
    assert many == reported(one_pass(task, iteration_update=update))
    assert many == expected


def test_a_metric_made_of_others() -> None:
    """Arithmetic on ignite's metrics attaches its parts, which must be updated with the attack too."""
    task = Task(2, dense=False)

    def arguments() -> dict[str, Any]:
        take = from_engine(["pred", "label"])
        precision, recall = (kind(output_transform=take, average=False) for kind in (Precision, Recall))
        f1 = (2 * precision * recall / (precision + recall + 1e-9)).mean()
        return {"key_val_metric": {"val_f1": f1}, "additional_metrics": None}

    many = evaluate_robustness(task.evaluator(**arguments()), task.attacks(), diagnose=False, progress=False)
    one = reported(one_pass(task, **arguments()))
    assert many.metrics["bim"]["val_f1"] != many.metrics["clean"]["val_f1"]
    assert {run: values["val_f1"] for run, values in one.metrics.items()} == {
        run: values["val_f1"] for run, values in many.metrics.items()
    }


def test_a_second_run_is_the_first() -> None:
    task = Task(2)
    evaluator = one_pass(task)
    assert reported(evaluator) == reported(evaluator)
    plain = task.evaluator()
    reports = [evaluate_robustness(plain, task.attacks(), diagnose=False, progress=False) for _ in range(2)]
    assert reports[0] == reports[1]


def test_without_metrics() -> None:
    task = Task(2)
    arguments = {"key_val_metric": None, "additional_metrics": None}
    attacks = {"bim": BIM(task.loss(), eps=EPS, steps=1, bounds=BOUNDS)}
    one = reported(one_pass(task, attacks=attacks, **arguments))
    assert one == evaluate_robustness(task.evaluator(**arguments), attacks, diagnose=False, progress=False)
    assert one.metrics == {"clean": {}, "bim": {}}
    assert list(one.to_frame().columns)[:2] == ["success_rate", "loss"]


def test_the_state_afterwards_is_the_clean_runs() -> None:
    task = Task(2)
    expected, evaluator = task.evaluator(), task.evaluator()
    expected.run()
    handlers = counted(evaluator)
    evaluate_robustness(evaluator, task.attacks(), diagnose=False, progress=False)
    for name in ("metrics", "best_metric", "best_metric_epoch", "epoch", "iteration", "key_metric_name"):
        assert getattr(evaluator.state, name) == getattr(expected.state, name), name
    for name, values in expected.state.metric_details.items():
        assert torch.equal(evaluator.state.metric_details[name], values)
    assert torch.equal(evaluator.state.output[0]["pred"], expected.state.output[0]["pred"])
    assert set(evaluator.state.batch[0]) == {"image", "label"}
    assert counted(evaluator) == handlers


def test_batches_that_are_not_decollated() -> None:
    task = Task(2, dense=False)

    def arguments() -> dict[str, Any]:
        accuracy = Accuracy(output_transform=lambda output: (output["pred"].as_tensor(), output["label"]))
        return {"key_val_metric": {"val_accuracy": accuracy}, "additional_metrics": None, "postprocessing": None}

    one = reported(one_pass(task, decollate=False, **arguments()))
    many = evaluate_robustness(
        task.evaluator(decollate=False, **arguments()), task.attacks(), diagnose=False, progress=False
    )
    decollated = reported(one_pass(task))
    assert one == many
    assert one.cases == tuple(
        {key: value for key, value in row.items() if key != "val_auc"} for row in decollated.cases
    )
    assert {run: values["val_accuracy"] for run, values in one.metrics.items()} == {
        run: values["val_accuracy"] for run, values in decollated.metrics.items()
    }


def test_validation_during_training() -> None:
    """Every epoch's validation is an evaluation of its own, seeded by the epoch; training goes on in train mode."""
    task = Task(2)
    network = task.network()
    validator = one_pass(task, network=network)
    metrics = seen(validator, Events.COMPLETED, lambda e: dict(e.state.metrics))
    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=2,
        train_data_loader=task.batches(3),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        loss_function=task.loss(),
        train_handlers=[ValidationHandler(1, validator)],
    )
    states = seen(trainer, Events.EPOCH_COMPLETED, lambda e: (network.training, copy.deepcopy(network.state_dict())))
    trainer.run()
    for epoch, (found, (training, state)) in enumerate(zip(metrics, states, strict=True), start=1):
        assert training
        expected = one_pass(task)
        expected.network.load_state_dict(state)
        expected.run(global_epoch=epoch)
        assert found == expected.state.metrics
