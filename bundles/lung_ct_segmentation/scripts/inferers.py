# SPDX-License-Identifier: Apache-2.0
"""Run an inferer under bfloat16 autocast on any device: MONAI's engines offer autocast for CUDA alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer


class BFloat16Inferer(Inferer):
    """Run an inferer under bfloat16 autocast and return float32. Used in training; evaluation stays in float32.

    Args:
        inferer: the inferer to run, `SimpleInferer()` when None.
    """

    def __init__(self, inferer: Inferer | None = None) -> None:
        super().__init__()
        self.inferer = SimpleInferer() if inferer is None else inferer

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the network's output for `inputs`, shape as the network gives it, in float32."""
        with torch.autocast(inputs.device.type, torch.bfloat16):
            prediction: torch.Tensor = self.inferer(inputs, network, *args, **kwargs)
        return prediction.float()
