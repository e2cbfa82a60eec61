# SPDX-License-Identifier: Apache-2.0
"""`Lattice` against numpy's own integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_smia.export import Lattice

KINDS = ["uint8", "int16", "uint16"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_integer_of_a_type_comes_back(kind: str) -> None:
    limits = np.iinfo(kind)
    levels = torch.arange(limits.min, limits.max + 1)
    held = Lattice.of_type(kind, 0.37, -1024.0)
    values = held.values(levels)
    np.testing.assert_allclose(values.numpy(), levels.numpy() * 0.37 - 1024.0, rtol=1e-12)
    assert torch.equal(held.levels(values), levels)
    assert torch.equal(held.levels(values.float()), levels)
    assert held.bounds == pytest.approx((limits.min * 0.37 - 1024.0, limits.max * 0.37 - 1024.0))


def test_nearest_is_the_nearest_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    held = Lattice(0.5, 3.0, -4, 4)
    values = torch.rand(200, generator=generator, dtype=torch.float64) * 8 - 1
    every = held.values(torch.arange(-4, 5))
    expected = every[(values[:, None] - every).abs().argmin(1)]
    assert torch.equal(held.nearest(values), expected)
    assert torch.equal(held.nearest(expected), expected)


def test_a_floating_type_holds_everything() -> None:
    held = Lattice.of_type("float32", 2.0, 1.0)
    values = torch.tensor([0.123, -1e9])
    assert held.continuous
    assert held.bounds is None
    assert held.nearest(values) is values
    assert held.whole_levels(0.123) == 0.123
    with pytest.raises(ValueError, match="slope: a floating type has no levels"):
        held.levels(values)


def test_a_budget_of_whole_levels_is_kept_by_rounding_in_every_slice() -> None:
    generator = torch.Generator().manual_seed(1)
    slopes = torch.tensor([0.7, 1.0, 0.31], dtype=torch.float64)
    held = Lattice(slopes, torch.tensor([0.0, 5.0, -2.0], dtype=torch.float64), 0, 4095)
    clean = held.values(torch.randint(1000, 2000, (500, 3), generator=generator))
    for eps in (1.0, 2.0, 2.5, 10.0):
        budget = held.whole_levels(eps)
        assert 0 < budget <= eps
        change = (torch.rand(clean.shape, generator=generator, dtype=torch.float64) * 2 - 1).sign() * budget
        assert float((held.nearest(clean + change) - clean).abs().max()) <= eps * (1 + 1e-9)


@pytest.mark.parametrize(("eps", "expected"), [(0.5, 0.5), (1.4, 1.0), (0.3 * 5, 1.5), (0.0, 0.0)])
def test_whole_levels_of_one_slope(eps: float, expected: float) -> None:
    assert Lattice(0.5).whole_levels(eps) == pytest.approx(expected)


def test_the_bounds_are_those_of_all_slices() -> None:
    held = Lattice(torch.tensor([1.0, 2.0]), torch.tensor([0.0, -10.0]), 0, 10)
    assert held.bounds == (-10.0, 10.0)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"slope: .* at least 0; got -1"):
        Lattice(-1.0)
    with pytest.raises(ValueError, match="lowest, highest"):
        Lattice(1.0, 0.0, 4, 4)
    with pytest.raises(ValueError, match="dtype: expected integers"):
        Lattice.of_type("complex64")
    with pytest.raises(ValueError, match="eps: expected at least one level of the file, 2; got 1.5"):
        Lattice(torch.tensor([1.0, 2.0])).whole_levels(1.5)
