# SPDX-License-Identifier: Apache-2.0
"""Structures that vanish or appear under attack: which they are, how many, and a Dice that counts them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, NamedTuple

import torch
from monai.metrics import compute_dice
from monai.metrics.utils import ignore_background
from monai.utils import MetricReduction

from monai_smia.metrics.reduced import ReducedMetric, plain


class StructureEvents(NamedTuple):
    """What became of each structure, booleans ``(B, C)``; at most one of the three holds.

    Attributes:
        vanished: in the label, not in the prediction.
        invented: in the prediction, not in the label.
        absent: in neither.
    """

    vanished: torch.Tensor
    invented: torch.Tensor
    absent: torch.Tensor


def structure_masks(
    y_pred: torch.Tensor, y: torch.Tensor, include_background: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and true masks as plain booleans ``BCHW[D]``, without the background unless asked for.

    Raises:
        ValueError: when the shapes differ or something else than zeros and ones comes.
    """
    if y_pred.shape != y.shape or y.ndim < 3:
        raise ValueError(
            f"y_pred: expected one-hot masks BCHW[D] of the label's shape {tuple(y.shape)}; got {tuple(y_pred.shape)}"
        )
    masks = []
    for name, value in (("y_pred", y_pred), ("y", y)):
        value = plain(value)
        if not bool(((value == 0) | (value == 1)).all()):
            raise ValueError(
                f"{name}: expected one-hot masks of zeros and ones; got other values. Use AsDiscrete first"
            )
        masks.append(value.bool())
    if not include_background:
        masks = list(ignore_background(*masks))
    return masks[0], masks[1]


def compute_structure_events(
    y_pred: torch.Tensor, y: torch.Tensor, include_background: bool = False
) -> StructureEvents:
    """Which structures vanished, were invented, or are absent from both.

    Args:
        y_pred, y: one-hot masks ``BCHW[D]`` of zeros and ones.
        include_background: whether channel 0 of several is a structure.

    Example:
        >>> label = torch.tensor([1, 0, 0]).reshape(1, 3, 1, 1)
        >>> events = compute_structure_events(label.roll(1, 1), label, include_background=True)
        >>> [event.int().tolist() for event in events]
        [[[1, 0, 0]], [[0, 1, 0]], [[0, 0, 1]]]
    """
    predicted, true = (mask.flatten(2).any(2) for mask in structure_masks(y_pred, y, include_background))
    return StructureEvents(~predicted & true, predicted & ~true, ~predicted & ~true)


def compute_structure_dice(y_pred: torch.Tensor, y: torch.Tensor, include_background: bool = False) -> torch.Tensor:
    r"""MONAI's Dice of each structure, 0 where it vanished or was invented.

    .. math:: \frac{2 |P_k \cap Y_k|}{|P_k| + |Y_k|}

    Args:
        y_pred, y: one-hot masks ``BCHW[D]`` of zeros and ones.
        include_background: whether channel 0 of several is a structure.

    Returns:
        ``(B, C)``; NaN, not counted, only where label and prediction both lack the structure. MONAI's own
        `compute_dice` gives NaN to an invented structure as well, or 1 to one that is absent.
    """
    predicted, true = structure_masks(y_pred, y, include_background)
    dice = compute_dice(predicted.float(), true.float(), include_background=True, ignore_empty=False)
    return dice.masked_fill(compute_structure_events(predicted, true, include_background=True).absent, torch.nan)


class StructureMetric(ReducedMetric):
    """Base of the metrics that count vanished and invented structures beside their values.

    Args:
        include_background: whether channel 0 of several is a structure.
        reduction: as in MONAI's metrics. NaN stands for absent from label and prediction, and for nothing else.

    Calling it returns ``[values, vanished, invented]``, each ``(B, C)``.
    """

    def __init__(
        self, include_background: bool = False, reduction: MetricReduction | str = MetricReduction.MEAN
    ) -> None:
        super().__init__(reduction)
        self.include_background = include_background

    @abstractmethod
    def values(self, y_pred: torch.Tensor, y: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """The values ``(B, C)`` of a batch."""

    def get_buffer(self) -> Any:
        """The values ``(B, C)`` so far; ``None`` before the first sample."""
        buffers = super().get_buffer()
        return None if buffers is None else buffers[0]

    def counts(self) -> dict[str, int]:
        """How many structures vanished and how many were invented since the last reset."""
        buffers = super().get_buffer() or [torch.zeros(())] * 3
        return {name: int(buffer.sum()) for name, buffer in zip(("vanished", "invented"), buffers[1:], strict=True)}

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> list[torch.Tensor]:
        if y is None:
            raise ValueError("y: expected the label's one-hot masks; got None")
        events = compute_structure_events(y_pred, y, self.include_background)
        return [self.values(y_pred, y, **kwargs), events.vanished.float(), events.invented.float()]


class StructureDiceMetric(StructureMetric):
    """Dice in which a structure that vanished, or came from nothing, is 0; see `compute_structure_dice`.

    Args:
        include_background, reduction: as in `StructureMetric`.

    Example:
        >>> label = torch.zeros(1, 2, 4, 4)
        >>> label[:, 1, :2], label[:, 0, 2:] = 1, 1
        >>> nothing = torch.stack((torch.ones(1, 4, 4), torch.zeros(1, 4, 4)), 1)
        >>> metric = StructureDiceMetric()
        >>> _ = metric(nothing, label)
        >>> metric.aggregate().item(), metric.counts()
        (0.0, {'vanished': 1, 'invented': 0})
    """

    def values(self, y_pred: torch.Tensor, y: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Dice, ``(B, C)``."""
        return compute_structure_dice(y_pred, y, self.include_background)


class StructureEventMetric(ReducedMetric):
    """How many structures vanished, or were invented, as a metric of its own, for handlers to log.

    Args:
        event: ``"vanished"`` counts among the structures that the label holds, ``"invented"`` among those it lacks; the
            others are NaN in the details.
        include_background: whether channel 0 of several is a structure.
        reduction: ``"sum"`` gives the number, ``"mean"`` the share.

    Raises:
        ValueError: for another event.
    """

    def __init__(
        self,
        event: Literal["vanished", "invented"] = "vanished",
        include_background: bool = False,
        reduction: MetricReduction | str = MetricReduction.SUM,
    ) -> None:
        super().__init__(reduction)
        if event not in ("vanished", "invented"):
            raise ValueError(f'event: expected "vanished" or "invented"; got {event!r}')
        self.event = event
        self.include_background = include_background

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        if y is None:
            raise ValueError("y: expected the label's one-hot masks; got None")
        events = compute_structure_events(y_pred, y, self.include_background)
        without = events.invented | events.absent  # the label lacks the structure
        if self.event == "vanished":
            return events.vanished.float().masked_fill(without, torch.nan)
        return events.invented.float().masked_fill(~without, torch.nan)
