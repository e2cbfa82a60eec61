"""The binomial tail and its inverse against exact fractions, and the bound covers as often as it says."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch
from scipy.stats import binom

from monai_smia.certificates import binomial_tail, lower_confidence_bound


def exact_tail(samples: int, p: Fraction, k: int) -> float:
    """The sum, in fractions."""
    return float(sum(comb(samples, j) * p**j * (1 - p) ** (samples - j) for j in range(k, samples + 1)))


@pytest.mark.parametrize("samples", [1, 2, 37, 300])
@pytest.mark.parametrize("p", [Fraction(1, 1000), Fraction(1, 2), Fraction(3, 4)])
def test_tail_is_the_sum_of_the_terms(samples: int, p: Fraction) -> None:
    tail = binomial_tail(samples, float(p))
    assert tail.shape == (samples + 1,)
    for k in {0, 1, samples // 2, samples - samples // 10, samples}:
        assert float(tail[k]) == pytest.approx(exact_tail(samples, p, k), rel=1e-10)
    assert (np.diff(tail.numpy()) <= 0).all()


@pytest.mark.parametrize(("samples", "alpha"), [(1, 0.05), (100, 0.001), (1000, 1e-5), (100_000, 1e-9)])
def test_bound_is_where_the_tail_is_alpha(samples: int, alpha: float) -> None:
    counts = np.unique(np.linspace(1, samples, 12).astype(int))
    bounds = lower_confidence_bound(torch.from_numpy(counts), samples, alpha)
    for k, bound in zip(counts.tolist(), bounds.tolist(), strict=True):
        assert float(binomial_tail(samples, bound)[k]) == pytest.approx(alpha, rel=1e-8)


def test_bound_where_it_is_known() -> None:
    bound = lower_confidence_bound(torch.tensor([[0, 200], [200, 0]]), 200, 0.01)
    closed = 0.01 ** (1 / 200)  # all of n: p^n = alpha
    torch.testing.assert_close(bound, torch.tensor([[0, closed], [closed, 0]], dtype=torch.float64), rtol=1e-14, atol=0)
    assert lower_confidence_bound(torch.zeros(0, dtype=torch.int32), 5, 0.1).shape == (0,)


@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_bound_fails_at_most_as_often_as_it_may(alpha: float) -> None:
    """Exactly, by summing over every count: P[bound(k) > p] <= alpha, and close to it for some p."""
    samples = 80
    counts = np.arange(samples + 1)
    bounds = lower_confidence_bound(torch.from_numpy(counts), samples, alpha).numpy()
    failures = [binom.pmf(counts, samples, p)[bounds > p].sum() for p in np.linspace(0.01, 0.99, 197)]
    assert max(failures) <= alpha * (1 + 1e-9)
    assert max(failures) > 0.8 * alpha


def test_counts_beyond_the_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"successes: expected counts in \[0, 10\]; got -1 to 11"):
        lower_confidence_bound(torch.tensor([-1, 11]), 10, 0.1)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"probability: expected a number in \(0, 1\); got 1.0"):
        binomial_tail(5, 1.0)
    with pytest.raises(ValueError, match="samples: expected a whole number >= 1; got 0"):
        binomial_tail(0, 0.5)
    with pytest.raises(ValueError, match="alpha: expected a number in"):
        lower_confidence_bound(torch.tensor([1]), 5, 0.0)
