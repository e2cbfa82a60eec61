"""Two processes of a group give the table of one, to the last digit, also after one of them was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks
from ranks import QUIET, TASKS, by_case, evaluator_of

from monai_smia.engines import evaluate_robustness
from monai_smia.engines.progress_log import read_log


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return ranks.run(folder)


@pytest.mark.parametrize("name", TASKS)
def test_a_sampler_deals_the_cases_out_and_every_one_counts_once(found: list[dict[str, Any]], name: str) -> None:
    """Five cases, with and without the sampler's padding: rows, metrics, details and findings."""
    expected = evaluate_robustness(evaluator_of(TASKS[name]), TASKS[name].attacks(), **QUIET)
    assert [row["case"] for row in expected.cases[:5]] == [f"case_{i}.nii.gz" for i in range(5)]
    for results in found:
        assert results[f"{name} even=True"] == expected
        assert results[f"{name} even=False"] == expected


@pytest.mark.parametrize("name", TASKS)
def test_case_by_case_each_process_takes_a_shard(found: list[dict[str, Any]], name: str) -> None:
    expected = by_case(TASKS[name]).run()
    assert expected == evaluate_robustness(evaluator_of(TASKS[name], batch_size=2), TASKS[name].attacks(), **QUIET)
    for results in found:
        assert results[f"{name} by case"] == expected


def test_a_killed_process_goes_on(found: list[dict[str, Any]]) -> None:
    expected = by_case(TASKS["segmentation"], batch_size=1).run()
    for results in found:
        assert results["resumed"] == expected


def test_cases_in_both_processes_are_refused(found: list[dict[str, Any]]) -> None:
    for results in found:
        assert results["doubled"].startswith("evaluator: expected every case in one process")


def test_an_evaluator_in_one_pass_reports_no_part_for_the_whole(found: list[dict[str, Any]]) -> None:
    for results in found:
        assert results["one pass"].startswith("report: expected one process; got 2")


def test_each_process_kept_its_own_batches(found: list[dict[str, Any]], folder: Path) -> None:
    done = {file.name: read_log(file).progress.done for file in (folder / "killed").glob("*.pt")}
    assert done == {"shard-1-of-2.pt": [0, 2, 4], "shard-2-of-2.pt": [1, 3]}


def test_what_one_process_refuses_all_refuse(found: list[dict[str, Any]]) -> None:
    assert ["holds an earlier run" in results["refused"] for results in found] == [True, True]
    assert found[1]["refused"].startswith("rank 0: FileExistsError: folder:")
