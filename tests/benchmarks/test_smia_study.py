# SPDX-License-Identifier: Apache-2.0
"""The SMIA study: nothing is lost or repeated after a kill, and its numbers are what they are called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import _study_work
from benchmarks._study_attacks import CLEAN, Spec, authors, readings, study
from benchmarks._study_numbers import Measured, interval, paired, pooled, read
from benchmarks._study_records import Records
from benchmarks._study_runs import measure
from benchmarks._study_tables import render
from benchmarks._study_victims import Victim, box_score, chosen_cases, class_probability, dice
from benchmarks._study_views import jpeg, resampled, smoothed
from benchmarks._study_work import Job, run
from monai_smia.attacks import BIM, SMIA

NAME = "chest_xray_segmentation"
SPECS = [CLEAN, Spec("FGSM", "FGSM"), Spec("BIM-10", "BIM", {"steps": 10}, keep=True)]


class Images(torch.utils.data.Dataset[Any]):
    """Four images of 8 x 8 and the mask that the network below gives them."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.images = torch.rand(4, 1, 8, 8, generator=draw)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[index], (self.images[index] > 0.5).float()


def victim(model: str = "first") -> Victim:
    network = torch.nn.Conv2d(1, 1, 1)
    torch.nn.init.constant_(network.weight, 4.0)
    assert network.bias is not None
    torch.nn.init.constant_(network.bias, -2.0)
    loader = torch.utils.data.DataLoader(Images())
    evaluator = SimpleNamespace(data_loader=loader, prepare_batch=lambda batch, *_: (batch[0], batch[1]))
    return Victim(
        NAME,
        model,
        f"digest of {model}",
        evaluator,
        network.eval(),
        torch.nn.BCEWithLogitsLoss(),
        None,
        lambda image, net: net(image),
        0.1,
        (0.0, 1.0),
    )


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, str]]:
    """The study on a tiny network; the measurements that were made are noted."""
    made: list[tuple[str, int, str]] = []

    @contextmanager
    def open_tiny(name: str, model: str, out: Path, split: str) -> Iterator[Victim]:
        yield victim(model)

    def noted(spec: Spec, hurt: Victim, other: Victim, case: int, changes: Path) -> dict[str, Any]:
        row = measure(spec, hurt, other, case, changes)
        made.append((hurt.model, case, spec.name))
        return row

    monkeypatch.setattr(_study_work, "opened", open_tiny)
    monkeypatch.setattr(_study_work, "measure", noted)
    for name in ("study", "transferred_back", "stability_specs"):
        monkeypatch.setattr(_study_work, name, lambda task, name=name: SPECS if name != "stability_specs" else [])
    return made


def job(out: Path, shard: int = 0, shards: int = 1) -> Job:
    return Job((NAME,), "validation", 4, shard, shards, str(out))


