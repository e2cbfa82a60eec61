# SPDX-License-Identifier: Apache-2.0
"""`Head`: what a network's output and a loader's label of one case say, as a label map, boxes or a text to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from monai_smia.attacks.heads import is_binary
from monai_smia.reports.case_tensors import as_numbers, main_tensor, with_channels
from monai_smia.reports.views import Shown

BACKGROUND = "background"
_MOST = 255  # the largest value of a label map


@dataclass(frozen=True)
class Head:
    """How the output of a classifier or a segmentation network is read.

    Attributes:
        spatial: shape of the image, ``H, W[, D]``.
        activation: ``"softmax"``, ``"sigmoid"`` or ``"none"`` (probabilities).
        channels: of the output; 0 where there is none to read.
        binary: whether each channel is a decision of its own.
        background: whether the first of several such channels is the background, which is not drawn.
        names: class number to name.
    """

    spatial: tuple[int, ...]
    activation: str
    channels: int = 0
    binary: bool = False
    background: bool = False
    names: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, output: Any, label: Any, *, spatial: tuple[int, ...], activation: str, names: Mapping[int, str]
    ) -> Head:
        """The head that gave this output (of any run), for labels like this one.

        Probabilities of several channels are decisions of their own where the label has as many channels and they do
        not sum to one. The first of several channels under a sigmoid is the background where `names` says so, or where
        the label holds indices: a loss can compare the two only by making them one-hot.
        """
        tensor = main_tensor(output, spatial)
        channels = 0 if tensor is None else len(tensor)
        expected = with_channels(as_numbers(label), spatial)
        alike = tensor is not None and expected is not None and tensor.shape == expected.shape
        binary = is_binary(activation, channels, activation == "none" and alike and not _sums_to_one(tensor))
        indices = expected is not None and expected.ndim > 1 and len(expected) == 1
        background = binary and channels > 1 and (indices or _is_background(names))
        return cls(spatial, activation, channels, binary, background, names)

    def prediction(self, output: Any) -> Shown:
        """Label map or text; ``None`` for what is neither of the image's spatial shape nor a vector, or holds NaN."""
        tensor = main_tensor(output, self.spatial)
        if tensor is None or bool(tensor.isnan().any()):
            return None
        positive = tensor > (0.5 if self.activation == "none" else 0.0)
        if tensor.ndim == 1:
            return self._verdict(tensor, positive)
        if self.binary:
            return _layers(positive[self.background :])
        return None if len(tensor) > _MOST + 1 else tensor.max(0).indices.numpy().astype(np.uint8)

    def label(self, label: Any) -> Shown:
        """Label map or text; ``None`` for what is neither. Negative (ignored) indices are shown as background."""
        if isinstance(label, str):
            return label
        expected = with_channels(as_numbers(label), self.spatial)
        if expected is None or bool(expected.isnan().any()):
            return None
        one_hot = not self.binary and (len(expected) == self.channels or _sums_to_one(expected))
        if expected.ndim > 1:
            if len(expected) == 1:
                return _layers(expected > 0.5) if self.binary and self.channels == 1 else _whole(expected[0])
            if one_hot:
                return None if len(expected) > _MOST + 1 else expected.max(0).indices.numpy().astype(np.uint8)
            return _layers(expected[self.background :] > 0.5)
        if len(expected) == 1:
            if self.binary and self.channels == 1:
                return self._pair()[int(expected.item() > 0.5)]
            return self._name(expected.item())
        if one_hot and _sums_to_one(expected):
            return self._name(expected.argmax().item())
        return self._listed(expected > 0.5)

    def classes(self) -> tuple[str, ...]:
        """Name of each value of the label maps, background first; empty without `names`."""
        if not self.names:
            return ()
        named = {0: BACKGROUND, **self.names}
        if self.binary and not _is_background(self.names) and not self.background and len(self.names) <= self.channels:
            named = {0: BACKGROUND, **{k + 1: name for k, name in self.names.items()}}
        return tuple(named.get(k, f"class {k}") for k in range(max(named) + 1))

    def _verdict(self, output: torch.Tensor, positive: torch.Tensor) -> str:
        """Of a classifier."""
        if self.binary and len(output) > 1:
            return self._listed(positive)
        if self.binary:
            found = int(positive.item())
            p = (output.double() if self.activation == "none" else output.double().sigmoid()).item()
            return _with_probability(self._pair()[found], p if found else 1 - p)
        probabilities = output.double() if self.activation == "none" else output.double().softmax(0)
        best = int(output.argmax())
        return _with_probability(self._name(best), probabilities[best].item())

    def _name(self, number: float) -> str:
        return self.names.get(int(number), f"class {number:g}") if float(number).is_integer() else f"{number:g}"

    def _pair(self) -> tuple[str, str]:
        """Names of "no" and "yes" of a single binary output."""
        if len(self.names) == 1:
            name = next(iter(self.names.values()))
            return f"no {name}", name
        return self._name(0), self._name(1)

    def _listed(self, positive: torch.Tensor) -> str:
        return ", ".join(self._name(k) for k in positive.nonzero().flatten().tolist()) or "none"


def names_of(label_names: Sequence[str] | Mapping[Any, str]) -> dict[int, str]:
    """Class number to name, from a list or from a ``channel_def``; keys of it that are no numbers are left out.

    Raises:
        TypeError: for a single text.

    Example:
        >>> names_of(["background", "lung"]), names_of({"0": "lung", "1 to 4": "box codes"})
        ({0: 'background', 1: 'lung'}, {0: 'lung'})
    """
    if isinstance(label_names, str):
        raise TypeError(f"label_names: expected a list or a mapping of names; got the text {label_names!r}")
    if isinstance(label_names, Mapping):
        return {int(key): str(name) for key, name in label_names.items() if str(key).isdecimal()}
    return {k: str(name) for k, name in enumerate(label_names)}


def _is_background(names: Mapping[int, str]) -> bool:
    return names.get(0, "").lower() == BACKGROUND


def _sums_to_one(value: torch.Tensor | None) -> bool:
    return value is not None and bool(((value.double().sum(0) - 1).abs() < 1e-3).all())


def _layers(positive: torch.Tensor) -> Shown:
    """Channel k as value k + 1; later channels lie on top."""
    if len(positive) > _MOST:
        return None
    drawn = np.zeros(positive.shape[1:], np.uint8)
    for k, where in enumerate(positive.numpy()):
        drawn[where] = k + 1
    return drawn


def _whole(values: torch.Tensor) -> Shown:
    """Class numbers from 0 to 255; ``None`` for other values than whole ones."""
    if bool((values > _MOST).any()) or bool((values != values.round()).any()):
        return None
    return values.clamp_min(0).numpy().astype(np.uint8)


def _with_probability(name: str, p: float) -> str:
    return f"{name} (p = {p:.2f})" if 0 <= p <= 1 else name
