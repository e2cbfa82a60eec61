# SPDX-License-Identifier: Apache-2.0
"""Exact binomial statistics, by scipy: the upper tail, and the Clopper-Pearson lower bound that inverts it."""

from __future__ import annotations

import numpy as np
import torch
from monai.utils import OptionalImportError, optional_import

_beta, _HAS_SCIPY = optional_import("scipy.stats", name="beta")
_binom, _ = optional_import("scipy.stats", name="binom")


def require_scipy() -> None:
    """Say that scipy is missing before the network has run, and not after.

    Raises:
        OptionalImportError: without scipy.
    """
    if not _HAS_SCIPY:
        raise OptionalImportError(
            'certify: needs scipy, which is not installed: pip install "monai-smia[certificates]"'
        )


def binomial_tail(samples: int, probability: float) -> torch.Tensor:
    r"""The chance of at least k successes, for every k at once.

    .. math:: t_k = P[\mathrm{Bin}(n, p) \ge k] = \sum_{j=k}^{n} \binom{n}{j} p^j (1-p)^{n-j}

    As all voxels of an image share n and p, this table holds their p-values: a look-up by count replaces a test for
    each of millions of voxels.

    Args:
        samples: n, at least 1.
        probability: p in (0, 1).

    Returns:
        ``(n + 1,)``, float64, for k = 0, 1, ..., n, falling.

    Raises:
        ValueError: when n is under 1, or p not in (0, 1).
        OptionalImportError: without scipy.

    Example:
        >>> binomial_tail(3, 0.5)
        tensor([1.0000, 0.8750, 0.5000, 0.1250], dtype=torch.float64)
    """
    _check_samples(samples)
    if not 0 < probability < 1:
        raise ValueError(f"probability: expected a number in (0, 1); got {probability!r}")
    return torch.from_numpy(_binom.sf(np.arange(samples + 1) - 1, samples, probability))


def lower_confidence_bound(successes: torch.Tensor, samples: int, alpha: float) -> torch.Tensor:
    r"""The one-sided Clopper-Pearson bound: the probability is at least this, with confidence 1 - alpha.

    .. math:: \underline{p}(k) = \inf \{p : P[\mathrm{Bin}(n, p) \ge k] \ge \alpha\}
              = \mathrm{Beta}^{-1}(\alpha;\, k,\, n - k + 1), \qquad \underline{p}(0) = 0

    Args:
        successes: counts k, of any shape, whole numbers in [0, n].
        samples: n, at least 1.
        alpha: chance, in (0, 1), that the bound is above the probability.

    Returns:
        Of the shape of `successes`, float64 in [0, 1).

    Raises:
        ValueError: when a count is not in [0, n], n is under 1, or alpha not in (0, 1).
        OptionalImportError: without scipy.

    Example:
        >>> lower_confidence_bound(torch.tensor([0, 99, 100]), 100, 0.001)
        tensor([0.0000, 0.9114, 0.9333], dtype=torch.float64)

    Reference:
        Clopper and Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial, 1934
        (https://doi.org/10.1093/biomet/26.4.404).
    """
    _check_samples(samples)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a number in (0, 1); got {alpha!r}")
    if successes.numel() and (int(successes.min()) < 0 or int(successes.max()) > samples):
        raise ValueError(
            f"successes: expected counts in [0, {samples}]; got {int(successes.min())} to {int(successes.max())}"
        )
    counts, where = torch.unique(successes, return_inverse=True)
    k = counts.double().cpu().numpy()
    bounds = np.where(k > 0, _beta.ppf(alpha, np.maximum(k, 1), samples - np.maximum(k, 1) + 1), 0.0)
    return torch.from_numpy(bounds).to(successes.device)[where]


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples: expected a whole number >= 1; got {samples!r}")
