# SPDX-License-Identifier: Apache-2.0
"""`Predictor`: the network as a batch of windows meets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from monai_smia.inferers.blending import Index, gather

ProcessFn = Callable[..., tuple[Sequence[torch.Tensor], torch.Tensor]]
"""MONAI's hook: ``process_fn(outputs, windows, weight) -> (outputs, weight)``."""


@dataclass(frozen=True)
class Predictor:
    """The network, and what it is given besides the windows.

    Args:
        network: any callable, ``(N, C, *window)`` to a tensor, or to a tuple or dictionary of tensors.
        args, kwargs: passed on to it.
        condition: an image whose windows go along as ``condition=``; ``None`` for none.
        with_coord: whether the windows' indices are its second argument.
        process_fn: MONAI's hook on outputs and weight; ``None`` for none.
        flat: spatial axis of length 1 that a network of one rank less does not see; ``None`` for none.
    """

    network: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    condition: torch.Tensor | None = None
    with_coord: bool = False
    process_fn: ProcessFn | None = None
    flat: int | None = None

    def __call__(self, windows: torch.Tensor, where: Sequence[Index]) -> tuple[list[torch.Tensor], list[Any] | None]:
        """The outputs for a batch of windows, a dictionary's by sorted key as MONAI has them, and the keys."""
        kwargs = self.kwargs
        if self.condition is not None:
            kwargs = {**kwargs, "condition": self._flatten(gather(self.condition, where).to(windows.device))}
        coordinates = ([list(index) for index in where],) if self.with_coord else ()
        outputs = self.network(self._flatten(windows), *coordinates, *self.args, **kwargs)
        keys = sorted(outputs) if isinstance(outputs, Mapping) else None
        if keys is not None:
            outputs = [outputs[key] for key in keys]
        elif isinstance(outputs, torch.Tensor):
            outputs = [outputs]
        return list(outputs) if self.flat is None else [x.unsqueeze(self.flat + 2) for x in outputs], keys

    @property
    def modules(self) -> list[nn.Module]:
        """The network's submodules; none for a plain callable."""
        return list(self.network.modules()) if isinstance(self.network, nn.Module) else []

    def _flatten(self, windows: torch.Tensor) -> torch.Tensor:
        return windows if self.flat is None else windows.squeeze(self.flat + 2)
