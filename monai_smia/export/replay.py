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
    Randomizable,
)

from monai_smia.engines.ignite import private
from monai_smia.export.dependence import Item, another, following, same
from monai_smia.export.replay_step import Approximation as Approximation
from monai_smia.export.replay_step import Live, ReplayStep

LOADERS = (LoadImage, LoadImaged)
CHANNELS = (EnsureChannelFirst, EnsureChannelFirstd)
FILE = "filename_or_obj"


class NotDifferentiableError(ValueError):
    """A step of the preprocessing lets no gradient through, and nothing was given in its place."""


@dataclass(frozen=True)
class Loaded:
    """What the loading steps gave, and what comes after them.

    Attributes:
        image: ``(C, *spatial)``, the values of the file, floating.
        steps: the rest of the preprocessing, from the keys that hold the image to those that the network needs.
        result: the network's input for the image as it is, ``(C, *spatial)``.
        reader: class name of the MONAI reader that loaded it.
        dtype: of the image as it was loaded.
        key: of the image.
        copies: other keys that hold the image after the loading.
        needed: keys that depend on the image and that the network needs.
        transforms: all of the preprocessing after the loading.
        start, end: the item after the loading and after the preprocessing.
        dependent: keys of `end` that depend on the image, whether the network needs them or not, each with the class of
            the transform that made it so.
        options: of the reader, where they are not the usual ones, as ``name=value``.
    """

    image: MetaTensor
    steps: tuple[ReplayStep, ...]
    result: MetaTensor
    reader: str
    dtype: torch.dtype
    key: str
    copies: tuple[str, ...]
    needed: tuple[str, ...]
    transforms: tuple[Any, ...]
    start: Item
    end: Item
    dependent: Mapping[str, str]
    options: tuple[str, ...] = ()

    def begin(self, image: MetaTensor) -> Live:
        """The image under all keys that hold it after the loading."""
        return {name: image for name in (self.key, *self.copies)}

    def item_at(self, values: torch.Tensor) -> Item:
        """What the whole preprocessing makes of other values of the file: as it is read from disk.

        Args:
            values: ``(C, *spatial)``.
        """
        with torch.no_grad():
            state = dict(self.start)
            for name in (self.key, *self.copies):
                image = values.detach().as_subclass(torch.Tensor).to(self.image.device).clone()
                state[name] = MetaTensor(image, meta=copy.deepcopy(self.start[name].meta))
            for transform in self.transforms:
                state = dict(transform({name: copy.copy(value) for name, value in state.items()}))
        return state


def replay(
    preprocessing: Any,
    item: Mapping[Hashable, Any],
    key: str,
    bpda: Mapping[str, Approximation | None] | None = None,
    *,
    reaches: Callable[[Item, set[str]], set[str]] | None = None,
) -> Loaded:
    """Take a preprocessing apart at one item.

    The transforms themselves are called at every step of an attack, so that what depends on the image (a percentile, a
    foreground box, the largest value) is computed anew, and the gradient is that of MONAI's own code. Every key that
    the image's content reaches on its way to the network is followed: copies, windows, masks (see `following`).

    Args:
        preprocessing: of the data set: a `Compose` or a list.
        item: of the data list, with the path of the image under `key`.
        key: of the image.
        bpda: name of a transform to what stands in for its gradient, a differentiable function of the image, or
            ``None`` for the identity (steps that keep the shape, such as a rounding or a filter).
        reaches: of the preprocessed item and its keys that depend on the image, those that the network needs; ``None``
            for `key` alone.

    Raises:
        NotDifferentiableError: naming every transform that no gradient gets through, and the key.
        ValueError: for a random transform, and where the image is not loaded from one file with its channel first, or
            another key is made from it before that.
    """
    given = dict(bpda or {})
    pending = flatten(preprocessing)
    refuse_random(pending)
    loader, first = _loading(pending, key)
    reader = _reader_of(loader, item[key])
    state, copies = _loaded_item(pending[:first], item, key)
    dtype = state[key].dtype
    for name in (key, *copies):
        if not state[name].is_floating_point():  # integers have no gradient
            state[name] = state[name].float()
    start = dict(state)
    image = copy.deepcopy(state[key])
    wanted = reaches or (lambda _, live: {key} & live)
    live = {key, *copies}
    found, end, dependent = following(pending[first:], state, live, key, wanted)
    steps = []
    for one in found:
        name = type(one.transform).__name__
        before, after = (
            {k: source[k] for k in keys} for keys, source in ((one.inputs, one.before), (one.outputs, one.after))
        )
        if key in after and not isinstance(after[key], MetaTensor):  # as after EnsureTyped(track_meta=False)
            after[key] = MetaTensor(after[key], meta=getattr(one.before.get(key), "meta", image.meta))
        steps.append(
            ReplayStep(
                name, one.transform, key, one.inputs, one.outputs, one.fixed, given.get(name, "own"), before, after
            )
        )
    unknown = set(given) - {step.name for step in steps}
    if unknown:
        raise ValueError(f"bpda: expected names among {[step.name for step in steps]}; got {sorted(unknown)}")
    _check_gradients(steps)
    needed = tuple(sorted(wanted(end, set(dependent))))
    result = end.get(key, image)
    result = result if isinstance(result, MetaTensor) else MetaTensor(torch.as_tensor(result), meta=image.meta)
    return Loaded(
        image,
        tuple(steps),
        result,
        reader,
        dtype,
        key,
        copies,
        needed,
        tuple(pending[first:]),
        start,
        end,
        dependent,
        _options_of(loader, item[key]),
    )


