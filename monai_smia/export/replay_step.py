# SPDX-License-Identifier: Apache-2.0
"""`ReplayStep`: one transform of a preprocessing as a function of the keys that image content reaches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import CopyItemsd, NormalizeIntensity, NormalizeIntensityd

from monai_smia.attacks import BPDA
from monai_smia.export.reaching import reached

Approximation = Callable[[torch.Tensor], torch.Tensor]
Live = dict[str, Any]
"""Key to value of everything that depends on the image's content."""


@dataclass(frozen=True)
class ReplayStep:
    """One transform of the preprocessing as a function of what depends on the image.

    Attributes:
        name: class of the transform.
        transform: as the bundle has it, or a copy that does without the other keys.
        key: of the image.
        inputs: keys that depend on the image and that the step needs.
        outputs: keys that it gives on.
        fixed: what else the transform needs, as it was at this step.
        approximation: stands in for its gradient; ``"own"`` for its own.
        before: `inputs` of the clean image.
        after: `outputs` of the clean image.
        reach: how far outside the range of its clip (`ScaleIntensityRange`) a voxel may lie and still have a gradient,
            by key, in the units of its input.
    """

    name: str
    transform: Callable[[Any], Any]
    key: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fixed: Mapping[Hashable, Any]
    approximation: Approximation | str | None
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    reach: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, image: MetaTensor) -> Any:
        """The image after this step, where the other keys are those of the clean image."""
        return self.along(self.key)(image)

    def along(self, key: str) -> Callable[[MetaTensor], Any]:
        """The step as a function of one key, which it takes and gives."""
        return lambda value: self.apply({**self.before, key: value})[key]

    def apply(self, live: Mapping[str, Any]) -> Live:
        """All of `outputs`.

        Args:
            live: at least `inputs`.
        """
        given = {key: live[key] for key in self.inputs}
        if self.approximation == "own":
            return self._own(given)
        with torch.no_grad():
            values = self._run({key: _detached(value) for key, value in given.items()})
        return {key: self._approximated(key, value, given) for key, value in values.items()}

    def _own(self, given: Live) -> Live:
        out = self._run(given)
        for key, reach in self.reach.items():
            if reach and key in given and key in out:
                out[key] = reached(self.transform, out[key], given[key], reach)
        return out

    def _run(self, given: Mapping[str, Any]) -> Live:
        device = next((value.device for value in given.values() if isinstance(value, torch.Tensor)), None)
        fixed = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in self.fixed.items()
        }
        data = stand_in(self.transform)({**fixed, **given})
        return {key: self._typed(data[key], given.get(key)) for key in self.outputs}

    def _typed(self, value: Any, before: Any) -> Any:
        """The image with its metadata, also after a step that drops them."""
        if isinstance(value, torch.Tensor) and not isinstance(value, MetaTensor) and isinstance(before, MetaTensor):
            return MetaTensor(value, meta=before.meta)
        return value

    def _approximated(self, key: str, value: Any, given: Live) -> Any:
        """A value with the gradient of the approximation.

        Raises:
            ValueError: where it is not clear of which key it would be a function.
        """
        source = key if key in given else next(iter(given)) if len(given) == 1 else None
        if source is None or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"bpda: {self.name} makes {key!r} of {', '.join(self.inputs)}; an approximation is a function of one "
                "image"
            )
        approximation = None if isinstance(self.approximation, str) else self.approximation
        plain = value.as_subclass(torch.Tensor)
        wrapped = BPDA(lambda _: plain, approximation)(given[source].as_subclass(torch.Tensor))
        return MetaTensor(wrapped, meta=value.meta) if isinstance(value, MetaTensor) else wrapped


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def stand_in(transform: Any) -> Callable[[Any], Any]:
    """The same values by a path that autograd follows.

    `NormalizeIntensity` writes into the image that came, `CopyItemsd` detaches its copies.
    """
    if isinstance(transform, CopyItemsd):
        return _Copied(transform)
    inner = transform.normalizer if isinstance(transform, NormalizeIntensityd) else transform
    return _Normalized(transform, inner) if isinstance(inner, NormalizeIntensity) else transform


@dataclass(frozen=True)
class _Copied:
    """`CopyItemsd` whose copies have a gradient."""

    transform: Any

    def __call__(self, data: Any) -> Any:
        linked = {key: data[key] for key in self.transform.keys if isinstance(data.get(key), torch.Tensor)}
        out = self.transform(data)
        for new, key in self._sources():
            if key in linked and new in out:
                out[new] = linked[key].clone()
        return out

    def _sources(self) -> list[tuple[Any, Any]]:
        """New key and old, in the order of MONAI's own loop: all keys for each repetition."""
        keys = list(self.transform.keys) * self.transform.times
        return list(zip(self.transform.names, keys, strict=True))


@dataclass(frozen=True)
class _Normalized:
    """`NormalizeIntensity` on copies, channel by channel where it is told to."""

    transform: Any
    inner: NormalizeIntensity

    def __call__(self, data: Any) -> Any:
        if not isinstance(data, dict):
            return self._normalize(data)
        keys = [key for key in self.transform.keys if key in data]
        return {**data, **{key: self._normalize(data[key]) for key in keys}}

    def _normalize(self, image: MetaTensor) -> MetaTensor:
        if not self.inner.channel_wise:
            return self.inner(image.clone())
        channels = []
        for i in range(len(image)):
            single = copy.copy(self.inner)
            single.channel_wise = False
            single.subtrahend, single.divisor = (_of(value, i) for value in (self.inner.subtrahend, self.inner.divisor))
            channels.append(single(image[i : i + 1].clone()))
        return MetaTensor(torch.cat(channels), meta=image.meta)


def _of(value: Any, channel: int) -> Any:
    return None if value is None else value[channel]
