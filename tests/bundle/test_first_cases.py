"""A bad case is one failure wherever it stands, the first places included; the evaluator is left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from evaluators import Task
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, PersistentDataset
from torch.utils.data import SubsetRandomSampler

from monai_smia.attacks import PGD, GaussianNoise
from monai_smia.bundle import evaluate_under_attack
from monai_smia.bundle.cases import ChosenCases
from monai_smia.engines.distributed import Together
from monai_smia.handlers.batch import attack_batch

TASK = Task(cases=4)


class Unreadable(Dataset):
    """Items without an image cannot be read."""

    def __getitem__(self, index: int) -> Any:
        item = super().__getitem__(index)
        if "image" not in item:
            raise ValueError("the file is cut off")
        return item


def spoiled(item: dict[str, Any], kind: str) -> dict[str, Any]:
    meta = item["image"].meta
    image, label = item["image"].as_tensor().clone(), item["label"].clone()
    if kind == "unreadable":
        return {"label": label}
    if kind == "NaN":
        image[0, 0, 0] = torch.nan
    elif kind == "infinite":
        image[0, 0, 0] = torch.inf
    elif kind == "outside the bounds":
        image[0, 0, 0] = 7.0
    elif kind == "label out of range":
        label[0, 0, 0] = 200
    elif kind == "label of another size":
        label = label[:, :-2]
    elif kind == "channels":
        image = image.repeat(3, 1, 1)
    elif kind == "rank":
        image = image[..., None]
    return {"image": MetaTensor(image, meta=meta), "label": label}


KINDS = (
    "unreadable",
    "NaN",
    "infinite",
    "outside the bounds",
    "label out of range",
    "label of another size",
    "channels",
    "rank",
)


def evaluated(data: list[dict[str, Any]], folder: Path, **arguments: Any) -> Any:
    evaluator = TASK.evaluator(val_data_loader=DataLoader(Unreadable(data), batch_size=1))
    given: dict[str, Any] = {"attacks": ["PGD"], "eps": "0.02net", "bounds": (0, 1), "steps": 2, **arguments}
    return evaluate_under_attack(evaluator, loss_function=TASK.loss(), out=folder, views=0, progress=False, **given)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_first_case_is_left_out_as_any_other(tmp_path: Path, kind: str) -> None:
    """The numbers are those of the three good cases, and the same as where the bad one comes third."""
    bad, *good = TASK.items()
    outcome = evaluated([spoiled(bad, kind), *good], tmp_path / "first")
    assert len(outcome.failures) == 1
    expected = evaluated(good, tmp_path / "good")
    assert expected.failures == ()
    assert outcome.report.metrics.keys() == expected.report.metrics.keys()
    third = evaluated([*good[:2], spoiled(bad, kind), good[2]], tmp_path / "third")
    assert len(third.failures) == 1
    assert third.failures[0].error == outcome.failures[0].error
    for found in (outcome, third):
        assert found.report.metrics["clean"] == expected.report.metrics["clean"]
        assert [row["case"] for row in found.report.cases] == [row["case"] for row in expected.report.cases]
        assert found.report.findings[:1] == expected.report.findings[:1]  # the doctor saw a good case


def test_where_all_of_the_first_fail_the_reason_is_said(tmp_path: Path) -> None:
    data = [spoiled(item, "channels") for item in TASK.items()]
    with pytest.raises(RuntimeError, match="expected input.*to have 1 channels, but got 3 channels"):
        evaluated(data, tmp_path / "a")
    data = [spoiled(item, "NaN") for item in TASK.items()]
    with pytest.raises(ValueError, match="image: expected finite values; got NaN or infinity"):
        evaluated(data, tmp_path / "b")
    assert not (tmp_path / "a").exists()


def test_errors_of_the_machine_are_not_taken_for_those_of_a_case(tmp_path: Path) -> None:
    evaluator = TASK.evaluator()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    evaluator.network.register_forward_pre_hook(full)
    with pytest.raises(OSError, match="No space left"):
        evaluate_under_attack(evaluator, ["PGD"], "0.02net", bounds=(0, 1), out=tmp_path / "a", progress=False)


def known(dataset: Any) -> list[int]:
    """The numbers of its cases in the whole."""
    files = [item["image"].meta["filename_or_obj"] for item in dataset]
    return [int(file.split("_")[1].split(".")[0]) for file in files]


@pytest.mark.parametrize("kind", ["Dataset", "CacheDataset", "PersistentDataset"])
@pytest.mark.parametrize("fails", [False, True])
def test_cases_leave_the_evaluator_and_its_data(tmp_path: Path, kind: str, fails: bool) -> None:
    """Loader, length, list of data and cache on disk are as they were; the numbers are those of the cases."""
    cache = tmp_path / "cache"
    dataset = {
        "Dataset": lambda: Dataset(TASK.items()),
        "CacheDataset": lambda: CacheDataset(TASK.items(), lambda item: item, progress=False),
        "PersistentDataset": lambda: PersistentDataset(TASK.items(), lambda item: item, cache_dir=cache),
    }[kind]()
    evaluator = TASK.evaluator(val_data_loader=DataLoader(dataset, batch_size=2))
    loader, data = evaluator.data_loader, dataset.data
    list(dataset)
    before = sorted(cache.glob("*"))
    if fails:
        with pytest.raises(ValueError, match="eps: "):
            evaluate_under_attack(evaluator, ["PGD"], "5HU", cases=2, out=tmp_path / "a", progress=False)
    else:
        wanted = {"bounds": (0, 1), "loss_function": TASK.loss(), "out": tmp_path / "a", "views": 0, "progress": False}
        outcome = evaluate_under_attack(evaluator, ["PGD"], "0.02net", cases=2, **wanted)
        assert len({row["case"] for row in outcome.report.cases}) == 2
    assert evaluator.data_loader is loader
    assert evaluator.state.epoch_length == 2
    assert dataset.data is data
    assert len(dataset) == TASK.cases
    assert sorted(cache.glob("*")) == before


def test_cases_are_those_that_the_loader_gives(tmp_path: Path) -> None:
    sampler = SubsetRandomSampler([3, 1, 2])
    evaluator = TASK.evaluator(val_data_loader=DataLoader(Dataset(TASK.items()), batch_size=1, sampler=sampler))
    wanted = {"bounds": (0, 1), "loss_function": TASK.loss(), "views": 0, "progress": False}
    found = evaluate_under_attack(evaluator, ["PGD"], "0.02net", cases=2, out=tmp_path / "a", **wanted)
    assert [row["case"] for row in found.report.cases[:2]] == ["case_1.nii.gz", "case_2.nii.gz"]
    with pytest.raises(ValueError, match=r"cases: expected names of the 3 cases .*; got \['case_0'\]"):
        evaluate_under_attack(evaluator, ["PGD"], "0.02net", cases="case_0", out=tmp_path / "b", **wanted)


def test_chosen_cases_are_a_view() -> None:
    dataset = Dataset(TASK.items(), lambda item: {**item, "seen": True})
    chosen = ChosenCases(dataset, [2, 0])
    assert known(chosen) == [2, 0]
    assert [item["image"] is dataset.data[i]["image"] for item, i in zip(chosen.data, (2, 0), strict=True)] == [
        True
    ] * 2
    assert chosen[0]["seen"]
    assert chosen.transform is dataset.transform


FINISHED = {"still": GaussianNoise(TASK.loss(), eps=0.0)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attacks": FINISHED, "eps": "0.1net"}, "eps: would have no effect: finished attacks have their own"),
        ({"attacks": FINISHED, "unit": "net"}, "unit: would have no effect: finished"),
        ({"attacks": FINISHED, "steps": 3}, "steps: would have no effect: finished"),
        ({"attacks": FINISHED, "bounds": (0, 1)}, "bounds: would have no effect: finished"),
        ({"attacks": FINISHED, "tolerance": 1.0}, "tolerance: would have no effect: finished"),
        ({"attacks": FINISHED, "options": {"PGD": {"norm": 2}}}, "options: would have no effect: finished"),
        ({"attacks": FINISHED, "norm": 2}, "norm: would have no effect: finished"),
        ({"attacks": FINISHED, "value_range": (0, 1)}, "value_range: would have no effect: the intensity is not read"),
        ({"attacks": "PGD", "unit": "net"}, "unit: would have no effect: it is the unit of the numbers in eps"),
        ({"attacks": "GaussianNoise", "eps": "0.1net", "steps": 3}, "steps: would have no effect: expected an attack"),
        ({"attacks": "PGD", "eps": "0.1net", "targets": 1}, "targets: would have no effect: expected an attack"),
        (
            {"attacks": "PGD", "eps": "0.1net", "tolerance": 1.0},
            "tolerance: would have no effect: it is for a reg",
        ),
    ],
    ids=str,
)
def test_no_argument_is_passed_over(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    arguments = {"bounds": (0, 1)} if given["attacks"] is not FINISHED else {}
    with pytest.raises((ValueError, TypeError), match=message):
        evaluate_under_attack(TASK.evaluator(), out=tmp_path / "a", progress=False, **{**arguments, **given})
    assert not (tmp_path / "a").exists()


def test_a_unit_is_for_numbers_in_a_text_too(tmp_path: Path) -> None:
    wanted = {"bounds": (0, 1), "views": 0, "progress": False, "diagnose": False}
    found = evaluate_under_attack(
        TASK.evaluator(), ["PGD"], "1, 2,0.5net", unit="%", out=tmp_path / "a", loss_function=TASK.loss(), **wanted
    )
    assert set(found.report.attacks) == {"PGD_1%", "PGD_2%", "PGD_0.5intensity"}


def test_a_prepare_batch_that_changes_one_voxel_is_refused() -> None:
    """Not only one that changes all of them."""
    evaluator = TASK.evaluator()

    def one_voxel(batch: Any, *args: Any, **kwargs: Any) -> Any:
        image = batch["image"].clone()
        image[1, 0, 2, 3] += 0.5
        return image, batch["label"]

    evaluator.prepare_batch = one_voxel
    batch = next(iter(evaluator.data_loader))
    with pytest.raises(ValueError, match="image_key: the engine's prepare_batch does not hand"):
        attack_batch(evaluator, PGD(TASK.loss(), eps=0.1, bounds=(0, 1)), batch)


def test_one_process_has_the_same_file_names_in_several_folders() -> None:
    """Nothing is to be put together, so that nothing is refused, and names need not be unique."""
    together = Together(TASK.evaluator(), ["/a/image.nii", "/b/image.nii", "/b/image.nii"])
    together.sort_metrics()
