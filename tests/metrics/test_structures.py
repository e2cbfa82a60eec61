"""Structures that vanish: Dice 0, the diagonal as distance, counted; MONAI's own values where structures exist."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluators import Task
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, MetricsSaver, from_engine
from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDistanceMetric
from torch import nn

from monai_smia.attacks import BIM
from monai_smia.engines import AttackEvaluator
from monai_smia.metrics import (
    StructureDiceMetric,
    StructureEventMetric,
    StructureHausdorffMetric,
    StructureSurfaceDistanceMetric,
    compute_structure_events,
    compute_structure_hausdorff,
    compute_structure_surface_distance,
    worst_distance,
)

SHAPES = {2: (30, 40), 3: (20, 30, 60)}
DIAGONALS = {2: 50.0, 3: 70.0}  # 3-4-5 and 2-3-6-7
METRICS = [StructureDiceMetric, StructureHausdorffMetric, StructureSurfaceDistanceMetric]


@pytest.fixture(autouse=True)
def no_warnings_of_empty_masks() -> Iterator[None]:
    """MONAI warns of NaN and infinity where a mask is empty: it must never come to that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is all 0")
        yield


def cube(rank: int, corner: int = 2, side: int = 5) -> torch.Tensor:
    """One-hot masks with a background and one structure."""
    mask = torch.zeros(1, 2, *SHAPES[rank])
    mask[(0, 1, *[slice(corner, corner + side)] * rank)] = 1
    mask[:, 0] = 1 - mask[:, 1]
    return mask


def empty(rank: int) -> torch.Tensor:
    mask = torch.zeros(1, 2, *SHAPES[rank])
    mask[:, 0] = 1
    return mask


@pytest.mark.parametrize("rank", [2, 3])
def test_a_shifted_cube(rank: int) -> None:
    """Moved by 3 voxels of 2 mm along the last axis, with 2 of 5 planes in common: 6 mm, Dice 2/5."""
    label, moved = cube(rank), cube(rank).roll(3, -1)
    spacing = [1.0] * (rank - 1) + [2.0]
    assert compute_structure_hausdorff(moved, label, spacing=spacing).tolist() == [[6.0]]
    assert compute_structure_hausdorff(moved, label).tolist() == [[3.0]]
    dice = StructureDiceMetric()
    dice(moved, label)
    assert dice.aggregate().item() == pytest.approx(0.4)
    assert dice.counts() == {"vanished": 0, "invented": 0}


