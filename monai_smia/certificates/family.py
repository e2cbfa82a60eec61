# SPDX-License-Identifier: Apache-2.0
"""`reject`: a test for each of millions of voxels, with the chance of a single false one kept under alpha."""

from __future__ import annotations

import torch

CORRECTIONS = ("holm", "bonferroni", "none")


class TooFewSamples(ValueError):
    """So few noisy copies that not even agreement of them all could certify anything."""


def reject(counts: torch.Tensor, p_values: torch.Tensor, alpha: float, correction: str = "holm") -> torch.Tensor:
    r"""Which of the hypotheses of one family are rejected, where a p-value depends on a count only.

    With m hypotheses and their p-values in rising order,

    .. math:: \text{holm: } p_{(i)} \le \frac{\alpha}{m - i + 1} \text{ and all before it},\quad
              \text{bonferroni: } p_i \le \frac{\alpha}{m},\quad \text{none: } p_i \le \alpha.

    Holm's rule keeps the chance of any false rejection under alpha, as Bonferroni's does, and never rejects less.
    Equal counts stand or fall together: where the first of them passes, the others face a wider threshold. So the
    step-down goes over the histogram of the counts, not over the sorted voxels, and the result is the same.

    Args:
        counts: one for each hypothesis, of any shape, whole numbers in [0, n].
        p_values: ``(n + 1,)``, the p-value of each count, falling; see `binomial_tail`.
        alpha: chance of any false rejection (with ``"none"``, of each), in (0, 1).
        correction: ``"holm"``, ``"bonferroni"`` or ``"none"``.

    Returns:
        Booleans of the shape of `counts`.

    Raises:
        ValueError: for another correction.

    Example:
        >>> p_values = torch.tensor([1.0, 0.03, 0.01])
        >>> [reject(torch.tensor([2, 1]), p_values, 0.04, name).tolist() for name in ("holm", "bonferroni")]
        [[True, True], [True, False]]

    Reference:
        Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics, 1979.
    """
    if correction not in CORRECTIONS:
        raise ValueError(f"correction: expected one of {', '.join(map(repr, CORRECTIONS))}; got {correction!r}")
    p_values = p_values.to(counts.device)
    hypotheses = counts.numel()
    if correction != "holm":
        passes = p_values <= (alpha / max(hypotheses, 1) if correction == "bonferroni" else alpha)
        return passes[counts.long()]
    histogram = torch.bincount(counts.flatten(), minlength=len(p_values))
    before = hypotheses - histogram.cumsum(0)  # hypotheses of a larger count, that is, of a smaller p-value
    passes = (histogram == 0) | (p_values <= alpha / (hypotheses - before).clamp_min(1).to(p_values.dtype))
    return passes.flip(0).long().cumprod(0).flip(0).bool()[counts.long()]


def least_samples(probability: float, alpha: float) -> int:
    """How many samples, all agreeing, it takes to show at level alpha that a probability is above `probability`.

    Example:
        >>> least_samples(0.5, 0.001), least_samples(0.75, 0.001 / 10**6)
        (10, 73)
    """
    samples = 1
    while probability**samples > alpha:
        samples += 1
    return samples
