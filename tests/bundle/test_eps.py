"""`parse_eps`, `Budget` and `default_eps`: what a person writes, in the network's units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Lambdad,
    LoadImaged,
    NormalizeIntensityd,
    ScaleIntensityd,
    ScaleIntensityRanged,
)

from monai_smia.attacks.checks import spread
from monai_smia.bundle.eps import Budget, default_eps, parse_eps
from monai_smia.bundle.units import IntensityReading, read_intensity
from monai_smia.intensity import IntensityScale

HU = read_intensity(ScaleIntensityRanged("image", -1000, 400, 0, 1, clip=True), modality="CT")
GREY = read_intensity(ScaleIntensityRanged("image", 0, 255, -1, 1))
OWN = read_intensity(ScaleIntensityd("image", -1, 1))
SCORE = read_intensity(NormalizeIntensityd("image"))
PLAIN = read_intensity(LoadImaged("image"))
LOST = read_intensity(Lambdad("image", abs))
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
COLOURS = read_intensity(
    [ScaleIntensityRanged("image", 0, 255, 0, 1), NormalizeIntensityd("image", MEAN, STD, channel_wise=True)]
)
READINGS = {"HU": HU, "grey": GREY, "%": OWN, "SD": SCORE, "plain": PLAIN, "lost": LOST, "colours": COLOURS}

WRITTEN: list[tuple[Any, list[tuple[float, str]], list[str]]] = [
    ("2HU,5HU,10HU", [(2, "HU"), (5, "HU"), (10, "HU")], ["2HU", "5HU", "10HU"]),
    ("[2hu, 5 Hu]", [(2, "HU"), (5, "HU")], ["2HU", "5HU"]),
    (("2HU", "5HU"), [(2, "HU"), (5, "HU")], ["2HU", "5HU"]),
    ("4/255", [(4 / 255, "net")], ["4/255"]),
    ("4/255,8 / 255", [(4 / 255, "net"), (8 / 255, "net")], ["4/255", "8/255"]),
    ("1/2HU", [(0.5, "HU")], ["1/2HU"]),
    ("1%", [(1, "%")], ["1%"]),
    ("0.5%, 1 %", [(0.5, "%"), (1, "%")], ["0.5%", "1%"]),
    ("8grey,2gray", [(8, "grey"), (2, "grey")], ["8grey", "2grey"]),
    ("0.1SD", [(0.1, "SD")], ["0.1SD"]),
    (".03net,1e-2net,3network", [(0.03, "net"), (0.01, "net"), (3, "net")], ["0.03net", "0.01net", "3net"]),
    ("1e1HU", [(10, "HU")], ["10HU"]),
    (10, [(10, "")], ["10"]),
    (0.03, [(0.03, "")], ["0.03"]),
    ([2, 5], [(2, ""), (5, "")], ["2", "5"]),
    ("0.03", [(0.03, "")], ["0.03"]),
    (np.array([1.0, 2.0]), [(1, ""), (2, "")], ["1", "2"]),
    (np.float32(2), [(2, "")], ["2"]),
    (torch.tensor([1, 2]), [(1, ""), (2, "")], ["1", "2"]),
    (Budget(3, "HU"), [(3, "HU")], ["3HU"]),
    ((Budget(3, "HU"), "4HU"), [(3, "HU"), (4, "HU")], ["3HU", "4HU"]),
]


@pytest.mark.parametrize(("given", "expected", "labels"), WRITTEN, ids=[repr(row[0])[:30] for row in WRITTEN])
def test_what_can_be_written(given: Any, expected: list[tuple[float, str]], labels: list[str]) -> None:
    budgets = parse_eps(given)
    assert [(pytest.approx(value), unit) for value, unit in expected] == [(each.value, each.unit) for each in budgets]
    assert [budget.label for budget in budgets] == labels


@pytest.mark.parametrize(
    "line", ["2HU,5HU", "4/255", "1%", "0.03net", "0.1SD,0.2SD", "10", "2,5", "[2HU,5HU]", "8grey"]
)
def test_the_command_line_changes_nothing(line: str) -> None:
    """What python-fire hands over for a word is read as the word itself."""
    parser = pytest.importorskip("fire.parser")
    assert parse_eps(parser.DefaultParseValue(line)) == parse_eps(line)


@pytest.mark.parametrize("budget", [budget for given, _, _ in WRITTEN for budget in parse_eps(given) if budget.unit])
def test_labels_can_be_written_again(budget: Budget) -> None:
    (again,) = parse_eps(budget.label)
    assert (again.value, again.unit, again.label) == (pytest.approx(budget.value), budget.unit, budget.label)


@pytest.mark.parametrize(
    ("given", "reading", "network"),
    [
        ("14HU", HU, 0.01),
        ("0.03net", HU, 0.03),
        ("4/255", HU, 4 / 255),
        ("51grey", GREY, 0.4),
        ("4/255", GREY, 4 / 255),
        ("1%", OWN, 0.02),
        ("0.1SD", SCORE, 0.1),
        ("3intensity", PLAIN, 3.0),
        (3, PLAIN, 3.0),
        (0.3, LOST, 0.3),
        (0.3, IntensityReading.unknown(), 0.3),
    ],
)
def test_in_network_units(given: Any, reading: IntensityReading, network: float) -> None:
    (budget,) = parse_eps(given, reading)
    found = budget.to_network(reading)
    assert isinstance(found, float)
    assert found == pytest.approx(network)
    again = budget.in_unit(reading)
    assert again.to_network(reading) == pytest.approx(network)
    assert again.unit == reading.default_unit


def test_a_budget_through_the_real_transform() -> None:
    transform = ScaleIntensityRanged("image", -160, 240, -1, 1)
    reading = read_intensity(transform)
    before = torch.tensor([[[10.0, 17.0]]])
    after = transform({"image": before})["image"].flatten()
    (budget,) = parse_eps("7HU", reading)
    assert budget.to_network(reading) == pytest.approx(float(after[1] - after[0]), abs=1e-6)


def test_colours_have_a_budget_each_that_an_attack_takes() -> None:
    transform = NormalizeIntensityd("image", MEAN, STD, channel_wise=True)
    scaled = ScaleIntensityRanged("image", 0, 255, 0, 1)
    (budget,) = parse_eps("8grey", COLOURS)
    found = budget.to_network(COLOURS)
    pairs = [transform(scaled({"image": torch.full((3, 2, 2), value)}))["image"] for value in (100.0, 108.0)]
    change = (pairs[1] - pairs[0]).as_tensor()[:, 0, 0]
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found[0], change.double(), rtol=1e-5, atol=1e-6)
    image = torch.zeros(3, 3, 4, 4)  # as many samples as channels
    size = spread("eps", tuple(map(tuple, found.tolist())), image)
    assert isinstance(size, torch.Tensor)
    assert size.shape == (1, 3, 1, 1)
    assert budget.in_unit(COLOURS) == budget
    assert Budget(0.1, "net").in_unit(COLOURS).unit == "net"


@pytest.mark.parametrize("reading", [SCORE, LOST, PLAIN], ids=["SD", "lost", "plain"])
def test_percent_of_what_each_image_spans(reading: IntensityReading) -> None:
    (budget,) = parse_eps("2%", reading)
    image = torch.stack([torch.linspace(-1, 3, 27).view(1, 3, 3, 3), torch.linspace(0, 50, 27).view(1, 3, 3, 3)])
    for given in (image, MetaTensor(image), image.clone().requires_grad_()):
        found = budget.to_network(reading, given)
        assert isinstance(found, torch.Tensor)
        assert type(found) is torch.Tensor
        assert not found.requires_grad
        torch.testing.assert_close(found, torch.tensor([0.08, 1.0]))
        alone = budget.to_network(reading, given[1:])
        torch.testing.assert_close(alone, found[1:])
    with pytest.raises(ValueError, match="eps: 2% is of each image's own range; expected the image; got none"):
        budget.to_network(reading)
    assert budget.in_unit(reading) == budget


def test_percent_that_the_preprocessing_scales_needs_no_image() -> None:
    assert Budget(1, "%").to_network(OWN, torch.zeros(2, 1, 4, 4)) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("given", "reading", "error", "message"),
    [
        ("5XY", None, ValueError, "eps: expected one of the units HU, grey, %, SD, intensity, net; got '5XY'"),
        ("HU", None, ValueError, "eps: expected a number and a unit, .*; got 'HU'"),
        ("1/0", None, ValueError, "eps: expected a number .*; got '1/0'"),
        ("2HU;5HU", None, ValueError, "eps: .*; got '2HU;5HU'"),
        ("", None, ValueError, "eps: expected budgets such as .*; got ''"),
        ([], None, ValueError, "eps: expected budgets such as"),
        ("-2HU", None, ValueError, "eps: expected a finite number, at least 0; got -2HU"),
        (float("nan"), None, ValueError, "eps: expected a finite number"),
        (float("inf"), None, ValueError, "eps: expected a finite number"),
        (True, None, TypeError, "eps: expected numbers, .*; got True"),
        (None, None, TypeError, "eps: expected numbers, .*; got None"),
        ({"HU": 2}, None, TypeError, "eps: expected numbers"),
        ("8grey", HU, ValueError, r"eps: expected a unit that this preprocessing has \(HU, net\); got 8grey"),
        ("1%", HU, ValueError, r"eps: .* \(HU, net\); got 1%"),
        ("2HU", SCORE, ValueError, r"eps: .* \(SD, %, net\); got 2HU"),
        ("2HU", LOST, ValueError, r"eps: .* \(net, %\); got 2HU"),
        (10, HU, ValueError, r"eps: expected a unit \(HU, net\); got 10: give 10HU, or 10net for the network's input"),
        ([2, 5], GREY, ValueError, "eps: expected a unit .*; got 2: give 2grey, or 2net"),
        (0.1, SCORE, ValueError, "eps: .*give 0.1SD, or 0.1net"),
        (0.1, OWN, ValueError, "eps: .*give 0.1%, or 0.1net"),
        (3, COLOURS, ValueError, "eps: .*give 3grey, or 3net"),
    ],
)
def test_what_is_refused(given: Any, reading: IntensityReading | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        parse_eps(given, reading)
    assert "\n" not in str(caught.value)
    if reading is not None:
        (budget, *_) = parse_eps(given)
        with pytest.raises(ValueError, match=message):
            budget.to_network(reading)


def test_a_unit_of_ones_own() -> None:
    scale = IntensityScale(0, 10, clip=True, unit="SUV")
    reading = IntensityReading(scale, scale.bounds, ("SUV",), "SUV", "as given", None)
    (budget,) = parse_eps("0.5suv", reading)
    assert (budget.label, budget.to_network(reading)) == ("0.5SUV", 0.05)
    assert [each.label for each in default_eps(reading)] == ["0.1SUV", "0.2SUV", "0.4SUV"]
    bare = IntensityReading(scale, None, ("SUV",), "SUV", "as given", None)
    with pytest.raises(ValueError, match="eps: expected a budget; got none, .*: give --eps, such as 1SUV"):
        default_eps(bare)


@pytest.mark.parametrize(
    ("reading", "labels"),
    [
        (HU, ["2HU", "5HU", "10HU", "20HU"]),
        (GREY, ["1grey", "2grey", "4grey", "8grey"]),
        (COLOURS, ["1grey", "2grey", "4grey", "8grey"]),
        (OWN, ["0.5%", "1%", "2%", "4%"]),
        (SCORE, ["0.02SD", "0.05SD", "0.1SD", "0.2SD"]),
        (PLAIN, ["0.5%", "1%", "2%", "4%"]),
        (
            read_intensity(ScaleIntensityRanged("image", 0, 4000, -1, 1, clip=True), modality="MR"),
            ["40intensity", "80intensity", "160intensity"],
        ),
        (read_intensity(Lambdad("image", abs), value_range=[0, 3]), ["0.03net", "0.06net", "0.12net"]),
    ],
)
def test_defaults(reading: IntensityReading, labels: list[str]) -> None:
    budgets = default_eps(reading)
    assert [budget.label for budget in budgets] == labels
    assert parse_eps(",".join(labels), reading) == budgets
    image = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert all(bool(np.all(np.asarray(budget.to_network(reading, image)) > 0)) for budget in budgets)


def test_no_default_for_what_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="eps: expected a budget; got none.*--eps in network units.*Lambdad"):
        default_eps(LOST)


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
def test_every_unit_of_a_reading_can_be_given(reading: IntensityReading) -> None:
    image = torch.linspace(0, 1, 96).view(2, 3, 4, 4)
    for unit in reading.units:
        once, twice = (budget.to_network(reading, image) for budget in parse_eps(f"1{unit},2{unit}", reading))
        torch.testing.assert_close(2 * torch.as_tensor(once), torch.as_tensor(twice))