def test_two_voxels_are_as_far_as_they_are() -> None:
    one, other = torch.zeros(1, 1, 9, 9, 9), torch.zeros(1, 1, 9, 9, 9)
    one[0, 0, 1, 1, 1] = other[0, 0, 4, 5, 1] = 1  # (3, 4, 0) voxels of (2, 2, 5) mm: 10 mm
    for compute in (compute_structure_hausdorff, compute_structure_surface_distance):
        assert compute(one, other, spacing=(2.0, 2.0, 5.0)).tolist() == [[10.0]]


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize(
    ("ours", "monais", "arguments"),
    [
        (StructureDiceMetric, DiceMetric, {}),
        (StructureHausdorffMetric, HausdorffDistanceMetric, {}),
        (StructureHausdorffMetric, HausdorffDistanceMetric, {"percentile": 95}),
        (StructureHausdorffMetric, HausdorffDistanceMetric, {"directed": True, "distance_metric": "taxicab"}),
        (StructureHausdorffMetric, HausdorffDistanceMetric, {"distance_metric": "chessboard"}),
        (StructureSurfaceDistanceMetric, SurfaceDistanceMetric, {}),
        (StructureSurfaceDistanceMetric, SurfaceDistanceMetric, {"symmetric": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("background", [True, False])
def test_where_structures_exist_it_is_monais_metric(
    rank: int, ours: Any, monais: Any, arguments: dict[str, Any], background: bool
) -> None:
    source = torch.Generator().manual_seed(rank)
    scores = torch.rand((2, 2, 3, *(9, 8, 7)[:rank]), generator=source)
    masks = [nn.functional.one_hot(score.argmax(1), 3).movedim(-1, 1) for score in scores]
    spacing = {} if ours is StructureDiceMetric else {"spacing": [1.5, 0.5, 3.0][:rank]}
    one, other = ours(background, **arguments, **spacing), monais(include_background=background, **arguments)
    one(*masks)
    other(*masks, **spacing)
    assert torch.equal(one.get_buffer(), other.get_buffer())
    torch.testing.assert_close(one.aggregate(), other.aggregate())


@pytest.mark.parametrize("rank", [2, 3])
def test_a_structure_that_vanished_is_worst_and_counted(rank: int) -> None:
    label, nothing = cube(rank), empty(rank)
    for metric, worst in zip([kind() for kind in METRICS], [0.0, DIAGONALS[rank], DIAGONALS[rank]], strict=True):
        metric(torch.cat((nothing, label)), torch.cat((label, label)))
        perfect = 1.0 if isinstance(metric, StructureDiceMetric) else 0.0
        assert metric.get_buffer()[:, 0].tolist() == pytest.approx([worst, perfect])
        assert metric.aggregate().item() == pytest.approx((worst + perfect) / 2)
        assert metric.counts() == {"vanished": 1, "invented": 0}
        metric.reset()
        assert metric.counts() == {"vanished": 0, "invented": 0}


@pytest.mark.parametrize("rank", [2, 3])
def test_a_structure_from_nothing_is_worst_and_counted_apart(rank: int) -> None:
    for metric, worst in zip([kind() for kind in METRICS], [0.0, DIAGONALS[rank], DIAGONALS[rank]], strict=True):
        metric(list(cube(rank)), list(empty(rank)))
        assert metric.aggregate().item() == pytest.approx(worst)
        assert metric.counts() == {"vanished": 0, "invented": 1}


def test_a_structure_absent_from_both_is_not_counted_and_no_perfect_score() -> None:
    for kind in METRICS:
        metric = kind()
        metric(empty(2), empty(2))
        assert math.isnan(metric.aggregate().item())  # MONAI's mean of nothing is 0: the best distance there is
        metric(empty(2), cube(2))
        worst = 0.0 if kind is StructureDiceMetric else 50.0
        assert metric.aggregate().item() == pytest.approx(worst)  # the mean over what exists
        assert metric.counts() == {"vanished": 1, "invented": 0}


def test_what_monai_makes_of_the_same_cases() -> None:
    """Why these metrics are here: infinity for a vanished structure, and a Dice that leaves an invented one out."""
    distance, dice = HausdorffDistanceMetric(), DiceMetric(include_background=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distance(empty(2), cube(2))
    dice(cube(2), empty(2))
    assert math.isinf(distance.aggregate().item())
    assert dice.get_buffer().isnan().all()


@pytest.mark.parametrize(
    ("distance", "expected"), [("euclidean", math.hypot(60, 20)), ("chessboard", 40.0), ("taxicab", 70.0)]
)
def test_the_worst_in_each_distance(distance: str, expected: float) -> None:
    """30 x 40 voxels of 2 x 0.5 mm; the other two distances are in voxels, as MONAI's are."""
    value = compute_structure_hausdorff(empty(2), cube(2), distance_metric=distance, spacing=(2.0, 0.5))
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize("distance", ["euclidean", "chessboard", "taxicab"])
def test_no_distance_exceeds_the_worst(distance: str) -> None:
    """Opposite corners, the farthest apart that two structures can be."""
    one, other = torch.zeros(1, 1, 4, 5, 6), torch.zeros(1, 1, 4, 5, 6)
    one[0, 0, 0, 0, 0] = other[0, 0, 3, 4, 5] = 1
    farthest = compute_structure_hausdorff(one, other, distance_metric=distance).item()
    worst = compute_structure_hausdorff(torch.zeros_like(one), other, distance_metric=distance).item()
    assert 0.7 * worst < farthest < worst


def test_spacing_in_all_its_forms() -> None:
    nothing, label = torch.cat((empty(2), empty(2))), torch.cat((cube(2), cube(2)))
    affine = torch.diag(torch.tensor([-2.0, 3.0, 5.0, 1.0]))  # a flipped axis has a positive size all the same
    image = MetaTensor(label, affine=affine)
    batch = MetaTensor(label, affine=torch.stack((affine, torch.eye(4))))
    rows = {"number": 2.0, "axes": (2.0, 3.0), "samples": [(2.0, 3.0), (1.0, 1.0)]}
    expected = {"number": [100.0] * 2, "axes": [math.hypot(60, 120)] * 2, "samples": [math.hypot(60, 120), 50.0]}
    for name, spacing in rows.items():
        values = compute_structure_hausdorff(nothing, label, spacing=spacing)
        assert values[:, 0].tolist() == pytest.approx(expected[name]), name
    for target, name in ((image, "axes"), (batch, "samples")):
        values = compute_structure_surface_distance(nothing, target, spacing="affine")
        assert values[:, 0].tolist() == pytest.approx(expected[name])
    metric = StructureHausdorffMetric(spacing="affine")
    metric(list(nothing), [MetaTensor(label[0], affine=affine), MetaTensor(label[1])])  # decollated
    assert metric.get_buffer()[:, 0].tolist() == pytest.approx(expected["samples"])
    metric.reset()
    metric(nothing, label, spacing=2.0)  # in the call, as MONAI's metrics take it
    assert metric.aggregate().item() == pytest.approx(100.0)


def test_events_and_their_metric() -> None:
    label = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]])[..., None, None]
    prediction = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0]])[..., None, None]
    events = compute_structure_events(prediction, label, include_background=True)
    assert events.vanished.int().tolist() == [[0, 1, 0, 0], [1, 0, 1, 0]]
    assert events.invented.int().tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]
    assert events.absent.int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 1]]
    for event, number, share in (("vanished", 3, (1 / 2 + 2 / 2) / 2), ("invented", 2, 1 / 2)):
        metric = StructureEventMetric(event, include_background=True)
        metric(prediction, label)
        assert metric.aggregate().item() == number
        assert metric.aggregate("mean").item() == pytest.approx(share)  # of those that could


