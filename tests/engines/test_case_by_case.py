"""`CaseByCase` gives the numbers of `evaluate_robustness`, goes on after a kill and survives cases that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from evaluators import Task, counted
from ignite.engine import Events
from ignite.metrics import Precision, Recall
from monai.data import DataLoader, Dataset
from monai.handlers import MetricsSaver, StatsHandler, from_engine
from monai.transforms import Compose, SaveImaged

from monai_smia.engines import CaseByCase, evaluate_robustness
from monai_smia.engines.metric_state import metrics_of, restore, state_of, to_file
from monai_smia.intensity import IntensityScale

HU = IntensityScale(-1000, 400, clip=True)
TASKS = {
    "2d-segmentation": Task(2, cases=4),
    "3d-segmentation": Task(3),
    "2d-classification": Task(2, dense=False, cases=5),
}


def runner(task: Task, evaluator: Any = None, **arguments: Any) -> CaseByCase:
    evaluator = task.evaluator() if evaluator is None else evaluator
    return CaseByCase(evaluator, task.attacks(), **{"intensity": HU, "progress": False, **arguments})


def killed(run: CaseByCase, after: int) -> None:
    """Interrupt the run in the middle of the batch after this one."""
    attacked, calls = run._attacked, []

    def attack(name: str, engine: Any) -> Any:
        calls.append(name)
        if len(calls) == 2 * after + 2:
            raise KeyboardInterrupt("planted")
        return attacked(name, engine)

    run._attacked = attack  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match="planted"):
        run.run()


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_numbers_are_those_of_whole_runs(task: Task, batch_size: int) -> None:
    loader = {"val_data_loader": DataLoader(Dataset(task.items()), batch_size=batch_size)}
    expected = evaluate_robustness(task.evaluator(**loader), task.attacks(), seed=3, intensity=HU, progress=False)
    evaluator = task.evaluator(**loader)
    before = counted(evaluator)
    assert runner(task, evaluator, seed=3).run() == expected
    assert counted(evaluator) == before
    assert evaluator.state.metrics == expected.metrics["clean"]


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_killed_run_goes_on(tmp_path: Path, task: Task, after: int) -> None:
    expected = evaluate_robustness(task.evaluator(), task.attacks(), intensity=HU, progress=False)
    killed(runner(task, folder=tmp_path), after)
    again = runner(task, folder=tmp_path, resume=True)
    assert again.state.done == list(range(after))
    assert again.run() == expected
    attacks: list[str] = []
    finished = runner(task, folder=tmp_path, resume=True)
    finished._attacked = lambda name, engine: attacks.append(name)  # type: ignore[method-assign]
    assert finished.run() == expected
    assert attacks == []


@pytest.mark.parametrize("handlers", [[], [StatsHandler(iteration_log=False)]], ids=["none", "StatsHandler"])
def test_neither_interrupts_nor_errors_are_hidden(handlers: list[Any]) -> None:
    """ignite hides an error once an event for errors is known, as with the StatsHandler of every bundle."""
    task, seen = TASKS["2d-segmentation"], list[BaseException]()
    evaluator = task.evaluator(val_handlers=handlers)
    killed(runner(task, evaluator), 1)
    evaluator.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: seen.append(error))
    killed(runner(task, evaluator), 1)
    assert {type(error) for error in seen} == {KeyboardInterrupt}
    evaluator = task.evaluator(val_handlers=handlers)
    evaluator.network.forward = lambda image: image[:, 5]
    run = runner(task, evaluator)
    with pytest.raises(
        RuntimeError, match="clean: the first 4 cases all failed; the first with IndexError: index 5 is out of"
    ):
        run.run()
    with pytest.raises(IndexError, match="index 5 is out of bounds"):  # and the evaluator alone, afterwards
        evaluator.run()


def test_a_run_is_resumed_only_by_its_like(tmp_path: Path) -> None:
    task = TASKS["2d-segmentation"]
    killed(runner(task, folder=tmp_path, settings={"eps": "5HU"}), 1)
    with pytest.raises(FileExistsError, match="folder: .* holds an earlier run"):
        runner(task, folder=tmp_path, settings={"eps": "5HU"})
    with pytest.raises(ValueError, match="resume: the earlier run had eps = 5HU; expected the same, got 10HU"):
        runner(task, folder=tmp_path, settings={"eps": "10HU"}, resume=True)
    (tmp_path / "progress.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"folder: .*progress.pt cannot be read"):
        runner(task, folder=tmp_path, settings={"eps": "5HU"}, resume=True)


class Broken(Dataset):
    """One item cannot be read."""

    def _transform(self, index: int) -> Any:
        if index == 1:
            raise OSError("the file is cut off\nsecond line")
        return super()._transform(index)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_case_that_cannot_be_read_does_not_stop_the_others(batch_size: int) -> None:
    task = Task(2, cases=3)
    loader = DataLoader(Broken(task.items()), batch_size=batch_size)
    run = runner(task, task.evaluator(val_data_loader=loader))
    report = run.run()
    assert [failure.stage for failure in run.failures] == ["loading"]
    assert run.failures[0].error == "OSError: the file is cut off"
    items = [item for i, item in enumerate(task.items()) if i != 1]
    names = [row["case"] for row in report.cases if row["attack"] == "clean"]
    assert names == ["case_0.nii.gz", "case_2.nii.gz"]
    clean = task.evaluator(val_data_loader=DataLoader(Dataset(items), batch_size=batch_size))
    clean.run()
    assert report.metrics["clean"] == clean.state.metrics


def test_a_case_that_fails_under_attack_is_left_out_of_every_run() -> None:
    """Alone, so that its batch mates stay; the metrics are those of an evaluation without it."""
    task = Task(2, cases=4)
    items = task.items()
    items[2]["image"][..., 0, 0] = 50.0  # outside the attack's bounds
    run = runner(task, task.evaluator(val_data_loader=DataLoader(Dataset(items), batch_size=2)))
    report = run.run()
    assert [(failure.case, failure.stage) for failure in run.failures] == [("/data/case_2.nii.gz", "bim")]
    assert run.failures[0].error.startswith("ValueError: bounds: ")
    rest = [DataLoader(Dataset(part), batch_size=2) for part in (items[:2], items[3:])]
    batches = [batch for loader in rest for batch in loader]
    expected = evaluate_robustness(
        task.evaluator(val_data_loader=batches), {"bim": task.attacks()["bim"]}, intensity=HU, progress=False
    )
    for name in ("clean", "bim"):
        assert report.metrics[name] == expected.metrics[name]


def test_the_evaluators_own_files_are_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Task(3)
    saving = Compose([task.postprocessing(), SaveImaged("pred", output_dir=str(tmp_path / "images"))])
    handlers = [MetricsSaver(str(tmp_path / "metrics"), metrics="*"), StatsHandler(name="said")]
    runner(task, task.evaluator(postprocessing=saving, val_handlers=handlers)).run()
    assert list(tmp_path.rglob("*.*")) == []
    assert capsys.readouterr().out == ""


def test_a_shuffled_loader_is_read_in_the_order_of_its_data() -> None:
    task = Task(2, cases=6)
    shuffled = DataLoader(Dataset(task.items()), batch_size=2, shuffle=True)
    ordered = runner(task).run()
    assert runner(task, task.evaluator(val_data_loader=shuffled)).run() == ordered


def test_the_state_of_composed_metrics_survives_a_file(tmp_path: Path) -> None:
    """Counting a first half, a file, and counting a second half is counting all."""
    task = Task(2, dense=False, cases=6)

    def evaluator() -> Any:
        take = from_engine(["pred", "label"])
        precision, recall = (kind(output_transform=take, average=False) for kind in (Precision, Recall))
        f1 = (2 * precision * recall / (precision + recall + 1e-9)).mean()
        return task.evaluator(key_val_metric={"val_f1": f1}, additional_metrics=None)

    killed(runner(task, evaluator(), folder=tmp_path), 1)
    resumed = runner(task, evaluator(), folder=tmp_path, resume=True).run()
    expected = evaluate_robustness(evaluator(), task.attacks(), progress=False)
    assert {run: resumed.metrics[run]["val_f1"] for run in resumed.metrics} == {
        run: expected.metrics[run]["val_f1"] for run in expected.metrics
    }


def test_state_is_taken_and_put_back() -> None:
    task = Task(2)
    evaluator = task.evaluator()
    evaluator.run()
    metric = metrics_of(evaluator)[0]
    value, state = metric.compute(), to_file(state_of(metric))
    metric.reset()
    restore(metric, state)
    assert metric.compute() == value
    metric.update([[torch.ones(3, 4, 4)], [torch.ones(3, 4, 4)]])
    restore(metric, state)  # what happened since is gone
    assert metric.compute() == value


def test_a_hopeless_run_ends_early_and_leaves_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An argument that fits no case is said once; the next run, with a better one, is not in its way."""
    task = Task(2, cases=5)
    images = [{**item, "image": item["image"] + 50.0} for item in task.items()]  # outside the attacks' bounds
    loader = DataLoader(Dataset(images), batch_size=1)
    run = runner(task, task.evaluator(val_data_loader=loader), folder=tmp_path)
    with pytest.raises(RuntimeError, match="bim: the first 3 cases all failed; the first with ValueError: bounds: "):
        run.run()
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []  # ignite's own words on each of them
    assert runner(task, folder=tmp_path).run().metrics["clean"]
