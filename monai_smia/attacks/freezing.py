# SPDX-License-Identifier: Apache-2.0
"""`frozen`: borrow a network for an attack and give it back exactly as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def unwrap(network: Callable[..., Any]) -> Callable[..., Any]:
    """The network inside a `DistributedDataParallel`: an attack makes no collective calls."""
    return network.module if isinstance(network, DistributedDataParallel) else network


@contextmanager
def frozen(network: Callable[..., Any]) -> Iterator[None]:
    """Evaluation mode, no gradients of the parameters; then every submodule, flag and buffer as it was.

    The mode is restored submodule by submodule (a BatchNorm frozen by hand stays frozen), also after an exception or an
    interrupt. ``.grad`` is never touched. A callable that is not an `nn.Module` has nothing to freeze and is left
    alone.

    Args:
        network: a network, or any callable.

    Raises:
        ValueError: when its parameters were made under ``inference_mode``: nothing can be differentiated through them.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3), torch.nn.BatchNorm2d(1)).train()
        >>> with frozen(net):
        ...     net.training, net[0].weight.requires_grad
        (False, False)
        >>> net.training, net[0].weight.requires_grad
        (True, True)
    """
    if not isinstance(network, nn.Module):
        yield
        return
    if any(parameter.is_inference() for parameter in network.parameters()):
        raise ValueError("network: expected parameters that autograd can use; they were made under inference_mode")
    modes = [(module, module.training) for module in network.modules()]
    flags = [parameter for parameter in network.parameters() if parameter.requires_grad]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in network.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        network.eval()
        for parameter in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in flags:
            parameter.requires_grad_(True)
        for module, name, buffer, saved in buffers:
            module._buffers[name] = buffer
            if buffer is not None and saved is not None and not torch.equal(buffer, saved):
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(saved)
