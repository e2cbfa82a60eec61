"""Holm's step-down over a histogram is the one that goes through the sorted hypotheses one by one."""

from __future__ import annotations

import pytest
import torch

from monai_smia.certificates import binomial_tail, reject
from monai_smia.certificates.family import least_samples


def naive_holm(p_values: list[float], alpha: float) -> list[bool]:
    rejected = [False] * len(p_values)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for step, i in enumerate(order):
        if p_values[i] > alpha / (len(p_values) - step):
            break
        rejected[i] = True
    return rejected


@pytest.mark.parametrize("seed", range(40))
def test_holm_is_the_naive_loop(seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    samples = int(torch.randint(5, 60, (), generator=source))
    table = binomial_tail(samples, 0.6)
    odds = torch.rand(int(torch.randint(1, 300, (), generator=source)), generator=source)
    counts = torch.binomial(torch.full_like(odds, samples), odds**0.3, generator=source).int()
    for alpha in (0.001, 0.1, 0.6):
        expected = naive_holm([float(table[count]) for count in counts], alpha)
        assert reject(counts, table, alpha).tolist() == expected
        bonferroni = reject(counts, table, alpha, "bonferroni")
        assert bonferroni.tolist() == [float(table[count]) <= alpha / len(counts) for count in counts]
        assert not (bonferroni & ~reject(counts, table, alpha)).any()
        assert reject(counts, table, alpha, "none").tolist() == [float(table[count]) <= alpha for count in counts]


def test_holm_rejects_what_bonferroni_does_not() -> None:
    table = binomial_tail(40, 0.6)
    counts = torch.tensor([40] * 100 + [32] * 3 + [29])
    assert 0.05 / 104 < table[32] <= 0.05 / 4
    assert 0.05 < table[29] <= 0.1
    assert int(reject(counts, table, 0.05, "bonferroni").sum()) == 100
    assert int(reject(counts, table, 0.05, "holm").sum()) == 103
    assert int(reject(counts, table, 0.1, "none").sum()) == 104


def test_millions_keep_their_shape() -> None:
    counts = torch.full((3, 1000, 1000), 100, dtype=torch.int32)
    counts[0] = 60
    rejected = reject(counts, binomial_tail(100, 0.75), 0.001)
    assert rejected.shape == counts.shape
    assert rejected[1:].all()
    assert not rejected[0].any()


def test_the_least_samples_are_enough_and_one_less_is_not() -> None:
    for p, tests in ((0.5, 1), (0.75, 10**6), (0.9, 64)):
        least = least_samples(p, 0.001 / tests)
        for samples, enough in ((least, True), (least - 1, False)):
            assert bool(binomial_tail(samples, p)[samples] <= 0.001 / tests) == enough


def test_another_correction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"correction: expected one of 'holm', 'bonferroni', 'none'; got 'fdr'"):
        reject(torch.zeros(1, dtype=torch.int32), torch.ones(2), 0.1, "fdr")
