"""The strength benchmarks: intervals, verdicts, violations, costs, what is kept, and what the tables show."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from benchmarks import ensemble, strength
from benchmarks._ensemble_rows import HEADER, Outcome, by_attack, ensemble_row, weaker
from benchmarks._kept import kept
from benchmarks._paired import Difference, difference, mean, median
from benchmarks._strength_attacks import CONTESTS, OURS, PEERS, Contest
from benchmarks.robustness_table import replace_region
from monai_smia.attacks import AutoAttack, WorstOf

# intervals and verdicts


@pytest.mark.parametrize("statistic", [mean, median])
def test_the_interval_is_scipys_paired_bootstrap(statistic: Any) -> None:
    source = np.random.default_rng(3)
    ours = source.normal(size=30)
    theirs = ours + source.normal(0.3, 0.5, size=30)
    found = difference(list(ours), list(theirs), statistic, resamples=4000)
    expected = stats.bootstrap(
        (ours, theirs),
        lambda a, b, axis=-1: statistic(np.asarray(a)) - statistic(np.asarray(b)),
        paired=True,
        method="percentile",
        n_resamples=4000,
        random_state=np.random.default_rng(1),
    ).confidence_interval
    assert found.value == pytest.approx(float(statistic(ours) - statistic(theirs)))
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.03)


def test_of_shifted_cases_the_interval_is_a_point() -> None:
    """Pairs are drawn together, so a constant difference has no spread, however far the cases lie apart."""
    found = difference([0.0, 5.0, 100.0], [1.0, 6.0, 101.0])
    assert (found.value, found.low, found.high) == pytest.approx((-1.0, -1.0, -1.0))


def test_verdicts() -> None:
    """Smaller is stronger; an interval that touches 0 says nothing."""
    assert [
        Difference(0.0, low, high).verdict for low, high in ((-0.3, -0.1), (-0.3, 0.0), (0, 0), (0.0, 0.2), (0.1, 0.2))
    ] == ["stronger", "no difference", "no difference", "no difference", "weaker"]


def test_values_that_cannot_be_compared() -> None:
    for ours, theirs in (([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, math.inf], [1.0, math.inf])):
        with pytest.raises(ValueError, match="ours, theirs: expected as many finite values"):
            difference(ours, theirs)


# strength


def result(wrong: list[bool], norm: float = 0.01, **more: Any) -> dict[str, Any]:
    return {"wrong": wrong, "norm": [norm] * len(wrong), "forward": 21.0, "backward": 20.0, "seconds": 3.4, **more}


def test_a_table_of_each_kind() -> None:
    weak, strong = result([True] * 5 + [False] * 15), result([True] * 15 + [False] * 5)
    close, far = result([True] * 9 + [False], norm=1 / 255), result([True] * 10, norm=2 / 255)
    fixed, searched = strength.tables(
        {
            "pgd": {OURS: strong, "torchattacks": weak, "foolbox": strong, "ART": {"error": "IndexError: 4"}},
            "fmn-l2": {OURS: close, "foolbox": far, "ART": {"error": "has no such attack"}},
        },
        pixels=100,
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in fixed.splitlines()]
    assert tuple(rows[0]) == strength.HEADER
    assert rows[2] == ["PGD", f"**{OURS}**", "25.0", "", "", "21 + 20", "3"]
    assert rows[3][:3] + rows[3][4:] == ["PGD", "torchattacks", "75.0", "stronger", "21 + 20", "3"]
    assert rows[3][3].startswith("-50.0 [-")
    assert rows[4][3:5] == ["+0.0 [+0.0, +0.0]", "no difference"]
    assert rows[5] == ["PGD", "ART", "IndexError: 4", "", "", "", ""]
    norms = [[cell.strip() for cell in line.strip("|").split("|")] for line in searched.splitlines()]
    assert [row[2] for row in norms[2:]] == ["1.000", "2.000", "has no such attack"]
    assert norms[3][3:5] == ["-1.000 [-1.000, -1.000]", "stronger"]


def test_a_case_that_stands_counts_with_the_largest_norm() -> None:
    assert strength.values(result([True, False], norm=0.2), 2.0, 10.0) == [0.2, 10.0]
    assert strength.values(result([True, False]), None, 10.0) == [0.0, 1.0]


class Flip(nn.Module):
    """Class 1 where the mean is over 0.5."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        score = image.flatten(1).mean(1) - 0.5
        return torch.stack((-score, score), 1)


