"""The benchmark beside other libraries: what is judged, what is promised, and what the table says of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import peers, strength
from benchmarks._peers_attacks import PEERS, contests
from benchmarks._peers_tasks import CROP, PLANS, Task, crops, dice, first_of_each, random_task, shifted
from benchmarks._strength_attacks import OURS, Contest
from benchmarks.robustness_table import replace_region

UNIT = (0.0, 1.0)


@pytest.fixture
def random_state() -> Iterator[None]:
    """The global generators, which the peers draw from and the benchmark seeds, as they were."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        yield
    np.random.set_state(state)  # noqa: NPY002


class Same(nn.Module):
    """The image is its own logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.flatten(2).mean(2) * self.scale


# the tasks


def test_cases_are_judged_by_cross_entropy_and_decision() -> None:
    image = torch.tensor([[0.2, 0.8], [0.9, 0.1]])[..., None, None]
    task = Task(Same().eval(), image, torch.tensor([0, 0]), 2, UNIT, {}, 1)
    found = task.judge(image)
    assert found["loss"] == pytest.approx([math.log(1 + math.exp(0.6)), math.log(1 + math.exp(-0.8))])
    assert found["success"] == [True, False]
    assert found["left"] == [0.0, 1.0]


def test_dice_by_hand() -> None:
    """Class 1: 1 of 2 and 1 voxels, 2/3; class 2: 1 of 1 and 2, 2/3. Class 0 does not count."""
    label, decided = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[0, 1, 2, 2]])
    assert dice(decided, label, 3).tolist() == pytest.approx([2 / 3])


def test_crops_lie_around_each_part() -> None:
    volume = torch.arange(48.0 * 64 * 48).reshape(1, 1, 48, 64, 48)
    label = torch.zeros(1, 48, 64, 48, dtype=torch.long)
    label[0, 24, 40, 24], label[0, 2, 63, 30] = 1, 2
    cubes, parts = crops(volume, label)
    assert cubes.shape == (2, 1, CROP, CROP, CROP)
    assert parts.tolist() == [0, 1]
    assert torch.equal(cubes[0], volume[0, :, 8:40, 24:56, 8:40])
    assert torch.equal(cubes[1], volume[0, :, :32, 32:, 14:46])  # moved into the volume


def test_the_first_of_each_class() -> None:
    assert first_of_each(torch.tensor([1, 0, 1, 1, 0, 0]), 3, 2).tolist() == [1, 4, 0, 2]


@pytest.mark.parametrize("key", ["fgsm", "pgd", "pgd-l2", "apgd"])
def test_another_range_is_the_same_work(key: str) -> None:
    """Ours does in [-1, 2] the damage of [0, 1], by a change three times as large."""
    task = random_task(3, 2, False)
    wide = shifted(task)
    assert (float(wide.image.min()), float(wide.image.max())) == pytest.approx((-1, 2), abs=0.05)
    found = [peers.judged(t, contests(t.bounds)[key], OURS)[0] for t in (task, wide)]
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-3)
    assert found[1]["norm"] == pytest.approx([3 * norm for norm in found[0]["norm"]], rel=1e-3)


# what is said of a result


def result(loss: list[float], norm: list[float], **more: Any) -> dict[str, Any]:
    success = [value > 1 for value in loss]
    given = {"loss": loss, "norm": norm, "success": success, "left": [1.0 - value for value in success], "outside": 0.0}
    return {**given, "forward": 21.0, "backward": 20.0, "wall": [2.0, 4.0, 3.0], "cpu": [1.0, 2.0, 2.0], **more}


def test_promises() -> None:
    kept, eps = result([1, 1], [0.1, 0.05]), 0.1
    assert peers.kept_promises(kept, eps, 1.0) == "kept"
    assert peers.kept_promises({**kept, "norm": [0.1, 0.25]}, eps, 1.0) == "**changes by 2.5 eps**"
    assert peers.kept_promises({**kept, "norm": [0.1, 0.25]}, None, 1.0) == "kept"
    assert peers.kept_promises({**kept, "outside": 1e-5}, eps, 1.0) == "kept"
    both = {**kept, "norm": [0.3, 0.0], "outside": 0.5}
    assert peers.kept_promises(both, eps, 3.0) == "**changes by 3 eps, leaves the range by 0.5**"


def test_rows_are_ratios_to_ours() -> None:
    ours = result([1.5, 0.7], [0.1, 0.1])
    theirs = result([0.7, 0.5], [0.1, 0.3], wall=[2.0, 8.0, 1.5], cpu=[2.0, 2.0, 2.0])
    found = {
        "clean": {"loss": [0.2, 0.4]},
        "eps": 0.1,
        "range": 1.0,
        "libraries": {OURS: ours, "ART": theirs, "foolbox": {"error": "ValueError: no"}},
    }
    lines = peers.rows(contests(UNIT)["pgd"], found)
    assert all(len(line) == len(peers.HEADER) for line in lines)
    assert lines[0] == ("PGD-20", f"**{OURS}**", "21 + 20", "1 (2 s)", "1 (3 s)", "1 (0.8)", "50", "kept")
    assert lines[1][3:6] == ("1.00 [1.00..2.00]", "1.00 [0.50..2.00]", f"{0.3 / 0.8:.3f}")
    assert lines[1][6:] == ("100", "**changes by 3 eps**")
    assert lines[2] == ("PGD-20", "foolbox", "ValueError: no", "", "", "", "", "")


def test_a_search_is_compared_by_its_median_norm() -> None:
    ours, far = result([2, 2, 2], [1.0, 2.0, 9.0]), result([2, 2, 2], [3.0, 3.0, 3.0])
    half = result([2, 2, 0], [3.0, 1.0, 0.0])
    none = result([2, 0, 0], [1.0, 0.0, 0.0])
    assert [peers.median_norm(found) for found in (ours, far, half, none)] == [2.0, 3.0, 3.0, math.inf]
    contest = contests(UNIT)["fmn"]
    said = [peers.strength(contest, found, ours, {}) for found in (ours, far, half, none)]
    assert said == ["norm 1 (2)", "norm 1.500", "norm 1.500", "finds 1 of 3"]


def test_an_error_is_a_row_and_ours_is_not_hidden(random_state: None) -> None:
    def build(network: Any, eps: float, classes: int) -> Any:
        def run(image: torch.Tensor, label: torch.Tensor, seed: int) -> torch.Tensor:
            raise ValueError("one|two\nthree")

        return run

    def shapeless(network: Any, eps: float, classes: int) -> Any:
        return lambda image, label, seed: image[:1]

    task = random_task(2, 3, False)
    contest = Contest("fails", "", None, {OURS: build, "ART": build, "foolbox": shapeless})
    assert peers.judged(task, contest, "ART") == ({"error": "ValueError: one/two"}, None)
    assert peers.judged(task, contest, "adv-lib") == ({"error": "has no such attack"}, None)
    assert "no finite image" in peers.judged(task, contest, "foolbox")[0]["error"]
    with pytest.raises(ValueError, match="one"):
        peers.judged(task, contest, OURS)


# the peers themselves


def fgsm(task: Task) -> torch.Tensor:
    image = task.image.clone().requires_grad_()
    gradient = torch.autograd.grad(F.cross_entropy(task.network(image), task.label), image)[0]
    return (task.image + task.budgets[math.inf] * gradient.sign()).clamp(*task.bounds)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("library", "module"), [(OURS, "torch"), ("torchattacks",) * 2, ("foolbox",) * 2, ("ART", "art")]
)
def test_fgsm_is_the_closed_form_in_every_library(library: str, module: str, random_state: None) -> None:
    pytest.importorskip(module)
    task = random_task(3, 2, False)
    found, run = peers.judged(task, contests(UNIT)["fgsm"], library)
    assert found["loss"] == pytest.approx(task.judge(fgsm(task))["loss"], rel=1e-5)
    assert run is not None
    assert torch.allclose(run(), fgsm(task)[: task.timed], atol=1e-6)


@pytest.mark.peers
def test_adversarial_library_runs_without_visdom(random_state: None) -> None:
    """Its PGD keeps the last image that succeeded: here, where the second step already does, one with all of eps."""
    pytest.importorskip("adv_lib")
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 2)).eval()
    image = torch.full((2, 1, 2, 2, 2), 0.5)
    with torch.no_grad():
        network[1].weight.copy_(torch.stack((torch.ones(8), -torch.ones(8))))
        network[1].bias.copy_(torch.tensor([-3.9, 3.9]))
    task = Task(network, image, torch.tensor([0, 0]), 2, UNIT, {math.inf: 0.1, 2.0: 0.1}, 2)
    found, _ = peers.judged(task, contests(UNIT)["pgd"], "adv-lib")
    assert "visdom" in sys.modules
    assert found["success"] == [True, True]
    assert found["norm"] == pytest.approx([0.1, 0.1])


@pytest.mark.peers
def test_small_tasks_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], random_state: None
) -> None:
    """Two attacks in an unusual range and on a segmentation; a second run finds everything kept."""
    for name in ("torchattacks", "foolbox", "art", "adv_lib"):
        pytest.importorskip(name)
    options = ["--small", "--rounds", "1", "--tasks", "range", "segmentation", "--attacks", "fgsm", "pgd"]
    peers.main([*options, "--out", str(tmp_path)])
    first = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines() if line[:1] == "|"]
    table = {(name, library.strip("*")): rest for name, library, *rest in lines[2 : 2 + 10]}
    for library in (OURS, "foolbox", "ART"):
        assert table["PGD-20", library][-1] == "kept"
        assert table["PGD-20", library][3].startswith("1")
    assert "changes by" in table["FGSM", "torchattacks"][-1]
    assert table["FGSM", "adv-lib"][0] == "has no such attack"
    dense = {(name, library.strip("*")): rest for name, library, *rest in lines[14:]}
    assert dense["PGD-20", "torchattacks"][3] == "1.000"
    assert dense["PGD-20", "foolbox"][0].startswith("ValueError: crossentropy only supported")
    peers.main([*options, "--out", str(tmp_path)])
    second = capsys.readouterr().out
    assert [line for line in second.splitlines() if line[:1] == "|"] == [
        line for line in first.splitlines() if line[:1] == "|"
    ]


# the page


def test_the_page_has_its_place_and_takes_whole_results_only(capsys: pytest.CaptureFixture[str]) -> None:
    page = (strength.ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
    assert f"{peers.BEGIN}\nnew\n{peers.END}" in replace_region(page, "new", peers.BEGIN, peers.END)
    for options in (["--small"], ["--tasks", "2d"], ["--attacks", "pgd"]):
        with pytest.raises(SystemExit, match="^2$"):
            peers.parse(["--write", "docs/peers.md", *options])
    assert "--write takes results only" in capsys.readouterr().err


def test_every_task_names_attacks_that_there_are() -> None:
    for plan in PLANS.values():
        assert set(plan.attacks) <= set(contests(plan.bounds))
    assert set(PEERS) >= {library for c in contests(UNIT).values() for library in c.build if library != OURS}
