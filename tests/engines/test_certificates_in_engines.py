"""Certificates of an evaluation are those of `certify` on its images, whatever the batches and interruptions."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluators import Task
from monai.data import DataLoader, Dataset
from monai.inferers import SlidingWindowInferer
from monai.utils import OptionalImportError

from monai_smia.certificates import TooFewSamples, binomial, certify
from monai_smia.engines import CaseByCase, evaluate_robustness
from monai_smia.intensity import IntensityScale
from monai_smia.reports import RobustnessReport

HU = IntensityScale(-1000, 400, clip=True)
TASKS = {
    "2d-segmentation": Task(2),
    "3d-segmentation": Task(3),
    "2d-classification": Task(2, dense=False),
}
WANTED = {"sigma": 0.1, "samples": 80, "first_samples": 20, "tau": 0.6}
QUIET: dict[str, Any] = {"intensity": HU, "progress": False}


def directly(task: Task, seed: int, inferer: Any = None) -> tuple[dict[str, Any], ...]:
    """Image by image, without an engine."""
    rows: list[dict[str, Any]] = []
    for i, item in enumerate(task.items()):
        name = f"case_{i}.nii.gz"
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        label = torch.as_tensor(item["label"])[None]
        network, image = task.network(), item["image"][None]
        certificate = certify(network, image, task.loss(), inferer=inferer, generator=generator, **WANTED, **QUIET)
        rows += certificate.to_rows(label, names=[name])
    return tuple(rows)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_rows_are_those_of_certify(task: Task, batch_size: int) -> None:
    expected = directly(task, seed=3)
    loader = {"val_data_loader": DataLoader(Dataset(task.items()), batch_size=batch_size)}
    evaluator = task.evaluator(**loader)
    torch.manual_seed(0)
    report = evaluate_robustness(evaluator, task.attacks(), certify=WANTED, seed=3, **QUIET)
    assert report.certificates == expected
    assert {row["unit"] for row in report.certificates} == {"HU"}
    assert {row["case"] for row in report.certificates} == {row["case"] for row in report.cases}
    state = torch.get_rng_state()
    torch.manual_seed(0)
    plain = task.evaluator(**loader)
    without = evaluate_robustness(plain, task.attacks(), seed=3, **QUIET)
    assert (without.metrics, without.cases, without.certificates) == (report.metrics, report.cases, ())
    assert [module.training for module in plain.network.modules()] == [m.training for m in evaluator.network.modules()]
    assert torch.equal(torch.get_rng_state(), state)  # the loader's own draw alone
    by_case = CaseByCase(task.evaluator(**loader), task.attacks(), certify=WANTED, seed=3, **QUIET).run()
    assert by_case == report


def test_a_killed_run_goes_on_with_the_same(tmp_path: Path) -> None:
    task = TASKS["2d-segmentation"]

    def runner(**more: Any) -> CaseByCase:
        loader = {"val_data_loader": DataLoader(Dataset(task.items()), batch_size=1)}
        evaluator = task.evaluator(**loader)
        return CaseByCase(evaluator, task.attacks(), certify=WANTED, folder=tmp_path, **QUIET, **more)

    first, calls = runner(), list[str]()
    certified = first._certified

    def killed(batch: Any, names: Any) -> Any:
        calls.extend(names)
        if len(calls) == 2:
            raise KeyboardInterrupt("planted")
        return certified(batch, names)

    first._certified = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match="planted"):
        first.run()
    again = runner(resume=True)
    assert [Path(row["case"]).name for row in again.state.certificates] == ["case_0.nii.gz"]
    report = again.run()
    assert report.certificates == directly(task, seed=0)
    assert again.state.seconds["certificates"] > 0
    report.save(tmp_path / "report")
    assert RobustnessReport.load(tmp_path / "report").certificates == report.certificates


def test_through_the_evaluators_sliding_window() -> None:
    task = TASKS["2d-segmentation"]
    windows = SlidingWindowInferer((6, 5), sw_batch_size=2, overlap=0.5)
    report = evaluate_robustness(task.evaluator(inferer=windows), task.attacks(), certify=WANTED, **QUIET)
    assert report.certificates == directly(task, 0, windows)
    assert report.certificates != directly(task, 0)


def test_a_case_that_cannot_be_certified_is_named() -> None:
    """Its attacks are left out as well: every row of the report has the same cases."""
    task = TASKS["2d-segmentation"]
    run = CaseByCase(task.evaluator(batch_size=1), task.attacks(), certify=WANTED, **QUIET)
    certified = run._certified

    def broken(batch: Any, names: Any) -> Any:
        if names[0].endswith("case_1.nii.gz"):
            raise ValueError("no certificate")
        return certified(batch, names)

    run._certified = broken  # type: ignore[method-assign]
    report = run.run()
    (failure,) = run.failures
    assert (Path(failure.case).name, failure.stage) == ("case_1.nii.gz", "certificates")
    assert {row["case"] for row in report.cases} == {"case_0.nii.gz", "case_2.nii.gz"}
    assert {row["case"] for row in report.certificates} == {"case_0.nii.gz", "case_2.nii.gz"}


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ({}, ValueError, "certify: expected sigma, and of .* any; got no sigma"),
        ({"sigma": 0.1, "n": 100}, ValueError, "certify: expected sigma, and of .*samples.* any; got n"),
        ({"sigma": 0.1, "inferer": None}, ValueError, "got inferer"),
        (0.1, TypeError, "certify: expected arguments by name"),
    ],
)
def test_what_is_wrong_is_said_before_the_run(wanted: Any, error: type[Exception], message: str) -> None:
    task = TASKS["2d-segmentation"]
    evaluator, passes = task.evaluator(), list[Any]()
    evaluator.network.register_forward_pre_hook(lambda module, inputs: passes.append(inputs))
    with pytest.raises(error, match=message):
        evaluate_robustness(evaluator, task.attacks(), certify=wanted, progress=False)
    assert passes == []


@pytest.mark.parametrize("way", [CaseByCase, evaluate_robustness])
def test_what_cannot_certify_is_said_before_any_attack(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TASKS["2d-segmentation"]

    def attempt(samples: int) -> None:
        made = way(task.evaluator(), task.attacks(), certify={**WANTED, "samples": samples}, **QUIET)
        if isinstance(made, CaseByCase):
            made.run()

    attacked: list[Any] = []
    for attack in set(map(type, task.attacks().values())):
        monkeypatch.setattr(attack, "__call__", lambda *args, **kwargs: attacked.append(args))
    with pytest.raises(TooFewSamples, match="samples: expected at least .*; got 5"):
        attempt(5)
    monkeypatch.setattr(binomial, "_HAS_SCIPY", False)
    with pytest.raises(OptionalImportError, match=r"certify: needs scipy.*monai-smia\[certificates\]"):
        attempt(80)
    assert attacked == []