def test_what_is_measured_is_what_the_network_says_of_the_image() -> None:
    """Cases 0.4 and 0.1 under a move of 0.2: one falls. Passes are counted by sample, not by call."""

    def build(network: Any, eps: float, classes: int) -> Any:
        def run(image: torch.Tensor, label: torch.Tensor, seed: int) -> torch.Tensor:
            leaf = image.requires_grad_()
            network(leaf)[:, 1].sum().backward()
            network(image.detach())
            return image + eps

        return run

    what = strength.Problem(Flip(), torch.tensor([0.4, 0.1]).reshape(2, 1, 1, 1), torch.zeros(2).long(), 2)
    contest = Contest("moved", "", None, {"ART": build})
    found = strength.measure(what, contest, "ART", 0.2, "")
    assert found["wrong"] == [True, False]
    assert found["norm"] == pytest.approx([0.2, 0.2])
    assert (found["forward"], found["backward"]) == (2.0, 1.0)
    assert strength.measure(what, contest, "foolbox", 0.2, "") == {"error": "has no such attack"}

    def outside(network: Any, eps: float, classes: int) -> Any:
        return lambda image, label, seed: image + 2 * eps

    over = strength.measure(what, Contest("", "", None, {"ART": outside}), "ART", 0.2, "")
    assert over == {"error": "RuntimeError: the change is 102.000 grey levels, over the budget"}
    with pytest.raises(RuntimeError, match="over the budget"):
        strength.measure(what, Contest("", "", None, {OURS: outside}), OURS, 0.2, "")


@pytest.mark.peers
@pytest.mark.parametrize("key", ["pgd", "apgd-ce", "apgd-dlr", "fmn-linf", "fmn-l2"])
def test_every_contest_runs(key: str) -> None:
    """On a linear network of three classes, within the budget, ours and every attack at a fixed budget turn all cases.

    foolbox's FMN ends on a linear border without crossing it, which is why ours deviates there.
    """
    for name in ("torchattacks", "foolbox", "art"):
        pytest.importorskip(name)
    weight = torch.randn(3, 3 * 6 * 6, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)).eval()
    with torch.no_grad():
        network[1].weight.copy_(weight)
        network[1].bias.zero_()
    image = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 0.4 + 0.3
    with torch.no_grad():
        what = strength.Problem(network, image, network(image).argmax(1), 3)
    with torch.random.fork_rng(devices=[]):
        state = np.random.get_state()  # noqa: NPY002
        for library in CONTESTS[key].build:
            found = strength.measure(what, CONTESTS[key], library, 0.25, "")
            assert "error" not in found, (library, found)
            if library == OURS or CONTESTS[key].norm is None:
                assert found["wrong"] == [True] * 4, (library, found)
        np.random.set_state(state)  # noqa: NPY002


def test_what_is_kept_is_not_done_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def run() -> dict[str, Any]:
        calls.append(1)
        return {"wrong": [True]}

    file = tmp_path / "a" / "b.json"
    for _ in range(2):
        assert kept(file, {"eps": (1, 2)}, run) == {"wrong": [True]}
    assert len(calls) == 1
    assert json.loads(file.read_text())["depends_on"] == {"eps": [1, 2]}
    kept(file, {"eps": [1, 3]}, run)
    assert len(calls) == 2


def test_results_of_other_sources_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"depends_on": {}, "package": "earlier", "result": {"a": 1}}))
    assert kept(file, {}, dict) == {"a": 1}
    assert "measured with other sources" in capsys.readouterr().err


# the ensemble