class Threshold(nn.Module):
    """Class 2 where the image is over 0.5, class 1 elsewhere, class 0 nowhere."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat((-9 - image, 0.5 - image, image - 0.5), 1)


def metric_handlers() -> dict[str, IgniteMetricHandler]:
    kinds: dict[str, Callable[[], Any]] = {
        "dice": StructureDiceMetric,
        "hausdorff": lambda: StructureHausdorffMetric(spacing=2.0),
        "vanished": StructureEventMetric,
    }
    transform = from_engine(["pred", "label"])
    return {name: IgniteMetricHandler(kind(), output_transform=transform) for name, kind in kinds.items()}


def test_an_attack_that_erases_a_structure_is_seen_in_every_report(tmp_path: Path) -> None:
    """The third class is there in the clean prediction and gone under attack, in every case."""
    task = Task(2)
    images = 0.1 + 0.5 * (task.images() > 0.6)  # 0.3 less takes 0.6 under the threshold, 0.3 more leaves 0.1 there
    labels = 1 + (images > 0.5).long()
    handlers = metric_handlers()
    saver = MetricsSaver(str(tmp_path), metric_details="*", batch_transform=lambda batch: [{}] * len(batch))
    evaluator = task.evaluator(
        AttackEvaluator,
        network=Threshold(),
        val_data_loader=[{"image": images[:2], "label": labels[:2]}, {"image": images[2:], "label": labels[2:]}],
        attacks={"bim": BIM(task.loss(), eps=0.3, steps=3, bounds=(0, 1))},
        progress=False,
        key_val_metric={"dice": handlers.pop("dice")},
        additional_metrics=handlers,
        val_handlers=[saver],
    )
    evaluator.run()
    state = evaluator.state
    assert (state.metrics["dice"], state.metrics["hausdorff"], state.metrics["vanished"]) == (1.0, 0.0, 0.0)
    diagonal = worst_distance((9, 7), (2.0, 2.0))
    assert state.metrics["bim_vanished"] == 3
    assert state.metric_details["bim_dice"][:, 1].tolist() == [0.0] * 3
    assert state.metric_details["bim_hausdorff"][:, 1].tolist() == pytest.approx([diagonal] * 3)
    assert state.metric_details["bim_vanished"][:, 1].tolist() == [1.0] * 3
    rows = [row for row in evaluator.report().cases if row["attack"] == "bim"]
    assert [row["hausdorff_1"] for row in rows] == pytest.approx([diagonal] * 3)
    saved = (tmp_path / "bim_hausdorff_raw.csv").read_text()
    assert "nan" not in saved
    assert "inf" not in saved
    assert saved.count(f"{diagonal:.2f}") == 3


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (torch.zeros(1, 2, 30, 41), r"y_pred: .* \(1, 2, 30, 40\); got \(1, 2, 30, 41\)"),
        (torch.full((1, 2, 30, 40), 0.7), "y_pred: expected one-hot masks of zeros and ones"),
        (torch.full((1, 2, 30, 40), math.nan), "y_pred: expected one-hot masks of zeros and ones"),
    ],
)
@pytest.mark.parametrize("kind", [*METRICS, StructureEventMetric])
def test_masks_that_are_none_are_refused(kind: Any, prediction: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind()(prediction, cube(2))


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="distance_metric: expected one of euclidean, chessboard, taxicab; got 'l2'"):
        StructureHausdorffMetric(distance_metric="l2")
    with pytest.raises(ValueError, match='spacing: "affine" is read from a MetaTensor'):
        StructureSurfaceDistanceMetric(spacing="affine")(cube(2), cube(2))
    with pytest.raises(ValueError, match='event: expected "vanished" or "invented"; got \'absent\''):
        StructureEventMetric("absent")
    for kind in (*METRICS, StructureEventMetric):
        with pytest.raises(ValueError, match="y: expected the label's one-hot masks; got None"):
            kind()(cube(2))
