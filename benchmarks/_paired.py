# SPDX-License-Identifier: Apache-2.0
"""Two attacks on the same cases: the difference of a statistic, its paired bootstrap interval, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""Of the last axis."""


def mean(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.mean(-1))


def median(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.median(values, -1))


@dataclass(frozen=True)
class Difference:
    """One statistic of ours less that of theirs, on the same cases.

    Attributes:
        value: of all cases.
        low, high: ends of the bootstrap interval.
    """

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Of an attack, of which a smaller value is the stronger one."""
        if self.high < 0:
            return "stronger"
        return "weaker" if self.low > 0 else "no difference"


def difference(
    ours: Sequence[float],
    theirs: Sequence[float],
    statistic: Statistic = mean,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Percentile interval of ``statistic(ours) - statistic(theirs)``; cases are drawn in pairs, with replacement.

    Args:
        ours, theirs: one finite value per case, in the same order.
        statistic: over the last axis, such as `mean` or `median`.
        level: confidence level, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of ``numpy.random.default_rng``.

    Raises:
        ValueError: for fewer than two cases, different numbers of them, or values that are not finite.

    Example:
        >>> difference([0, 0, 1, 1], [1, 1, 1, 1])
        Difference(value=-0.5, low=-1.0, high=0.0)
    """
    pair = np.array([ours, theirs], dtype=float) if len(ours) == len(theirs) else np.empty((2, 0))
    if pair.shape[1] < 2 or not np.isfinite(pair).all():
        raise ValueError(
            f"ours, theirs: expected as many finite values, two at least; got {len(ours)} and {len(theirs)}: "
            f"{list(ours)[:5]}, {list(theirs)[:5]}"
        )
    count = pair.shape[1]
    drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
    values = statistic(pair[0][drawn]) - statistic(pair[1][drawn])
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return Difference(float(statistic(pair[0]) - statistic(pair[1])), float(low), float(high))
