# SPDX-License-Identifier: Apache-2.0
"""`frozen`: borrow a network for an attack and give it back exactly as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def unwrap(network: Callable[..., Any]) -> Callable[..., Any]:
    """The network inside a `DistributedDataParallel`: an attack makes no collective calls."""
    return network.module if isinstance(network, DistributedDataParallel) else network


@dataclass
class _Loan:
    """How the first borrower found a module or a parameter, and how many have it now."""

    module: nn.Module | None = None
    parameter: nn.Parameter | None = None
    training: bool = False
    buffers: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = field(default_factory=dict)
    requires_grad: bool = False
    borrowers: int = 0


_LOANS: dict[int, _Loan] = {}
_LOCK = threading.RLock()
"""Held while loans are taken and given back, not while a network is borrowed: two threads attack side by side."""


@contextmanager
def frozen(network: Callable[..., Any]) -> Iterator[None]:
    """Evaluation mode, no gradients of the parameters; then every submodule, flag and buffer as it was.

    The mode is restored submodule by submodule (a BatchNorm frozen by hand stays frozen), also after an exception or an
    interrupt. A module with a ``train`` or ``eval`` of its own (one that merges low-rank weights, say) is switched by
    these, both ways. ``.grad`` is never touched. A callable that is not an `nn.Module` has nothing to freeze and is
    left alone; so is the mode of a module that has none (one of `torch.jit.freeze` or `torch.export`).

    Several threads may borrow a network, or networks that share modules, at the same time: the first finds it as it
    was, and the last restores that.

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
    modules, parameters = list(network.modules()), list(network.parameters())
    wanted: list[nn.Module | nn.Parameter] = [*modules, *parameters]
    taken: list[nn.Module | nn.Parameter] = []
    try:
        with _LOCK:
            for item in wanted:
                _borrow(item)
                taken.append(item)
            _switch(dict.fromkeys(modules, False))
            for parameter in parameters:
                if parameter.requires_grad:
                    parameter.requires_grad_(False)
        yield
    finally:
        with _LOCK:
            ended = [loan for loan in map(_give_back, taken) if loan is not None]
            try:
                _switch({loan.module: loan.training for loan in ended if loan.module is not None})
            finally:
                for loan in ended:
                    if loan.parameter is not None and loan.requires_grad:
                        loan.parameter.requires_grad_(True)
                    if loan.module is not None:
                        _restore_buffers(loan.module, loan.buffers)


def _borrow(item: nn.Module | nn.Parameter) -> None:
    loan = _LOANS.get(id(item))
    if loan is None:
        if isinstance(item, nn.Module):
            buffers = {name: (value, None if value is None else value.clone()) for name, value in item._buffers.items()}
            loan = _Loan(module=item, training=_mode(item), buffers=buffers)
        else:
            loan = _Loan(parameter=item, requires_grad=item.requires_grad)
        _LOANS[id(item)] = loan
    loan.borrowers += 1


def _give_back(item: nn.Module | nn.Parameter) -> _Loan | None:
    """The loan, where this was its last borrower."""
    loan = _LOANS[id(item)]
    loan.borrowers -= 1
    return _LOANS.pop(id(item)) if loan.borrowers == 0 else None


def _mode(module: nn.Module) -> bool:
    return bool(getattr(module, "training", False))


def _switch(modes: dict[nn.Module, bool]) -> None:
    """Every module to its mode, parents first: by a method of its own where it has one, which may do more than that."""
    for module, training in modes.items():
        if _mode(module) != training and _has_own_switch(module):
            try:
                module.train() if training else module.eval()
            except NotImplementedError:  # torch.export: what is run was fixed at the export
                continue
    for module, training in modes.items():
        if _mode(module) != training:
            module.training = training


def _has_own_switch(module: nn.Module) -> bool:
    plain = {"train": nn.Module.train, "eval": nn.Module.eval}
    return any(name in vars(module) or getattr(type(module), name) is not plain[name] for name in plain)


def _restore_buffers(module: nn.Module, buffers: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]]) -> None:
    for name, (buffer, saved) in buffers.items():
        module._buffers[name] = buffer
        if buffer is not None and saved is not None and not torch.equal(buffer, saved):
            with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                buffer.copy_(saved)
