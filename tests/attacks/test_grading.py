"""Crossing a grading threshold: heads on which the reachable grades are known, and the distance against its sign."""

from __future__ import annotations

import math

import pytest
import torch

from monai_smia.attacks import BIM
from monai_smia.attacks.grading import CrossGrade


def sum_of(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).sum(1, keepdim=True)


def ordinal(x: torch.Tensor) -> torch.Tensor:
    """Logits ``k s - k²/2``: the likeliest grade is the sum of the image, rounded."""
    grade = torch.arange(5.0)
    return sum_of(x) * grade - grade.square() / 2


def cumulative(x: torch.Tensor) -> torch.Tensor:
    """One channel for "at least 1, 2, 3, 4": the count is the sum of the image, rounded."""
    return sum_of(x) - torch.tensor([0.5, 1.5, 2.5, 3.5])


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize(
    ("reading", "network", "threshold"), [("argmax", ordinal, 2), ("count", cumulative, 2), ("value", sum_of, 1.5)]
)
def test_grades_cross_where_the_budget_allows(reading: str, network, threshold: float, direction: str) -> None:
    """The sum of 20 pixels moves by 20 eps and no further."""
    sums = torch.tensor([0.2, 0.95, 1.3, 1.7, 2.4, 3.1])
    image = (sums / 20)[:, None, None, None].expand(6, 1, 4, 5).contiguous()
    reached = sums + (20 if direction == "up" else -20) * 0.03
    grade = reached if reading == "value" else reached.round().clamp_min(0)
    goal = CrossGrade(threshold, direction=direction, reading=reading)
    target = goal.target(torch.zeros(6, 1), network(image))
    result = BIM(goal.loss(), eps=0.03, steps=4, targeted=True, criterion=goal)(network, image, target)
    torch.testing.assert_close(goal.measure(network(result.adversarial)), grade, rtol=1e-5, atol=1e-6)
    expected = grade >= threshold if direction == "up" else grade < threshold
    assert torch.equal(result.success, expected)
    assert torch.equal(result.loss < 0, expected)
    assert int(result.clean_success.sum()) < int(expected.sum()) < 6


@pytest.mark.parametrize("reading", ["argmax", "expected", "count"])
@pytest.mark.parametrize("threshold", [0.5, 1, 2, 2.75])
def test_the_sign_of_the_distance_is_success(reading: str, threshold: float) -> None:
    logits = 3 * torch.randn(500, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = logits.sigmoid() if reading == "count" else logits.softmax(1)
    by_hand = {
        "argmax": p.argmax(1).double(),
        "expected": (p * torch.arange(5.0)).sum(1),
        "count": (p > 0.5).sum(1).double(),
    }[reading]
    for output, probabilities in ((logits, False), (p, True)):
        up, down = (
            CrossGrade(threshold, direction=way, reading=reading, probabilities=probabilities) for way in ("up", "down")
        )
        torch.testing.assert_close(up.measure(output), by_hand)
        assert torch.equal(up(output, None), by_hand >= threshold)
        assert torch.equal(up.loss()(output, None) <= 0, by_hand >= threshold)
        assert torch.equal(down.loss()(output, None) < 0, by_hand < threshold)
        assert torch.equal(down(output, None), ~up(output, None))


def test_an_expected_grade_has_a_slope_where_the_network_is_certain() -> None:
    """Threshold 1 of grades 0, 1, 2: what is left is the first logit minus the last, though p is 1, 0, 0."""
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    distance = CrossGrade(1, direction="up", reading="expected").loss()(logits, None)
    assert distance.item() == pytest.approx(200.0)
    assert torch.autograd.grad(distance.sum(), logits)[0].tolist() == [[1.0, 0.0, -1.0]]


def test_grades_as_targets() -> None:
    label = torch.tensor([[0], [2], [4]])
    assert CrossGrade(2, direction="up").target(label).tolist() == [[2], [2], [4]]
    assert CrossGrade(2, direction="down").target(label).tolist() == [[0], [1], [1]]
    assert CrossGrade(1.5, direction="up").target(label[:, 0]).tolist() == [2, 2, 4]


def test_what_does_not_fit_is_refused_by_name() -> None:
    for call, message in (
        (lambda: CrossGrade(2, direction="left"), "direction"),
        (lambda: CrossGrade(2, direction="up", reading="mode"), "reading"),
        (lambda: CrossGrade(math.inf, direction="up"), "threshold"),
        (lambda: CrossGrade(2, direction="up").measure(torch.zeros(1, 2)), "threshold"),
        (lambda: CrossGrade(1, direction="up").measure(torch.zeros(2, 2, 3, 3)), "prediction"),
        (lambda: CrossGrade(1, direction="up", reading="value").measure(torch.zeros(1, 2)), "prediction"),
        (lambda: CrossGrade(1, direction="up").target(torch.zeros(1, 4)), "label"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