def test_a_killed_study_goes_on_without_losing_or_repeating_anything(
    tiny: list[tuple[str, int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    run(job(whole))
    wanted = {
        (model, case, spec.name)
        for model, cases in (("first", 4), ("second", 2))
        for spec in SPECS
        for case in chosen_cases(4, 4)[:cases]
    }
    assert set(tiny) == wanted
    assert len(tiny) == len(wanted) == 18
    tiny.clear()
    noted = _study_work.measure

    def killed(*arguments: Any) -> Any:
        if len(tiny) == 7:
            raise KeyboardInterrupt("planted")
        return noted(*arguments)

    cut = tmp_path / "cut"
    monkeypatch.setattr(_study_work, "measure", killed)
    with pytest.raises(KeyboardInterrupt, match="planted"):
        run(job(cut))
    file = cut / "validation" / NAME / "records-0.jsonl"
    with open(file, "ab") as stream:
        stream.write(b'{"model": "first", "case": 0, "atta')  # the kill came in the middle of a line
    monkeypatch.setattr(_study_work, "measure", noted)
    run(job(cut))
    assert len(tiny) == 18
    assert set(tiny) == wanted
    assert Records(cut / "validation" / NAME).read() == Records(whole / "validation" / NAME).read()


def test_two_processes_share_the_work(tiny: list[tuple[str, int, str]], tmp_path: Path) -> None:
    run(job(tmp_path / "one"))
    once = len(tiny)
    for shard in range(2):
        run(job(tmp_path / "two", shard, 2))
    assert len(tiny) == 2 * once
    one, two = (Records(tmp_path / name / "validation" / NAME).read() for name in ("one", "two"))
    assert one == two


def test_a_record_of_other_weights_is_measured_anew(tiny: list[tuple[str, int, str]], tmp_path: Path) -> None:
    run(job(tmp_path))
    file = tmp_path / "validation" / NAME / "records-0.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["of"] = "something else"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny.clear()
    run(job(tmp_path))
    assert tiny == [(rows[0]["model"], rows[0]["case"], rows[0]["attack"])]


def test_a_measurement_says_what_the_attack_did(tmp_path: Path) -> None:
    hurt = victim()
    image, target = hurt.case(1)
    row = measure(Spec("BIM-3", "BIM", {"steps": 3}), hurt, victim("second"), 1, tmp_path)
    result = BIM(hurt.loss, eps=0.1, steps=3, bounds=(0.0, 1.0))(hurt.network, image, target)
    hard = hurt.network(result.adversarial) > 0
    true = target > 0.5
    assert row["score"] == pytest.approx(float(2 * (hard & true).sum() / (hard.sum() + true.sum())))
    assert row["score"] == row["transferred"]
    assert row["loss"] == pytest.approx(float(result.loss))
    assert (row["forward"], row["backward"]) == (4, 3)
    assert row["rms"] == pytest.approx(float((result.adversarial - image).square().mean().sqrt()) / 0.1)
    assert len(row["kl"]) == 2


def test_a_change_that_is_kept_gives_its_variance_over_images(tiny: list[tuple[str, int, str]], tmp_path: Path) -> None:
    run(job(tmp_path))
    found = read(tmp_path, "validation", NAME)
    changes = []
    for case in range(4):
        image, target = victim().case(case)
        result = BIM(victim().loss, eps=0.1, steps=10, bounds=(0.0, 1.0))(victim().network, image, target)
        changes.append(((result.adversarial - image) / 0.1).numpy())
    assert found.over_images("BIM-10") == pytest.approx(np.var(changes, axis=0, ddof=1).mean(), abs=1e-3)
    assert np.isnan(found.over_images("FGSM"))


def test_variances_over_restarts_and_iterations_are_those_of_the_changes(tmp_path: Path) -> None:
    hurt = victim()
    row = measure(Spec("PGD", "PGD", {"steps": 2}, restarts=3), hurt, None, 2, tmp_path)
    image, target = hurt.case(2)
    attack = Spec("PGD", "PGD", {"steps": 2}).build(hurt.loss, eps=0.1, bounds=(0.0, 1.0))
    iterates: list[torch.Tensor] = []
    results = [
        attack(
            hurt.network,
            image,
            target,
            generator=torch.Generator().manual_seed(2000 + seed),
            callback=(lambda trial, _: iterates.append(trial.adversarial)) if seed == 0 else None,
        ).adversarial
        for seed in range(3)
    ]
    over = [torch.cat(stack).sub(image).div(0.1).numpy() for stack in (results, [*iterates[1:], results[0]])]
    assert row["over_restarts"] == pytest.approx(np.var(over[0], axis=0, ddof=1).mean(), rel=1e-4)
    assert row["over_iterations"] == pytest.approx(np.var(over[1], axis=0, ddof=1).mean(), rel=1e-4)


def test_scores_are_what_they_are_called() -> None:
    logits = torch.tensor([[[[3.0, -1.0], [2.0, -2.0]]]])
    assert dice(logits, torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])) == pytest.approx(2 * 2 / 5)
    labels = torch.tensor([[[[0, 1], [2, 2]]]])
    classes = torch.nn.functional.one_hot(torch.tensor([[[0, 1], [1, 2]]]), 3).movedim(-1, 1).float()
    assert dice(classes, labels) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert class_probability(torch.zeros(1, 4), torch.tensor([2])) == pytest.approx(0.25)
    assert class_probability(torch.tensor([[np.log(3.0)]]), torch.tensor([[0.0]])) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("boxes", "scores", "expected"),
    [
        ([[0, 0, 4, 4], [0, 0, 4, 3]], [0.3, 0.9], (0.9 + 0.0) / 2),
        ([[0, 0, 4, 4], [10, 10, 12, 12]], [0.6, 0.2], (0.6 + 0.2) / 2),
        ([[20, 20, 24, 24]], [0.8], 0.0),
        ([], [], 0.0),
    ],
)
def test_the_score_of_boxes_is_that_of_the_best_box_on_each_true_one(
    boxes: list[list[float]], scores: list[float], expected: float
) -> None:
    detector = SimpleNamespace(target_box_key="boxes", pred_score_key="scores")
    found = [{"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "scores": torch.tensor(scores)}]
    heads = SimpleNamespace(detector=detector, detections=lambda prediction: found)
    true = [{"boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0], [10.0, 10.0, 12.0, 12.0]])}]
    assert box_score(heads, None, true) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(1, 1, 15, 18), (1, 3, 16, 16), (1, 1, 9, 12, 5)])
def test_later_changes_keep_the_shape_and_leave_a_flat_image_alone(shape: tuple[int, ...]) -> None:
    flat = torch.full(shape, 51 / 255)
    for change in (smoothed, jpeg, resampled):
        torch.testing.assert_close(change(flat, (0.0, 1.0)), flat, atol=1 / 255, rtol=0)
    wide = flat * 1400 - 1000
    torch.testing.assert_close(jpeg(wide, (-1000.0, 400.0)), wide, atol=1400 / 255, rtol=0)


def test_the_readings_are_the_whole_grid_and_know_their_rivals() -> None:
    grid = list(readings("segmentation"))
    assert len({reading.name for reading in grid}) == len(grid) == 2 * 2 * 2 * 3 * 2
    assert len(list(readings("detection"))) == 24
    for reading in grid[:8]:  # the passes that make BIM its rival
        hurt = victim()
        row = measure(reading.spec(), hurt, None, 0, Path())
        rival = measure(Spec("BIM", "BIM", {"steps": int(reading.rival[4:])}), hurt, None, 0, Path())
        spent, given = row["forward"] + row["backward"], rival["forward"] + rival["backward"]
        assert 0 <= given - spent <= 2


def test_the_preset_is_the_authors() -> None:
    attack = authors("segmentation", 0.3).build(torch.nn.BCEWithLogitsLoss(), eps=0.1)
    assert isinstance(attack, SMIA)
    assert (attack.divergence, attack.dilation, attack.kernel_size, attack.combine) == ("hard", 2, 3, "loss")


def test_differences_are_paired_and_pooled_by_bundle() -> None:
    one, other = {0: 0.5, 1: 0.25, 7: 1.0}, {0: 0.25, 1: 0.0}
    assert paired(one, other) == {0: 0.25, 1: 0.25}
    middle, low, high = pooled([{0: 0.0, 1: 1.0}, {0: 2.0}])
    assert middle == pytest.approx(1.25)  # bundles count the same, whatever their number of cases
    assert (low, high) == (1.0, 1.5)
    assert interval({0: 0.25, 1: 0.25}) == (0.25, 0.25)


def test_damage_is_paired_with_the_clean_case(tmp_path: Path) -> None:
    rows = {"first": {"clean": {0: {"score": 0.9}, 1: {"score": 0.5}}, "FGSM": {0: {"score": 0.4}}}}
    found = Measured(NAME, {**rows, "second": {}}, tmp_path)
    assert found.damage("FGSM") == {0: pytest.approx(0.5)}
    assert found.damage("BIM") == {}


def test_every_table_is_there(
    tiny: list[tuple[str, int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [reading.name for reading in readings("segmentation") if (reading.weight, reading.sigma) == (0.3, 1.0)]
    few = [spec for spec in study("segmentation") if not spec.kind.startswith("SMIA") or spec.name in small]
    monkeypatch.setattr(_study_work, "study", lambda task: few)
    run(job(tmp_path))
    text = render(tmp_path, [NAME], "validation", "command")
    for heading in ("Damage", "Every reading", "three variances", "KL trace", "Transfer", "later change"):
        assert heading in text


def test_the_table_of_the_test_split_has_the_default(tiny: list[tuple[str, int, str]], tmp_path: Path) -> None:
    run(Job((NAME,), "test", 3, 0, 1, str(tmp_path)))
    assert {model for model, *_ in tiny} == {"first"}
    text = render(tmp_path, [NAME], "test", "command")
    assert "| SMIA, default | 20 + 10 |" in text
    assert "| clean |" not in text
