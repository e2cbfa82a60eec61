"""All ways of evaluating have the same cases: those of the loader's sampler and of the evaluator's ``epoch_length``."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluators import Task
from monai.data import DataLoader, Dataset
from torch.utils.data import (
    BatchSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from monai_smia import AttackEvaluator, evaluate_robustness
from monai_smia.bundle import evaluate_under_attack
from monai_smia.engines import CaseByCase
from monai_smia.engines.batches import count, index_batches, one_by_one, other_loader, plan
from monai_smia.handlers.batch import attack_batch
from monai_smia.reports import RobustnessReport

TASK = Task(cases=6)
ATTACKS = {"pgd": TASK.attacks()["pgd"]}


class Some(Sampler[int]):
    def __init__(self, indices: list[int]) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def loader(batch_size: int = 1, **arguments: Any) -> DataLoader:
    if "batch_sampler" not in arguments:
        arguments["batch_size"] = batch_size
    return DataLoader(Dataset(TASK.items()), **arguments)


def three_ways(tmp_path: Path, arguments: dict[str, Any], epoch_length: int | None) -> list[RobustnessReport]:
    def evaluator(**more: Any) -> Any:
        kind = AttackEvaluator if more else type(TASK.evaluator())
        return TASK.evaluator(kind, val_data_loader=loader(**arguments), epoch_length=epoch_length, **more)

    one = evaluator(attacks=ATTACKS, progress=False)
    one.run()
    folder = evaluate_under_attack(evaluator(), ATTACKS, views=0, diagnose=False, out=tmp_path, progress=False).report
    return [
        one.report(),
        evaluate_robustness(evaluator(), ATTACKS, diagnose=False, progress=False),
        CaseByCase(evaluator(), ATTACKS, diagnose=False, progress=False).run(),
        folder,
    ]


@pytest.mark.parametrize(
    ("arguments", "epoch_length", "cases"),
    [
        ({"sampler": Some([4, 0, 2])}, None, [4, 0, 2]),
        ({"sampler": Some([4, 0, 2]), "batch_size": 2, "drop_last": True}, None, [4, 0]),
        ({"batch_sampler": BatchSampler(Some([5, 3, 1, 0]), 3, False)}, None, [5, 3, 1, 0]),
        ({"batch_sampler": [[3, 1], [0], [2, 5]]}, 2, [3, 1, 0]),
        ({}, 2, [0, 1]),
        ({"batch_size": 4}, 1, [0, 1, 2, 3]),
        ({"batch_size": 4, "drop_last": True}, None, [0, 1, 2, 3]),
    ],
    ids=["sampler", "dropped rest", "batch sampler", "batches and length", "length", "batches of 4", "no rest"],
)
def test_the_same_cases_and_numbers(
    tmp_path: Path, arguments: dict[str, Any], epoch_length: int | None, cases: list[int]
) -> None:
    reports = three_ways(tmp_path, arguments, epoch_length)
    for report in reports:
        assert [row["case"] for row in report.cases if row["attack"] == "pgd"] == [f"case_{i}.nii.gz" for i in cases]
        assert report.metrics == reports[0].metrics
        assert report.metrics["pgd"] != report.metrics["clean"]


def test_a_sampler_that_only_shuffles_is_read_in_the_order_of_its_data() -> None:
    random_states = torch.random.get_rng_state(), random.getstate()
    own = torch.Generator().manual_seed(3)
    state = own.get_state()
    assert index_batches(loader(2, sampler=SubsetRandomSampler([5, 1, 3, 2], own))) == [(1, 2), (3, 5)]
    assert index_batches(loader(4, shuffle=True, drop_last=True)) == [(0, 1, 2, 3)]
    assert count(loader(4, shuffle=True)) == 2
    assert torch.equal(own.get_state(), state)
    assert torch.equal(torch.random.get_rng_state(), random_states[0])
    assert random.getstate() == random_states[1]


class Endless(Sampler[int]):
    """As those of trainings: it has no length and never ends."""

    def __init__(self) -> None:
        pass

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from range(6)


class Shuffling(Some):
    def __iter__(self) -> Iterator[Any]:
        found = list(self.indices)
        random.shuffle(found)
        return iter(found)


class Batches(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter(TASK.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"sampler": RandomSampler(range(6), num_samples=2)},
            "its loader's RandomSampler gives other cases",
        ),
        ({"sampler": WeightedRandomSampler([1.0] * 6, 60)}, "its loader's WeightedRandomSampler gives other cases"),
        ({"batch_sampler": Shuffling([[0, 1], [2, 3], [4], [5]] * 5)}, "its loader's Shuffling gives other batches"),
    ],
    ids=["few", "weighted", "batches"],
)
def test_a_sampler_that_draws_is_refused(arguments: dict[str, Any], message: str) -> None:
    evaluator = TASK.evaluator(val_data_loader=loader(**arguments))
    with pytest.raises(ValueError, match=message):
        CaseByCase(evaluator, ATTACKS, diagnose=False, progress=False).run()


@pytest.mark.parametrize("way", ["by runs", "by cases", "in one pass"])
@pytest.mark.parametrize("kind", ["too long", "endless", "iterable"])
def test_what_has_no_end_or_would_come_twice_is_refused(way: str, kind: str) -> None:
    given = {
        "too long": {"val_data_loader": loader(2), "epoch_length": 4},
        "endless": {"val_data_loader": loader(2, sampler=Endless())},
        "iterable": {"val_data_loader": DataLoader(Batches(), batch_size=2)},
    }[kind]
    message = {
        "too long": "expected an epoch_length of at most the 3 batches of its loader, each once; got 4",
        "endless": "evaluator: its loader, a DataLoader, has no length",
        "iterable": "evaluator: its loader, a DataLoader, has no length",
    }[kind]
    more = {"attacks": ATTACKS, "progress": False} if way == "in one pass" else {}
    evaluator = TASK.evaluator(AttackEvaluator if more else type(TASK.evaluator()), **given, **more)
    evaluator.state.epoch_length = given.get("epoch_length")  # type: ignore[attr-defined]

    def run() -> None:
        if way == "in one pass":
            evaluator.run()
        elif way == "by runs":
            evaluate_robustness(evaluator, ATTACKS, diagnose=False, progress=False)
        else:
            CaseByCase(evaluator, ATTACKS, diagnose=False, progress=False).run()

    with pytest.raises(ValueError, match=message):
        run()


def test_without_an_end_but_with_an_epoch_length() -> None:
    for given in (loader(2, sampler=Endless()), DataLoader(Batches(), batch_size=2)):
        evaluator = TASK.evaluator(val_data_loader=given, epoch_length=2)
        reports = [
            evaluate_robustness(evaluator, ATTACKS, diagnose=False, progress=False),
            CaseByCase(evaluator, ATTACKS, diagnose=False, progress=False).run(),
        ]
        assert [row["case"] for row in reports[0].cases] == [f"case_{i}.nii.gz" for i in range(4)] * 2
        assert reports[0].cases == reports[1].cases


def test_names_of_items_beside_one_that_cannot_be_read() -> None:
    """The second of three in a batch: the third keeps its own number."""

    class Broken(Dataset):
        def __getitem__(self, index: int) -> Any:
            if index == 1:
                raise ValueError("cut off")
            item = super().__getitem__(index)
            return {"image": item["image"].as_tensor(), "label": item["label"]}

    evaluator = TASK.evaluator(val_data_loader=DataLoader(Broken(TASK.items()), batch_size=3))
    run = CaseByCase(evaluator, ATTACKS, diagnose=False, progress=False)
    run.run()
    assert run.state.names == ["/data/case_0.nii.gz"] + [f"/data/case_{i}.nii.gz" for i in (2, 3, 4, 5)]
    assert [failure.case for failure in run.failures] == ["/data/case_1.nii.gz"]


def test_another_loader_for_a_while() -> None:
    evaluator = TASK.evaluator(val_data_loader=loader(2), epoch_length=2)
    own = evaluator.data_loader

    class Stop(Exception):
        pass

    def fail() -> None:
        with other_loader(evaluator, loader(1)):
            assert (evaluator.state.epoch_length, len(evaluator.data_loader)) == (6, 6)
            raise Stop

    with pytest.raises(Stop, match=""):
        fail()
    assert (evaluator.data_loader, evaluator.state.epoch_length) == (own, 2)


def test_a_plan_of_fewer_batches() -> None:
    batches = list(plan(loader(4), "image", 1))
    assert [planned.indices for planned in batches] == [(0, 1, 2, 3)]
    assert count(loader(4), 1) == 1
    assert count(TASK.batches(2), 2) == 2
    assert len(list(plan(TASK.batches(2), "image", 2))) == 2


def test_one_by_one_and_the_places_in_the_data() -> None:
    """What makes a case in another way, such as from a file, is told where in the data it is."""
    evaluator = TASK.evaluator(val_data_loader=loader(2, sampler=Some([4, 0, 2, 5, 1])), epoch_length=2)
    single = one_by_one(evaluator)
    assert index_batches(single) == [(4,), (0,), (2,), (5,)]
    seen: list[Any] = []

    def made(run: str, engine: Any, batch: Any, generator: torch.Generator) -> Any:
        seen.append((engine.state.indices, engine.state.first_batch))
        return attack_batch(engine, ATTACKS[run], batch, generator=generator)

    with other_loader(evaluator, single):
        CaseByCase(evaluator, ATTACKS, made=made, diagnose=False, progress=False).run()
    assert seen == [((4,), 0), ((0,), 1), ((2,), 2), ((5,), 3)]
    assert not hasattr(evaluator.state, "indices")


def test_a_sampler_that_deals_out_to_a_group_is_read_as_one_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards deal out what is left; without a group, the share of a rank is what the loader gives."""
    sampler = DistributedSampler(TASK.items(), num_replicas=2, rank=1, shuffle=False)
    dealt = loader(sampler=sampler)
    assert index_batches(dealt, len(dealt)) == [(1,), (3,), (5,)]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert index_batches(dealt, len(dealt)) == [(i,) for i in range(6)]
    assert index_batches(dealt, 2) == [(0,), (1,), (2,), (3,)]
