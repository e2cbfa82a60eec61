# SPDX-License-Identifier: Apache-2.0
"""`Fingerprint`: what a result depends on, by name, so that a run is gone on with only by its like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import monai
import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from monai_smia.engines.described import described, digest, tensor_digest
from monai_smia.engines.file_digests import FileDigests

__all__ = ["FileDigests", "Fingerprint", "described", "digest", "network_digest", "structure", "versions"]

_SHOWN = 90  # characters of a value in a message
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


@dataclass(frozen=True)
class Fingerprint:
    """Named parts of what a result depends on: weights, preprocessing, inferer, attacks, budgets, seed, cases.

    Attributes:
        parts: name to a text or a digest.

    Example:
        >>> run = Fingerprint({"eps": "5HU", "seed": "0"})
        >>> run.refuse_other({"eps": "5HU", "seed": "1"})
        Traceback (most recent call last):
        ...
        ValueError: resume: the earlier run had seed = 1; expected the same, got 0
    """

    parts: Mapping[str, str] = field(default_factory=dict)

    def differing(self, earlier: Mapping[str, str]) -> str | None:
        """The first part that is another one in an earlier run; ``None`` where all are alike."""
        names = dict.fromkeys((*self.parts, *earlier))
        return next((name for name in names if self.parts.get(name) != earlier.get(name)), None)

    def refuse_other(self, earlier: Mapping[str, str], what: str = "resume") -> None:
        """Nothing is mixed.

        Args:
            earlier: the parts of the run that is to be gone on with.
            what: the argument that the message names.

        Raises:
            ValueError: naming the first part that differs, with what it was and what it is.
        """
        if (name := self.differing(earlier)) is not None:
            old, new = _shown(earlier.get(name), self.parts.get(name))
            raise ValueError(f"{what}: the earlier run had {name} = {old}; expected the same, got {new}")


def network_digest(network: Any) -> str:
    """SHA-256 over all parameters and buffers of a network, those that are not saved included.

    Names, types, shapes and bytes count; the device does not, nor does a wrapper for several devices.

    Args:
        network: a module; anything else is `described`.

    Example:
        >>> network_digest(torch.nn.Identity())[:16]
        'e3b0c44298fc1c14'
    """
    network = _unwrapped(network)
    if not isinstance(network, torch.nn.Module):
        return digest(described(network))
    rows = {**network.state_dict(keep_vars=True), **dict(network.named_buffers(remove_duplicate=False))}
    lines = [
        f"{name} {tensor_digest(value) if isinstance(value, torch.Tensor) else described(value)}"
        for name, value in sorted(rows.items())
    ]
    return digest("\n".join(lines))


def structure(network: Any) -> str:
    """SHA-256 of a network's layers: their names, classes and settings, without weights."""
    network = _unwrapped(network)
    if not isinstance(network, torch.nn.Module):
        return digest(described(network))
    lines = [
        f"{name} {type(module).__module__}.{type(module).__qualname__} {module.extra_repr()}"
        for name, module in network.named_modules(remove_duplicate=False)
    ]
    return digest("\n".join(lines))


def versions() -> str:
    """Of what computes: this package, MONAI and torch."""
    return f"monai_smia {version('monai-smia')}, monai {monai.__version__}, torch {torch.__version__}"


def _unwrapped(network: Any) -> Any:
    while isinstance(network, (DataParallel, DistributedDataParallel)):
        network = network.module
    return network


def _shown(old: str | None, new: str | None) -> tuple[str, str]:
    """Two values for one line: digests short, long texts around the first place where they differ."""
    if old is None or new is None or max(len(old), len(new)) <= _SHOWN:
        return _short(old), _short(new)
    same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    start = max(0, same - _SHOWN // 3)
    before = "..." if start else ""
    return tuple(f"{before}{text[start : start + _SHOWN]}{'...' if len(text) > start + _SHOWN else ''}"
                 for text in (old, new))  # type: ignore[return-value]  # fmt: skip


def _short(text: str | None) -> str:
    if text is None:
        return "nothing"
    text = _HASH.sub(r"\1", text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