def test_weaker_counts_only_what_a_member_found_more() -> None:
    def outcome(success: bool, loss: float) -> Outcome:
        return Outcome(success, loss, 1, 1)

    assert weaker(outcome(False, 1.0), outcome(True, 0.1))
    assert weaker(outcome(False, 1.0), outcome(False, 1.1))
    assert not weaker(outcome(False, 1.0), outcome(False, 1.0 + 1e-7))
    assert not weaker(outcome(False, 1.0), outcome(False, 0.9))
    assert not weaker(outcome(True, 0.1), outcome(True, 9.0))


def case(attack: str, success: bool, loss: float, passes: tuple[int, int]) -> dict[str, Any]:
    passed = {"forward_passes": passes[0], "backward_passes": passes[1]}
    return {"attack": attack, "case": "a", "success": success, "loss": loss, **passed}


def test_rows_of_a_bundle() -> None:
    cases = [{"attack": "clean", "case": "a"}] * 2
    cases += [case("PGD", False, 1.0, (6, 5)), case("PGD", True, 2.0, (6, 5))]
    cases += [case("SMIA", True, 1.0, (9, 5)), case("SMIA", False, 2.0, (9, 5))]
    cases += [case("APGD", False, 3.0, (9, 5))] * 2
    cases += [case("WorstOf", True, 1.0, (15, 10)), case("WorstOf", False, 2.0, (24, 15))]
    outcomes = by_attack(cases)
    row = ensemble_row("b", "WorstOf", ("PGD", "SMIA", "APGD"), outcomes)
    assert row == ("b", "WorstOf", "2", "1", "PGD 1, SMIA 1, APGD 0", "2 of 6", "19.5 + 12.5", "2.9")
    assert len(row) == len(HEADER)
    rows = ensemble.rows_of(ensemble.PLANS["endoscopy_detection"], "b", cases)
    assert rows[0] == row
    assert rows[1][1:3] == ("AutoAttack", ensemble.REFUSED)
    with pytest.raises(ValueError, match="b: expected 2 cases of PGD; got 1"):
        ensemble_row("b", "WorstOf", ("PGD",), {**outcomes, "PGD": outcomes["PGD"][:1]})


def test_the_members_measured_alone_are_those_of_the_ensemble() -> None:
    loss = nn.CrossEntropyLoss()
    for plan, output in ((ensemble.Plan(3), torch.zeros(1, 3)), (ensemble.Plan(None), torch.zeros(1, 2, 4, 4))):
        found = ensemble.attacks(plan, loss, 0.1, (0.0, 1.0), None, {})
        auto, worst = found["AutoAttack"], found["WorstOf"]
        assert isinstance(auto, AutoAttack)
        assert isinstance(worst, WorstOf)
        alone = [found[name] for name in plan.members()]
        label = torch.zeros(1, *output.shape[2:]).long()
        parts = [a for one in alone if isinstance(one, AutoAttack) for a in one.ensemble(output, label).attacks]
        assert list(map(repr, parts)) == list(map(repr, auto.ensemble(output, label).attacks))
        assert list(map(repr, worst.attacks)) == [repr(found[name]) for name in ensemble.PARTS]
    assert "AutoAttack" not in ensemble.attacks(ensemble.Plan(0), loss, 0.1, None, None, {})


# the page


def test_the_page_has_both_places() -> None:
    page = (strength.ROOT / "docs" / "strength.md").read_text(encoding="utf-8")
    for module in (strength, ensemble):
        again = replace_region(page, "new", module.BEGIN, module.END)
        assert f"{module.BEGIN}\nnew\n{module.END}" in again


def test_a_page_takes_whole_results_only(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--cases", "4"], ["--attacks", "pgd"]):
        with pytest.raises(SystemExit, match="^2$"):
            strength.parse(["--write", "docs/strength.md", *options])
    assert "--write takes results only" in capsys.readouterr().err
    assert set(PEERS) >= {library.split()[0] for c in CONTESTS.values() for library in c.build if library != OURS}
