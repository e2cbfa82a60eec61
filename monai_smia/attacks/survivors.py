# SPDX-License-Identifier: Apache-2.0
"""`survivors`: an inferer that spares the network the samples of a batch that are done with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer

from monai_smia.attacks.nested import map_tensors
from monai_smia.attacks.query import WindowInferer


class Survivors(Inferer):
    """Predicts some samples of a batch; every other sample gets a copy of one of theirs, without a gradient.

    An attack through it still sees the whole batch, and so draws the same random numbers for each sample whoever else
    is left; what it does to the other samples is meaningless, and for its caller to discard.

    Args:
        inferer: a MONAI inferer; ``None`` calls the network.
        keep: which samples, ``(B,)`` bool, at least one.
    """

    def __init__(self, inferer: Inferer | None, keep: torch.Tensor) -> None:
        self.inferer = inferer
        self.keep = keep
        self.rows = keep.nonzero().flatten()
        self.back = (keep.long().cumsum(0) - 1).clamp_min(0)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The prediction at `inputs`, ``BCHW[D]``, any nesting of tensors with a batch axis."""
        some = inputs[self.rows]
        if self.inferer is None:
            return self.fill(network(some, *args, **kwargs))
        return self.fill(self.inferer(some, network, *args, **kwargs))

    def fill(self, prediction: Any) -> Any:
        """From the predictions of those kept to predictions for the batch."""
        return map_tensors(prediction, self._filled)

    def _filled(self, some: torch.Tensor) -> torch.Tensor:
        if some.ndim == 0:
            return some
        every = some[self.back.to(some.device)]
        keep = self.keep.to(some.device).reshape(-1, *[1] * (some.ndim - 1))
        return torch.where(keep, every, every.detach())


class WindowSurvivors(Survivors):
    """`Survivors` for an inferer that predicts window by window, see `WindowInferer`."""

    inferer: Any

    def within(self, mask: torch.Tensor) -> WindowSurvivors:
        """As in `WindowInferer`."""
        return WindowSurvivors(self.inferer.within(mask if len(mask) == 1 else mask[self.rows]), self.keep)

    def beside(self, inputs: torch.Tensor, other: torch.Tensor, network: Callable[..., Any]) -> tuple[Any, Any]:
        """As in `WindowInferer`."""
        first, second = self.inferer.beside(inputs[self.rows], other[self.rows], network)
        return self.fill(first), self.fill(second)


def survivors(inferer: Any, keep: torch.Tensor) -> Any:
    """An inferer for the samples in `keep`, or `inferer` itself where it must be given whole batches.

    Args:
        inferer: what the call was given. One that is neither ``None`` nor a MONAI `Inferer` may hold something else for
            each sample of the batch, and is left as it is.
        keep: which samples are left, ``(B,)`` bool, at least one; of those that `inferer` keeps if it is one of these.
    """
    inner = inferer.inferer if isinstance(inferer, Survivors) else inferer
    if bool(keep.all()) or not (inner is None or isinstance(inner, Inferer)):
        return inferer
    return (WindowSurvivors if isinstance(inner, WindowInferer) else Survivors)(inner, keep)


def kept(inferer: Any, batch: int, device: torch.device) -> torch.Tensor:
    """Which samples of a batch `inferer` predicts, ``(B,)`` bool."""
    return inferer.keep if isinstance(inferer, Survivors) else torch.ones(batch, dtype=torch.bool, device=device)
