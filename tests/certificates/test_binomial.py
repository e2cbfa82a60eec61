"""The binomial tail and its inverse are scipy's, and the bound covers as often as it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom

from monai_smia.certificates import binomial_tail, lower_confidence_bound


@pytest.mark.parametrize("samples", [1, 2, 37, 1000, 100_000])
@pytest.mark.parametrize("p", [1e-3, 0.3, 0.5, 0.75, 0.999])
def test_tail_is_that_of_scipy(samples: int, p: float) -> None:
    expected = binom.sf(np.arange(samples + 1) - 1, samples, p)
    tail = binomial_tail(samples, p).numpy()
    normal = expected > 1e-290  # below, numbers lose digits
    np.testing.assert_allclose(tail[normal], expected[normal], rtol=1e-10)
    assert (tail[~normal] < 1e-280).all()
    assert (np.diff(tail) <= 0).all()


def test_tail_of_several_probabilities_is_that_of_each() -> None:
    both = binomial_tail(50, torch.tensor([0.2, 0.9], dtype=torch.float64))
    torch.testing.assert_close(both, torch.stack([binomial_tail(50, 0.2), binomial_tail(50, 0.9)]), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("samples", "alpha"), [(1, 0.05), (100, 0.001), (1000, 1e-5), (100_000, 0.001), (100_000, 1e-9)]
)
def test_bound_is_that_of_scipy(samples: int, alpha: float) -> None:
    counts = np.unique(np.linspace(1, samples, 12).astype(int))
    bound = lower_confidence_bound(torch.from_numpy(counts), samples, alpha)
    np.testing.assert_allclose(bound.numpy(), beta.ppf(alpha, counts, samples - counts + 1), rtol=1e-10)


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
    with pytest.raises(ValueError, match=r"probability: expected values in \(0, 1\); got 1.0"):
        binomial_tail(5, 1.0)
    with pytest.raises(ValueError, match="samples: expected a whole number >= 1; got 0"):
        binomial_tail(0, 0.5)
    with pytest.raises(ValueError, match="alpha: expected a number in"):
        lower_confidence_bound(torch.tensor([1]), 5, 0.0)
