"""Small parts of the engines, each by its own oracle."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluators import CPU, Task
from ignite.metrics import Average
from monai.data import DataLoader, Dataset
from monai.engines import EnsembleEvaluator

from monai_smia import AttackEvaluator, evaluate_robustness
from monai_smia.bundle import evaluate_under_attack
from monai_smia.engines import CaseByCase, case_by_case
from monai_smia.engines.increments import added, same
from monai_smia.engines.metric_state import from_file, restore, state_of, to_file
from monai_smia.handlers import AttackHandler, OverlaySaver
from monai_smia.handlers.batch import image_of, with_first
from monai_smia.metrics.reduced import reduce

TASK = Task()
Pair = namedtuple("Pair", ["picture", "truth"])


@pytest.mark.parametrize("way", ["by runs", "by cases", "into a folder", "handler"])
def test_an_evaluator_of_several_networks_is_named(tmp_path: Path, way: str) -> None:
    evaluator = EnsembleEvaluator(CPU, TASK.loader(), [TASK.network(), TASK.network()])
    AttackHandler(TASK.attacks()["bim"]).attach(evaluator)
    run = {
        "by runs": lambda: evaluate_robustness(evaluator, TASK.attacks(), progress=False),
        "by cases": lambda: CaseByCase(evaluator, TASK.attacks(), progress=False),
        "into a folder": lambda: evaluate_under_attack(evaluator, "PGD", "0.1net", out=tmp_path, bounds=(0, 1)),
        "handler": evaluator.run,
    }[way]
    with pytest.raises(TypeError, match="with one network; got EnsembleEvaluator, which has networks, several"):
        run()


@pytest.mark.parametrize("way", ["by runs", "by cases", "in one pass"])
def test_named_tuples_as_batches(way: str) -> None:
    """The rows are those of the same batches as plain tuples."""

    def rows(kind: Any) -> Any:
        batches = [kind(batch["image"], batch["label"]) for batch in TASK.batches()]
        more = {"attacks": TASK.attacks(), "progress": False} if way == "in one pass" else {}
        evaluator = TASK.evaluator(
            AttackEvaluator if more else type(TASK.evaluator()),
            val_data_loader=batches,
            postprocessing=None,
            decollate=False,
            key_val_metric=None,
            additional_metrics=None,
            **more,
        )
        if way == "by runs":
            return evaluate_robustness(evaluator, TASK.attacks(), diagnose=False, progress=False).cases
        if way == "by cases":
            return CaseByCase(evaluator, TASK.attacks(), diagnose=False, progress=False).run().cases
        evaluator.run()
        return evaluator.report().cases

    plain = rows(lambda *items: tuple(items))
    assert rows(Pair) == plain
    assert max(row["loss"] - row["clean_loss"] for row in plain if row["attack"] != "clean") > 0


def test_images_of_batches() -> None:
    image = torch.zeros(1)
    assert image_of({"picture": image}, "picture") is image
    assert image_of(Pair(image, 1)) is image_of([image]) is image
    assert with_first(Pair(0, 1), 5) == Pair(5, 1)
    assert with_first([0, 1, 2], 5) == [5, 1, 2]
    for batch in ({"label": 1}, [], 3, torch.zeros(2)):
        with pytest.raises(ValueError, match="image_key: expected a dictionary with .*image.*, or a sequence"):
            image_of(batch)


def test_pictures_of_several_cases_of_one_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    items = TASK.items()
    for item in items:
        item["image"].meta["filename_or_obj"] = "/data/volume.nii.gz"
    evaluator = TASK.evaluator(
        AttackEvaluator,
        attacks=TASK.attacks(),
        val_data_loader=DataLoader(Dataset(items), batch_size=2),
        val_handlers=[OverlaySaver(tmp_path)],
        progress=False,
    )
    expected = {f"volume{case}_{name}.png" for name in TASK.attacks() for case in ("", "_1", "_2")}
    for _ in range(2):
        evaluator.run()
        assert {path.name for path in tmp_path.iterdir()} == expected


def test_the_bar_moves_by_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Bar(case_by_case.tqdm):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            made.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(case_by_case, "tqdm", Bar)
    seen: list[int] = []

    class Watching:
        def saw(self, *_: Any) -> None:
            pass

        def keep(self, *_: Any) -> None:
            seen.append(made[0].n)

        def drop(self) -> None:
            pass

    evaluator = TASK.evaluator(batch_size=1)
    CaseByCase(evaluator, TASK.attacks(), diagnose=False, progress=True, watchers=[Watching()]).run()
    assert seen == [0, 1, 2]
    assert (made[0].n, made[0].total) == (3, 3)


@pytest.mark.parametrize(
    ("reset", "before", "more", "expected"),
    [
        ([9], [9, 1], [9, 2], [9, 1, 2]),  # a list that does not begin empty
        ([], [1], [2, 3], [1, 2, 3]),
        (None, [[1], [2]], [[3], [4]], [[1, 3], [2, 4]]),  # buffers, one beside the other
        (None, [[1], [2]], [[3]], [[1], [2], [3]]),  # not as many: a list of lists
        ([], [[1], 5], [[3], 6], [[1], 5, [3], 6]),  # not all of them lists
        (2, 5, 4, 7),  # a sum that begins at 2
        (0, 5, 4, 9),
        (1.5, 2.0, 4.0, 4.5),
        (np.array([1.0, 0.0]), np.array([2.0, 3.0]), np.array([4.0, 5.0]), np.array([5.0, 8.0])),
        (set(), {1}, {2}, {1, 2}),
        (None, 3, 3, 3),  # a number of classes, learned
        (None, 3, 4, 7),
        (None, 1.5, 1.5, 3.0),
        ({}, {"a": 1}, {"b": 2}, {"a": 1, "b": 2}),  # keys that come with a batch
        ({"a": 1}, {"a": 3}, {"a": 4, "b": 2}, {"a": 6, "b": 2}),
        ("", "a", "b", "b"),
    ],
)
def test_states_add_up_in_closed_form(reset: Any, before: Any, more: Any, expected: Any) -> None:
    assert same(added(reset, before, more), expected)


def test_mixed_lists_in_a_metric_survive_a_file(tmp_path: Path) -> None:
    """A list with a function in it is a setting and stays out; one of numbers, arrays and tensors is kept whole."""
    metric = Average()
    metric.mixed = [1, lambda x: x, torch.ones(2)]
    metric.data = [1, np.float64(2.5), np.arange(3), torch.ones(2), ("a", None), {"b": np.ones(1)}]
    metric.settings = {"one": 1, "two": len}
    metric.update(torch.tensor([[1.0], [2.0]]))
    torch.save(to_file(state_of(metric)), tmp_path / "state.pt")
    state = from_file(torch.load(tmp_path / "state.pt", weights_only=True))
    assert "mixed" not in state
    assert "settings" not in state
    other = Average()
    other.mixed = "its own"
    restore(other, state)
    assert other.mixed == "its own"
    assert float(other.compute()) == 1.5
    assert same(state_of(other)["data"], [1, 2.5, np.arange(3), torch.ones(2), ("a", None), {"b": np.ones(1)}])


def test_a_reduction_leaves_the_callers_values() -> None:
    values = torch.tensor([[1.0, torch.nan], [3.0, torch.nan]])
    kept = values.clone()
    for reduction in ("none", "mean", "sum", "mean_batch", "sum_batch", "mean_channel", "sum_channel"):
        reduced = reduce(values, reduction)
        assert torch.equal(values.nan_to_num(-1), kept.nan_to_num(-1))
        reduced += 1.0
        assert torch.equal(values.nan_to_num(-1), kept.nan_to_num(-1))
