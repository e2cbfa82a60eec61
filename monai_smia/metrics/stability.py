# SPDX-License-Identifier: Apache-2.0
"""`PerturbationStability`: the variance of perturbations over iterations, over restarts and over images."""

from __future__ import annotations

from typing import Any, Literal

import torch
from monai.utils import MetricReduction, evenly_divisible_all_gather

from monai_smia.metrics.reduced import ReducedMetric, plain

STACKS = ("iterations", "restarts")


def compute_stack_variance(perturbations: torch.Tensor) -> torch.Tensor:
    r"""Variance along a stack of perturbations of the same image, averaged over its channels and voxels.

    .. math:: V_i = \frac{1}{d} \sum_{j=1}^{d} \frac{1}{N - 1} \sum_{n=1}^{N} (\delta_{inj} - \bar\delta_{ij})^2

    Args:
        perturbations: ``(B, N, C, H, W[, D])``, N iterates or N restarts, any unit.

    Returns:
        ``(B,)``, float64, in the unit squared: a variance, not a standard deviation.

    Raises:
        ValueError: where N is under 2, which has no variance.

    Example:
        >>> compute_stack_variance(torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1, 1))
        tensor([2.], dtype=torch.float64)
    """
    if perturbations.ndim < 3 or perturbations.shape[1] < 2:
        raise ValueError(
            "perturbations: expected (B, N, C, ...) with at least two along axis 1; "
            f"got shape {tuple(perturbations.shape)}"
        )
    return perturbations.double().var(1).flatten(1).mean(1)


def compute_image_variance(perturbations: torch.Tensor) -> torch.Tensor:
    r"""Variance over the perturbations of different images of one shape, averaged over channels and voxels.

    .. math:: V = \frac{1}{d} \sum_{j=1}^{d} \frac{1}{B - 1} \sum_{i=1}^{B} (\delta_{ij} - \bar\delta_j)^2

    Args:
        perturbations: ``(B, C, H, W[, D])``, at least two, any unit.

    Returns:
        A scalar, float64, in the unit squared.

    Raises:
        ValueError: for fewer than two.
    """
    return compute_stack_variance(perturbations.unsqueeze(0))[0]


class PerturbationStability(ReducedMetric):
    r"""One of three claims that "perturbations of small variance" can mean; report all three.

    ========================  =======================================================  =============================
    over                      called with                                              value
    ========================  =======================================================  =============================
    ``"iterations"``          ``(B, T, C, H, W[, D])``: the iterates of one run        mean over images of their
                                                                                       variance over t = 1 ... T
    ``"restarts"``            ``(B, R, C, H, W[, D])``: the results of R runs, each    mean over images of their
                              with a random state of its own                           variance over r = 1 ... R
    ``"images"``              ``(B, C, H, W[, D])``: one result for each image         variance over all images,
                                                                                       which have one shape
    ========================  =======================================================  =============================

    The first argument holds adversarial images, the second the clean ones ``(B, C, H, W[, D])``; their difference is
    the perturbation. Equations: `compute_stack_variance` for the first two, `compute_image_variance` for the third. All
    are in network units squared; `IntensityScale.to_physical` applied twice makes them physical.

    Args:
        over: ``"iterations"``, ``"restarts"`` or ``"images"``.
        reduction: as in MONAI's metrics; without effect over images.

    Raises:
        ValueError: for another word, at construction.

    Note:
        Over images one sum of all perturbations is kept, not the perturbations. The details are then each image's mean
        square perturbation; for the other two they are its variance.

    Example:
        >>> metric = PerturbationStability("images")
        >>> clean = torch.zeros(2, 1, 2, 2)
        >>> _ = metric(clean + torch.tensor([0.01, -0.01]).reshape(2, 1, 1, 1), clean)
        >>> round(metric.aggregate().item(), 6)
        0.0002

        .. code-block:: python

            iterates = []
            attack(network, image, target, callback=lambda trial, _: iterates.append(trial.adversarial.detach()))
            PerturbationStability("iterations")(torch.stack(iterates, 1), image)
    """

    def __init__(
        self,
        over: Literal["iterations", "restarts", "images"],
        reduction: MetricReduction | str = MetricReduction.MEAN,
    ) -> None:
        self._sum: torch.Tensor | None = None
        super().__init__(reduction)
        if over not in (*STACKS, "images"):
            raise ValueError(f'over: expected "iterations", "restarts" or "images"; got {over!r}')
        self.over = over

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._sum = None

    def aggregate(self, reduction: MetricReduction | str | None = None) -> torch.Tensor:
        """The variance, reduced over images.

        Raises:
            ValueError: before the first image, and over images before the second.
        """
        if self.over in STACKS:
            return super().aggregate(reduction)
        squares = self.get_buffer()
        if self._sum is None or not isinstance(squares, torch.Tensor) or len(squares) < 2:
            raise ValueError("PerturbationStability: expected at least two images to have a variance over")
        total = evenly_divisible_all_gather(self._sum.unsqueeze(0), concat=True).sum(0)
        # sum of squared deviations = sum of squares - N * (squared mean)
        return (squares.sum() - total.square().mean() / len(squares)).clamp_min(0) / (len(squares) - 1)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        stack = self.over in STACKS
        if y is None or y_pred.ndim != y.ndim + stack or y_pred.shape[1 + stack :] != y.shape[1:]:
            shapes = [None if value is None else tuple(value.shape) for value in (y_pred, y)]
            raise ValueError(
                f"y_pred: expected adversarial images {'(B, N, C, ...)' if stack else '(B, C, ...)'} beside clean ones "
                f"(B, C, ...), to compare over {self.over}; got {shapes[0]} and {shapes[1]}"
            )
        if stack:
            return compute_stack_variance(plain(y_pred).double() - plain(y).double().unsqueeze(1)).unsqueeze(1)
        change = plain(y_pred).double() - plain(y).double()
        if self._sum is not None and self._sum.shape != change.shape[1:]:
            raise ValueError(
                f"y_pred: expected images of one shape, {tuple(self._sum.shape)}; got {tuple(change.shape[1:])}"
            )
        self._sum = change.sum(0) if self._sum is None else self._sum + change.sum(0)
        return change.square().flatten(1).mean(1, keepdim=True)
