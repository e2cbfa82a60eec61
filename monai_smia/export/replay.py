# SPDX-License-Identifier: Apache-2.0
"""`replay`: a bundle's own preprocessing, taken apart, so that a gradient goes through it back to the file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirst,
    EnsureChannelFirstd,
    LoadImage,
    LoadImaged,
    NormalizeIntensity,
    NormalizeIntensityd,
    Randomizable,
)

from monai_smia.attacks import BPDA
from monai_smia.engines.ignite import private
from monai_smia.export.reaching import reached

Approximation = Callable[[torch.Tensor], torch.Tensor]
Item = dict[Hashable, Any]

LOADERS = (LoadImage, LoadImaged)
CHANNELS = (EnsureChannelFirst, EnsureChannelFirstd)


class NotDifferentiableError(ValueError):
    """A step of the preprocessing lets no gradient through, and nothing was given in its place."""


@dataclass(frozen=True)
class Loaded:
    """What the loading steps gave, and what comes after them.

    Attributes:
        image: ``(C, *spatial)``, the values of the file.
        steps: the rest of the preprocessing, image to image.
        result: the network's input for the image as it is, ``(C, *spatial)``.
        reader: class name of the MONAI reader that loaded it.
    """

    image: MetaTensor
    steps: tuple[ReplayStep, ...]
    result: MetaTensor
    reader: str


@dataclass(frozen=True)
class ReplayStep:
    """One transform of the preprocessing as a function of the image alone.

    Attributes:
        name: class of the transform.
        transform: as the bundle has it, or a copy that does without the other keys.
        key: of the image; ``None`` for a transform of arrays.
        others: what the transform needs beside the image, as it was at this step.
        approximation: stands in for its gradient; ``"own"`` for its own.
        after: the clean image after this step.
        reach: how far outside the range of its clip (`ScaleIntensityRange`) a voxel may lie and still have a gradient,
            in the units of its input.
    """

    name: str
    transform: Callable[[Any], Any]
    key: str | None
    others: Mapping[Hashable, Any]
    approximation: Approximation | str | None
    after: MetaTensor
    reach: float = 0.0

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """The image after this step."""
        if self.approximation == "own":
            return reached(self.transform, self._apply, image, self.reach)
        approximation = None if isinstance(self.approximation, str) else self.approximation
        wrapped = BPDA(lambda x: self._apply(MetaTensor(x, meta=image.meta)), approximation)
        return MetaTensor(wrapped(image.as_subclass(torch.Tensor)), meta=self.after.meta)

    def _apply(self, image: MetaTensor) -> MetaTensor:
        inner = _stand_in(self.transform)
        out = inner(image) if self.key is None else inner({**self.others, self.key: image})[self.key]
        return out if isinstance(out, MetaTensor) else MetaTensor(out, meta=image.meta)


def replay(
    preprocessing: Any, item: Mapping[Hashable, Any], key: str, bpda: Mapping[str, Approximation | None] | None = None
) -> Loaded:
    """Take a preprocessing apart at one item.

    The transforms themselves are called at every step of an attack, so that what depends on the image (a percentile, a
    foreground box, the largest value) is computed anew, and the gradient is that of MONAI's own code.

    Args:
        preprocessing: of the data set: a `Compose` or a list.
        item: of the data list, with the path of the image under `key`.
        key: of the image.
        bpda: name of a transform to what stands in for its gradient, a differentiable function of the image, or
            ``None`` for the identity (steps that keep the shape, such as a rounding or a filter).

    Raises:
        NotDifferentiableError: naming every transform that no gradient gets through.
        ValueError: for a random transform, and where the image is not loaded from one file with its channel first.
    """
    given = dict(bpda or {})
    state: Item = dict(item)
    pending = flatten(preprocessing)
    refuse_random(pending)
    loading, first = _loading(pending, key)
    reader = _reader_of(loading, item[key])
    for transform in pending[:first]:
        state = transform(dict(state))
    image = state[key]
    _check_loaded(image, key)
    start = copy.deepcopy(image)
    steps = []
    for transform in pending[first:]:
        before, state = state, transform({name: copy.copy(value) for name, value in state.items()})
        name = type(transform).__name__
        if _acts_on(transform, key):
            if not isinstance(state[key], MetaTensor):  # as after EnsureTyped(track_meta=False)
                state[key] = MetaTensor(state[key], meta=before[key].meta)
            steps.append(_as_step(transform, before, state[key], key, given.get(name, "own")))
    unknown = set(given) - {step.name for step in steps}
    if unknown:
        raise ValueError(f"bpda: expected names among {[step.name for step in steps]}; got {sorted(unknown)}")
    _check_gradients(steps, start)
    return Loaded(start, tuple(steps), state[key], reader)


def flatten(preprocessing: Any) -> list[Any]:
    """The transforms in their order, without the `Compose` around them."""
    if type(preprocessing) is Compose:
        return flatten(preprocessing.transforms)
    if isinstance(preprocessing, Sequence):
        return [inner for transform in preprocessing for inner in flatten(transform)]
    return [preprocessing]


def refuse_random(transforms: Sequence[Any]) -> None:
    """An evaluation's preprocessing gives the same image every time.

    Raises:
        ValueError: naming the random ones.
    """
    random = [type(transform).__name__ for transform in transforms if isinstance(transform, Randomizable)]
    if random:
        raise ValueError(
            f"preprocessing: expected transforms without randomness; got {', '.join(random)}. Attack through EoT"
        )


def _loading(transforms: Sequence[Any], key: str) -> tuple[Any, int]:
    """What loads the image, and how many transforms load it and put its channel first."""
    loaders = [
        i for i, transform in enumerate(transforms) if isinstance(transform, LOADERS) and _acts_on(transform, key)
    ]
    if not loaders:
        raise ValueError(f"preprocessing: expected a LoadImaged for {key!r}, to know the file; got none")
    loader = private.image_loader(transforms[loaders[0]])
    if getattr(loader, "ensure_channel_first", False):
        return loader, loaders[0] + 1
    for i in range(loaders[0] + 1, len(transforms)):
        if isinstance(transforms[i], CHANNELS) and _acts_on(transforms[i], key):
            return loader, i + 1
    raise ValueError(f"preprocessing: expected an EnsureChannelFirstd for {key!r} after LoadImaged; got none")


def _reader_of(loader: LoadImage, path: Any) -> str:
    """Class name of the reader that `LoadImage` takes for a path."""
    for reader in reversed(loader.readers):
        if not loader.auto_select or reader.verify_suffix(path):
            return next(kind.__name__ for kind in type(reader).__mro__ if kind.__module__.startswith("monai."))
    return "none"


def _acts_on(transform: Any, key: str) -> bool:
    return key in getattr(transform, "keys", (key,))


def _check_loaded(image: Any, key: str) -> None:
    if not isinstance(image, MetaTensor):
        raise ValueError(f"{key}: expected LoadImaged to give a MetaTensor; got {type(image).__name__}")


def _as_step(
    transform: Any, before: Item, after: MetaTensor, key: str, approximation: Approximation | str | None
) -> ReplayStep:
    """The transform on the image alone where that gives the same, else beside what else it had."""
    name = type(transform).__name__
    if not hasattr(transform, "keys"):
        others = {other: value for other, value in before.items() if other != key}
        return ReplayStep(name, transform, key, others, approximation, after)
    alone = copy.copy(transform)
    alone.allow_missing_keys = True
    step = ReplayStep(name, alone, key, {}, approximation, after)
    try:
        same = _equal(step._apply(copy.copy(before[key])), after)
    except (KeyError, IndexError):
        same = False
    if same:
        return step
    others = {other: value for other, value in before.items() if other != key}
    return ReplayStep(name, transform, key, others, approximation, after)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(torch.as_tensor(one), torch.as_tensor(other)))


def _check_gradients(steps: Sequence[ReplayStep], start: MetaTensor) -> None:
    """A gradient must get through every step."""
    lost = []
    image = start
    for step in steps:
        with torch.enable_grad():
            leaf = image.detach().clone().requires_grad_()
            out = step(leaf * 1.0)
        if not out.requires_grad:
            lost.append(step.name)
        image = step.after
    if lost:
        raise NotDifferentiableError(
            f"preprocessing: no gradient gets through {', '.join(lost)}. Give an approximation by "
            f"bpda={{{', '.join(f'{name!r}: ...' for name in lost)}}}: a differentiable function of the image, or None "
            "for the identity"
        )


def _stand_in(transform: Any) -> Callable[[Any], Any]:
    """The same values without a write into the image that came, which autograd refuses."""
    inner = transform.normalizer if isinstance(transform, NormalizeIntensityd) else transform
    return _Normalized(transform, inner) if isinstance(inner, NormalizeIntensity) else transform


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
