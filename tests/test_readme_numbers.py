# SPDX-License-Identifier: Apache-2.0
"""The quickstart's numbers in README, figure and bundle page are those of the present weights, data and attacks."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from benchmarks._readme_parts import CURVE, PARTS, README, between, curve_digest, quickstart_words
from benchmarks.readme_numbers import NUMBERS, QUICKSTART, ROOT, SEEDS, differences, made_of, probe

AGAIN = "`make readme` measures and writes them anew"


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    return dict(json.loads(NUMBERS.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    return {"made_of": made_of(), "probe": probe()}


def test_the_numbers_are_of_what_there_is(numbers: dict[str, Any], now: dict[str, Any]) -> None:
    """Finding B18: other weights, data, defaults or steps of an attack than those that were measured."""
    assert differences(numbers, now) == [], AGAIN


def test_other_weights_defaults_and_steps_are_noticed(numbers: dict[str, Any], now: dict[str, Any]) -> None:
    """The test above can fail."""
    for change, said in (
        (("made_of", "files", "models/model.pt", "0" * 64), ["files: models/model.pt"]),
        (("made_of", "attacks", "SMIA", "SMIA(stabilization_weight=0.5)"), ["attacks: SMIA"]),
        (("made_of", "attacks", "New", "New()"), ["attacks: New"]),
    ):
        other = copy.deepcopy(now)
        other[change[0]][change[1]][change[2]] = change[3]
        assert differences(now, other) == said
    other = copy.deepcopy(now)
    other["probe"]["PGD"] *= 1.01
    assert differences(now, other)[0].startswith("two steps of PGD: ")
    assert len(differences({}, now)) > 10


@pytest.mark.parametrize(("file", "name"), PARTS, ids=lambda value: str(value))
def test_every_part_is_that_of_the_numbers(numbers: dict[str, Any], file: Any, name: str) -> None:
    made = PARTS[file, name](numbers)
    assert between((ROOT / file).read_text(encoding="utf-8"), name) == made, AGAIN


def test_the_figure_is_drawn_from_the_numbers(numbers: dict[str, Any]) -> None:
    assert curve_digest(numbers) in (ROOT / CURVE).read_text(encoding="utf-8"), AGAIN


def test_chaotic_numbers_have_their_range(numbers: dict[str, Any]) -> None:
    text = between((ROOT / README).read_text(encoding="utf-8"), "quickstart table")
    for name in QUICKSTART["names"]:
        values = [numbers["runs"][f"{name}_50HU_seed{seed}"]["mean"] for seed in SEEDS]
        if f"{min(values):.3f}" != f"{max(values):.3f}":
            assert f"({min(values):.3f} to {max(values):.3f} over {len(SEEDS)} seeds)" in text


def test_the_sentence_ranks_by_the_numbers() -> None:
    """By rule: alike where the ranges over seeds touch, more or less damage where they do not."""
    runs = {}
    for name, at_50 in (("SMIA", (0.39, 0.41, 0.40)), ("PGD", (0.43, 0.44, 0.45)), ("GaussianNoise", (0.98,) * 3)):
        for eps, value in ((5, 0.95), (20, {"SMIA": 0.86, "PGD": 0.84}.get(name, 0.98))):
            runs[f"{name}_{eps}HU_seed0"] = {"mean": 0.98 if name == "GaussianNoise" else value}
        runs |= {f"{name}_50HU_seed{seed}": {"mean": value} for seed, value in enumerate(at_50)}
    words = quickstart_words({"clean": {"mean": 0.98}, "runs": runs})
    assert words.startswith("Noise of the same size does nothing. At 20 HU the stronger attack leaves a mean Dice of ")
    assert " of 0.84 of 0.98, at 50 HU 0.39. " in words
    assert "SMIA and PGD do the same at 5 HU." in words
    assert "SMIA does less damage than PGD at 20 HU." in words
    assert "SMIA does more damage than PGD at 50 HU." in words
    runs["SMIA_50HU_seed1"]["mean"] = 0.44
    assert "SMIA and PGD do the same at 5 and 50 HU." in quickstart_words({"clean": {"mean": 0.98}, "runs": runs})
