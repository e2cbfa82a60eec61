# SPDX-License-Identifier: Apache-2.0
"""The shared rule: against slices of the sorted groups, disjoint by patient, nothing lost."""

from __future__ import annotations

import random
from itertools import chain

import pytest

from monai_smia.data.splits import SPLITS, split_by_rule, split_of_groups


def cases_of(patients: int, seed: int) -> list[dict[str, str]]:
    """One to four shuffled images of each patient."""
    generator = random.Random(seed)
    cases = [
        {"image": f"{patient}_{i}", "patient": f"{patient:03d}"}
        for patient in range(patients)
        for i in range(generator.randint(1, 4))
    ]
    generator.shuffle(cases)
    return cases


@pytest.mark.parametrize("patients", [6, 10, 37, 100])
def test_the_rule_takes_every_tenth_group(patients: int) -> None:
    cases = cases_of(patients, seed=patients)
    groups = sorted({case["patient"] for case in cases})
    found = {
        split: sorted({case["patient"] for case in split_by_rule(cases, split, lambda case: case["patient"])})
        for split in SPLITS
    }
    assert found["test"] == groups[0::10]
    assert found["validation"] == groups[5::10]
    assert sorted(chain.from_iterable(found.values())) == groups


def test_splits_are_disjoint_by_patient_and_lose_no_case() -> None:
    cases = cases_of(53, seed=0)
    parts = {split: split_by_rule(cases, split, lambda case: case["patient"]) for split in SPLITS}
    patients = [{case["patient"] for case in part} for part in parts.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 53
    assert sorted(c["image"] for part in parts.values() for c in part) == sorted(c["image"] for c in cases)


def test_the_order_of_the_cases_does_not_matter() -> None:
    cases = cases_of(30, seed=1)
    one = split_by_rule(cases, "test", lambda case: case["patient"])
    two = split_by_rule(cases[::-1], "test", lambda case: case["patient"])
    assert sorted(case["image"] for case in one) == sorted(case["image"] for case in two)
    assert [case["patient"] for case in one] == sorted(case["patient"] for case in one)


def test_split_of_groups_counts_each_group_once() -> None:
    names = [f"{i:02d}" for i in range(20)]
    assert split_of_groups(names * 3) == split_of_groups(reversed(names))
    assert [name for name, split in split_of_groups(names).items() if split != "training"] == ["00", "05", "10", "15"]


@pytest.mark.parametrize("split", ["train", "", None])
def test_unknown_split_lists_what_exists(split: str) -> None:
    with pytest.raises(ValueError, match="split: .* does not exist; there are training, validation, test"):
        split_by_rule(cases_of(10, seed=0), split, lambda case: case["patient"])


def test_a_split_that_the_rule_leaves_empty_is_an_error() -> None:
    with pytest.raises(ValueError, match="'validation' has no case: the rule gives it none of 5 groups"):
        split_by_rule(cases_of(5, seed=0), "validation", lambda case: case["patient"])