def _loaded_item(transforms: Sequence[Any], item: Mapping[Hashable, Any], key: str) -> tuple[Item, tuple[str, ...]]:
    """The item after the loading, and the other keys that hold the image.

    Raises:
        ValueError: where another key is made from the image before its channel is first.
    """
    state: Item = dict(item)
    other: Item | None = None
    for transform in transforms:
        if other is None and isinstance(state.get(key), torch.Tensor):
            other = {**state, key: another(state[key])}
        state = dict(transform(dict(state)))
        if other is not None:
            other = dict(transform(dict(other)))
    _check_loaded(state[key], key)
    source = state[key].meta.get(FILE)
    # a copy of the path before the loading is read from the same file; a path of the data list's own is not replaced
    copied = {
        str(name)
        for name, value in state.items()
        if name not in item and isinstance(value, MetaTensor) and source and value.meta.get(FILE) == source
    }
    made = set() if other is None else {str(name) for name in state if not same(state[name], other.get(name))}
    names = tuple(sorted((copied | made) - {key}))
    strange = [name for name in names if not same(state[name], state[key])]
    if strange:
        raise ValueError(
            f"preprocessing: {', '.join(map(repr, strange))} is made from {key!r} before its channel is first; "
            "expected LoadImaged and EnsureChannelFirstd before anything else"
        )
    return state, names


def flatten(preprocessing: Any) -> list[Any]:
    """The transforms in their order, without the `Compose` around them."""
    if type(preprocessing) is Compose:
        return flatten(preprocessing.transforms)
    if isinstance(preprocessing, Sequence):
        return [inner for transform in preprocessing for inner in flatten(transform)]
    return [preprocessing]


def keys_loaded(preprocessing: Any) -> set[str]:
    """Keys that a preprocessing loads from files."""
    loaders = [transform for transform in flatten(preprocessing) if isinstance(transform, LoadImaged)]
    return {str(key) for loader in loaders for key in loader.keys}


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


def reader_at(preprocessing: Any, item: Mapping[Hashable, Any], key: str) -> str:
    """Class name of the MONAI reader that loads the image of an item.

    Raises:
        ValueError: as in `replay`.
    """
    pending = flatten(preprocessing)
    refuse_random(pending)
    return _reader_of(_loading(pending, key)[0], item[key])


def _reader(loader: LoadImage, path: Any) -> Any:
    """The reader that `LoadImage` takes for a path."""
    taken = (one for one in reversed(loader.readers) if not loader.auto_select or one.verify_suffix(path))
    return next(taken, None)


def _reader_of(loader: LoadImage, path: Any) -> str:
    """Its class name, that of MONAI's where it is derived from one."""
    kinds = type(_reader(loader, path)).__mro__
    return next((kind.__name__ for kind in kinds if kind.__module__.startswith("monai.")), "none")


def _options_of(loader: LoadImage, path: Any) -> tuple[str, ...]:
    """Switches of the reader that differ from those of a reader as MONAI makes it."""
    reader = _reader(loader, path)
    kind = next((kind for kind in type(reader).__mro__ if kind.__module__.startswith("monai.")), None)
    if kind is None:
        return ()
    usual = vars(kind())
    return tuple(
        f"{name}={value!r}"
        for name, value in sorted(vars(reader).items())
        if name in usual and isinstance(value, (bool, int, str)) and value != usual[name]
    )


def _acts_on(transform: Any, key: str) -> bool:
    return key in getattr(transform, "keys", (key,))


def _check_loaded(image: Any, key: str) -> None:
    if not isinstance(image, MetaTensor):
        raise ValueError(f"{key}: expected LoadImaged to give a MetaTensor; got {type(image).__name__}")


def _check_gradients(steps: Sequence[ReplayStep]) -> None:
    """A gradient must get through every step, to every key that the network needs."""
    lost: dict[str, list[str]] = {}
    for step in steps:
        with torch.enable_grad():
            leaves = {key: _leaf(value) for key, value in step.before.items()}
            out = step.apply({key: value * 1.0 if _is_leaf(value) else value for key, value in leaves.items()})
        for key, value in out.items():
            if not (isinstance(value, torch.Tensor) and value.requires_grad):
                lost.setdefault(step.name, []).append(key)
    if lost:
        names = ", ".join(
            f"{name} (to {', '.join(map(repr, keys))})" if keys != [steps[0].key] else name
            for name, keys in lost.items()
        )
        raise NotDifferentiableError(
            f"preprocessing: no gradient gets through {names}. Give an approximation by "
            f"bpda={{{', '.join(f'{name!r}: ...' for name in lost)}}}: a differentiable function of the image, or None "
            "for the identity"
        )


def _leaf(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value


def _is_leaf(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad
