# SPDX-License-Identifier: Apache-2.0
"""Exact binomial statistics in torch: the upper tail, and the Clopper-Pearson lower bound that inverts it."""

from __future__ import annotations

import math

import torch

_BLOCK = 2**20  # elements of a table at a time, which bounds the memory
_HALVINGS = 100
_STEPS = 50  # an end: five or six are usual
_PRECISION = 1e-12  # of the last step, after which the error is about its square


def binomial_tail(samples: int, probability: float | torch.Tensor) -> torch.Tensor:
    r"""The chance of at least k successes, for every k at once.

    .. math:: t_k = P[\mathrm{Bin}(n, p) \ge k] = \sum_{j=k}^{n} \binom{n}{j} p^j (1-p)^{n-j}

    As all voxels of an image share n and p, this table holds their p-values: a look-up by count replaces a test for
    each of millions of voxels. The terms are products of the ratios of neighbours, outwards from the largest, so that
    the error grows with the distance from it and not with n, as it does with differences of log-factorials.

    Args:
        samples: n, at least 1.
        probability: p in (0, 1), a number or ``(M,)``.

    Returns:
        ``(n + 1,)``, or ``(M, n + 1)``; float64, for k = 0, 1, ..., n, falling.

    Raises:
        ValueError: when n is under 1, or a p not in (0, 1).

    Example:
        >>> binomial_tail(3, 0.5)
        tensor([1.0000, 0.8750, 0.5000, 0.1250], dtype=torch.float64)
    """
    _check_samples(samples)
    p = torch.as_tensor(probability, dtype=torch.float64)
    if not bool(((p > 0) & (p < 1)).all()):
        raise ValueError(f"probability: expected values in (0, 1); got {probability!r}")
    k = torch.arange(1, samples + 1, dtype=torch.float64, device=p.device)
    # log of the ratio of the term at k to that at k - 1: falling in k, so the largest term is where it changes sign
    ratios = (samples - k + 1).log() - k.log() + (p.log() - (-p).log1p()).unsqueeze(-1)
    rising = (ratios > 0).to(ratios.dtype)
    up = (ratios * (1 - rising)).cumsum(-1)
    down = (-ratios * rising).flip(-1).cumsum(-1).flip(-1)
    zero = torch.zeros_like(up[..., :1])
    terms = (torch.cat((zero, up), -1) + torch.cat((down, zero), -1)).exp()
    tail = terms.flip(-1).cumsum(-1).flip(-1)  # from the small terms to the large, so that none is lost in rounding
    return tail / tail[..., :1]


def lower_confidence_bound(successes: torch.Tensor, samples: int, alpha: float) -> torch.Tensor:
    r"""The one-sided Clopper-Pearson bound: the probability is at least this, with confidence 1 - alpha.

    .. math:: \underline{p}(k) = \inf \{p : P[\mathrm{Bin}(n, p) \ge k] \ge \alpha\}
              = \mathrm{Beta}^{-1}(\alpha;\, k,\, n - k + 1), \qquad \underline{p}(0) = 0

    Found by Newton's method on the exact tail, to the last digits of double precision.

    Args:
        successes: counts k, of any shape, whole numbers in [0, n].
        samples: n, at least 1.
        alpha: chance, in (0, 1), that the bound is above the probability.

    Returns:
        Of the shape of `successes`, float64 in [0, 1).

    Raises:
        ValueError: when a count is not in [0, n], n is under 1, or alpha not in (0, 1).

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
    counts = counts.long().cpu()
    bounds = [_invert(part, samples, alpha) for part in counts.split(max(1, _BLOCK // (samples + 1)))]
    return torch.cat(bounds or [torch.zeros(0, dtype=torch.float64)]).to(successes.device)[where]


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples: expected a whole number >= 1; got {samples!r}")


def _invert(counts: torch.Tensor, samples: int, alpha: float) -> torch.Tensor:
    """The p at which the tail of each count is alpha.

    The tail is log-concave in p, as the distribution function of a beta variable, so that Newton's method on its
    logarithm rises to the root from any point below it, never past it. The Chernoff bound gives such a point.
    """
    successes = counts.double().clamp_min(1)
    share = successes / samples
    certainty = torch.special.xlogy(share, share) + torch.special.xlogy(1 - share, 1 - share)
    low, high = torch.zeros_like(share), share
    for _ in range(_HALVINGS):
        p = (low + high) / 2
        distance = certainty - torch.special.xlogy(share, p) - torch.special.xlog1py(1 - share, -p)
        far = samples * distance > -math.log(alpha)  # P[Bin(n, p) >= k] <= exp(-n distance) < alpha
        low, high = torch.where(far, p, low), torch.where(far, high, p)
    p = low
    for _ in range(_STEPS):
        tails = torch.nn.functional.pad(binomial_tail(samples, p), (0, 1))
        tail, above = (tails.gather(1, counts.clamp_min(1)[:, None] + i)[:, 0] for i in (0, 1))
        step = p * tail * (math.log(alpha) - tail.log()) / (successes * (tail - above))  # d tail / dp = k P[k] / p
        p = p + step
        if bool((step.abs() <= _PRECISION * p).all()):
            break
    return p.masked_fill(counts == 0, 0.0)
