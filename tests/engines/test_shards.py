"""Shards of an evaluation: disjoint, complete, resumable, and together the report of one process to the last digit."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluators import Task
from ignite.metrics import Average, MeanAbsoluteError, Metric, Precision, Recall
from monai.data import DataLoader, Dataset
from monai.handlers import from_engine

from monai_smia.engines import CaseByCase
from monai_smia.engines.increments import added, same
from monai_smia.engines.progress_log import read_log
from monai_smia.engines.shards import Shard

TASKS = {
    "2d-segmentation": Task(2, cases=7),
    "3d-segmentation": Task(3, cases=5),
    "2d-classification": Task(2, dense=False, cases=7),
}


def runner(task: Task, folder: Path | None, shard: Any = None, batch_size: int = 2, **more: Any) -> CaseByCase:
    evaluator = task.evaluator(batch_size=batch_size, **more.pop("evaluator", {}))
    settings = {"diagnose": False, "progress": False, "seed": 3, **more}
    return CaseByCase(evaluator, task.attacks(), folder=folder, shard=shard, **settings)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_shards_are_disjoint_and_complete(count: int) -> None:
    shares = [[i for i in range(7) if Shard(index, count).has(i)] for index in range(1, count + 1)]
    assert Counter(chain.from_iterable(shares)) == Counter(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("value", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", (1,), (1.0, 2), 3, "1/2/3", (True, 2)])
def test_no_shard(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^shard: expected i/n"):
        Shard.of(value)


def test_the_number_of_the_first_task_is_one() -> None:
    with pytest.raises(ValueError, match=r"--array=1-n"):
        Shard.of("0/4")
    assert Shard.of(" 2/4 ") == Shard.of((2, 4)) == Shard.of(["2", "4"]) == Shard(2, 4)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_together_they_are_the_whole(tmp_path: Path, task: Task, count: int) -> None:
    """In any order; the last one gives the report of all, and so does a run in one piece that finds them."""
    whole = runner(task, None).run()
    for index in range(count, 0, -1):
        run = runner(task, tmp_path, f"{index}/{count}")
        report = run.run()
        assert run.complete is (index == 1)
    assert report == whole
    merged = runner(task, tmp_path, resume=True)
    assert merged.complete
    assert merged.run() == whole


def test_the_doctor_comes_once_and_says_the_same(tmp_path: Path) -> None:
    task = Task(2, cases=3)
    whole = runner(task, None, batch_size=1, diagnose=True).run()
    runs = [runner(task, tmp_path, f"{index}/3", batch_size=1, diagnose=True) for index in (1, 2, 3)]
    reports = [run.run() for run in runs]
    assert whole.findings is not None
    assert reports[-1] == whole
    assert [run.state.seconds.get("doctor", 0) > 0 for run in runs] == [True, False, True]


def test_more_shards_than_batches(tmp_path: Path) -> None:
    task = Task(2, cases=3)
    for index in range(5, 0, -1):
        run = runner(task, tmp_path, f"{index}/5")
        report = run.run()
        assert len(run.state.names) == {1: 3, 2: 1}.get(index, 0)
    assert report == runner(task, None).run()


def test_batches_without_an_index_or_a_file(tmp_path: Path) -> None:
    task = Task(2, cases=5)
    loader = {"evaluator": {"val_data_loader": task.batches(2)}}
    whole = runner(task, None, **loader).run()
    reports = [runner(task, tmp_path, shard, **loader).run() for shard in ("1/2", "2/2")]
    assert [row["case"] for row in reports[1].cases[:5]] == list("01234")
    assert reports[1] == whole


def test_a_killed_shard_goes_on_and_a_torn_record_does_not_count(tmp_path: Path) -> None:
    task = TASKS["2d-segmentation"]
    whole = runner(task, None, batch_size=1).run()
    runner(task, tmp_path, "2/2", batch_size=1).run()
    first = runner(task, tmp_path, "1/2", batch_size=1)
    attacked, calls = first._attacked, list[str]()

    def attack(name: str, engine: Any) -> Any:
        calls.append(name)
        if len(calls) == 6:
            raise KeyboardInterrupt("planted")
        return attacked(name, engine)

    first._attacked = attack  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match="planted"):
        first.run()
    file = tmp_path / "shard-1-of-2.pt"
    assert read_log(file).progress.done == [0, 2]
    content = file.read_bytes()
    file.write_bytes(content[:-7])
    assert read_log(file).progress.done == [0]
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        runner(task, tmp_path, "1/2", batch_size=1)
    again = runner(task, tmp_path, "1/2", batch_size=1, resume=True)
    assert again.state.done == [0]
    assert again.run() == whole
    file.write_bytes(content[:100] + b"x" + content[101:])
    with pytest.raises(ValueError, match="cannot be read"):
        read_log(file)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    task = TASKS["2d-segmentation"]

    def run(index: int, folder: Path, **more: Any) -> None:
        runner(task, folder, f"{index}/3", **more).run()

    base = tmp_path / "base"
    run(1, base, settings={"eps": "5HU"})
    with pytest.raises(ValueError, match=r"missing: 2/3 \(not begun\), 3/3 \(not begun\)"):
        runner(task, base, resume=True, settings={"eps": "5HU"})
    with pytest.raises(ValueError, match=r"shard: .* holds shards of 3; .* got 1/2"):
        runner(task, base, "1/2", resume=True)
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        runner(task, base)
    run(2, base, settings={"eps": "5HU"})
    whole = tmp_path / "whole"
    runner(task, whole).run()
    with pytest.raises(ValueError, match="holds a run in one piece"):
        run(1, whole, resume=True)

    def copied(name: str) -> Path:
        return Path(shutil.copytree(base, tmp_path / name))

    with pytest.raises(ValueError, match="had eps = 5HU; expected the same, got 10HU"):
        run(3, copied("settings"), settings={"eps": "10HU"})
    shutil.copy(base / "shard-1-of-3.pt", copied("twice") / "shard-3-of-3.pt")
    with pytest.raises(ValueError, match=r"shard-3-of-3.pt holds shard \(1, 3\)"):
        runner(task, tmp_path / "twice", resume=True, settings={"eps": "5HU"})
    with pytest.raises(ValueError, match="had batches = 4; expected the same, got 7"):
        run(3, copied("batches"), settings={"eps": "5HU"}, batch_size=1)


class Range(Metric):
    """Largest minus smallest mean: it does not add up, and says nothing before it has seen two batches."""

    def reset(self) -> None:
        self.low, self.high = float("inf"), -float("inf")

    def update(self, output: Any) -> None:
        value = float(output[0][:, 1].float().mean())
        self.low, self.high = min(self.low, value), max(self.high, value)

    def compute(self) -> float:
        return self.high - self.low


def stacked(output: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.stack([item[key].float() for item in output]) for key in ("pred", "label"))  # type: ignore[return-value]


def test_metrics_of_ignite_add_up(tmp_path: Path) -> None:
    task = TASKS["2d-segmentation"]

    def metrics() -> dict[str, Any]:
        take = from_engine(["pred", "label"])
        precision, recall = (kind(output_transform=take, average=False) for kind in (Precision, Recall))
        more = {
            "val_f1": (2 * precision * recall / (precision + recall + 1e-9)).mean(),
            "val_mae": MeanAbsoluteError(output_transform=stacked),
            "val_mean": Average(output_transform=lambda output: stacked(output)[0].mean()),
        }
        return {"evaluator": {**task.metrics(), "additional_metrics": more}}

    whole = runner(task, None, **metrics()).run()
    reports = [runner(task, tmp_path, shard, **metrics()).run() for shard in ("1/2", "2/2")]
    assert reports[1] == whole
    plain = runner(task, None, batch_size=7, **metrics()).run()  # which adds nothing up
    assert whole.metrics["clean"]["val_mae"] == pytest.approx(plain.metrics["clean"]["val_mae"], rel=1e-5)
    assert whole.metrics["clean"]["val_mean"] == pytest.approx(plain.metrics["clean"]["val_mean"], rel=1e-5)


def test_a_metric_that_does_not_add_up_is_carried_but_not_shared(tmp_path: Path) -> None:
    task = TASKS["2d-segmentation"]

    def metrics() -> dict[str, Any]:
        return {"evaluator": {**task.metrics(), "additional_metrics": {"val_range": Range(output_transform=stacked)}}}

    expected = task.evaluator(**metrics()["evaluator"])
    expected.run()
    run = runner(task, tmp_path / "whole", **metrics())
    assert run.run().metrics["clean"] == expected.state.metrics
    assert expected.state.metrics["val_range"] > 0
    assert runner(task, tmp_path / "whole", resume=True, **metrics()).run() == run.report()
    cases = task.items()
    cases[1]["image"][..., 0, 0] = 50.0  # outside the attacks' bounds: its batch is evaluated case by case
    rest = [DataLoader(Dataset(cases[:1]), 1), DataLoader(Dataset(cases[2:]), batch_size=2)]
    expected = task.evaluator(
        **{**metrics()["evaluator"], "val_data_loader": [batch for loader in rest for batch in loader]}
    )
    expected.run()
    partly = metrics()["evaluator"] | {"val_data_loader": DataLoader(Dataset(cases), batch_size=2)}
    assert runner(task, None, evaluator=partly).run().metrics["clean"] == expected.state.metrics
    with pytest.raises(ValueError, match="shard: Range does not add up over batches"):
        runner(task, tmp_path / "shards", "1/2", **metrics()).run()


def test_states_add_up() -> None:
    reset = {
        "sum": torch.tensor(0.0),
        "seen": 0,
        "kind": None,
        "classes": None,
        "values": [],
        "buffers": None,
        "on": True,
    }
    one = {
        **reset,
        "sum": torch.tensor(1.5),
        "seen": 2,
        "kind": "binary",
        "classes": 3,
        "values": [1],
        "buffers": [[1]],
    }
    two = {
        **reset,
        "sum": torch.tensor(2.0),
        "seen": 1,
        "kind": "binary",
        "classes": 3,
        "values": [2],
        "buffers": [[7]],
    }
    both = {
        "sum": torch.tensor(3.5),
        "seen": 3,
        "kind": "binary",
        "classes": 3,
        "values": [1, 2],
        "buffers": [[1, 7]],
        "on": True,
    }
    assert same(added(reset, one, two), both)
    assert same(added(reset, reset, two), two)
    assert same(added(reset, one, reset), one)
    assert same(added({"x": np.zeros(2)}, {"x": np.array([1.0, 2.0])}, {"x": np.ones(2)}), {"x": np.array([2.0, 3.0])})
    assert not same({"x": torch.ones(2)}, {"x": torch.ones(3)})
    assert same({"x": float("nan")}, {"x": float("nan")})


def test_a_failing_case_fails_in_its_shard_only(tmp_path: Path) -> None:
    task = Task(2, cases=4)
    items = task.items()
    items[2]["image"][..., 0, 0] = 50.0  # outside the attacks' bounds

    def run(folder: Path | None, shard: Any = None) -> CaseByCase:
        return runner(task, folder, shard, evaluator={"val_data_loader": DataLoader(Dataset(items), batch_size=2)})

    whole, shards = run(None), [run(tmp_path, "1/2"), run(tmp_path, "2/2")]
    report = whole.run()
    assert [shard.run() for shard in shards][1] == report
    assert shards[1].failures == whole.failures
    assert [failure.case for failure in whole.failures] == ["/data/case_2.nii.gz"]


def test_two_runs_at_once_leave_a_file_that_can_be_gone_on_with(tmp_path: Path) -> None:
    """A task that was requeued while it still ran: the one that finds the other's batches appends nothing."""
    task = Task(2, cases=4)
    first, second = runner(task, tmp_path), runner(task, tmp_path, resume=True)
    report = first.run()
    with pytest.raises(FileExistsError, match="was written by another run meanwhile; expected one run at a time"):
        second.run()
    again = runner(task, tmp_path, resume=True)
    assert again.state.done == [0, 1]
    assert again.run() == report
