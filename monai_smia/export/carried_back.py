# SPDX-License-Identifier: Apache-2.0
"""`carried_back`: a change of the network's input as a change of the file, the usual way, which loses something."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import no_collation
from monai.transforms import InvertibleTransform
from monai.utils import TraceKeys, ensure_tuple

from monai_smia.export.replay import Loaded
from monai_smia.export.replay_step import ReplayStep

EXTREME = 0.25
"""Share of the largest value; a mean or a deviation of many voxels moves less when one of them doubles the range."""


def carried_back(loaded: Loaded, change: torch.Tensor) -> torch.Tensor:
    r"""A change of the network's input on the file's grid, in physical units.

    Steps that move voxels are undone by MONAI's own inverse (a spacing by interpolation, a crop by zeros around it);
    of the others, those of intensity, the change is divided by their slope at the image,

    .. math:: s_c = \operatorname{median}_i \left| \frac{\partial P(x)_{ci}}{\partial x_{ci}} \right|

    over the voxels whose gradient gets through. The result is neither rounded nor clipped.

    Args:
        loaded: the preprocessing at the image, see `replay`.
        change: ``(C, *spatial)``, on the grid of the network's input.

    Raises:
        ValueError: for another shape, a step that moves voxels and has no inverse, and one through which no change
            gets.
    """
    wanted = tuple(loaded.result.shape)
    if tuple(change.shape) != wanted:
        raise ValueError(f"change: expected {wanted}, the network's input; got {tuple(change.shape)}")
    value = change.detach().cpu().as_subclass(torch.Tensor)
    for step in reversed(list(_path(loaded))):
        stays = keeps_places(step.before[step.key], step.after[step.key]) and not _moves_unseen(step)
        value = value / slope_of(step) if stays else _undone(step, value)
    return value


def input_slope(loaded: Loaded) -> torch.Tensor:
    """Input units per physical unit, ``(C,)``: the product of the slopes of the intensity steps."""
    total = torch.ones(len(loaded.image))
    for step in _path(loaded):
        if keeps_places(step.before[step.key], step.after[step.key]):
            total = total * slope_of(step).flatten()
    return total


def extremes_scale(loaded: Loaded) -> bool:
    """Whether one voxel beyond the image's range changes all of the network's input, as by `ScaleIntensity`."""
    return any(_extremes_scale(step, key) for step in loaded.steps for key in step.inputs if key in step.outputs)


def _extremes_scale(step: ReplayStep, key: str) -> bool:
    before, after = step.before[key], step.after[key]
    if not keeps_places(before, after):
        return False
    raised = before.detach().clone(memory_format=torch.contiguous_format)
    flat = raised.as_subclass(torch.Tensor).view(-1)
    place = int(flat.argmax())
    flat[place] += flat.max() - flat.min() + 1
    change = (step.along(key)(raised) - after).as_subclass(torch.Tensor).abs().reshape(-1)
    change[place] = 0
    return float(change.max()) > EXTREME * float(after.abs().max())


def _path(loaded: Loaded) -> Iterator[ReplayStep]:
    """The steps that the image takes, without those of the keys beside it.

    Raises:
        ValueError: for a step that makes the image of other keys alone.
    """
    for step in loaded.steps:
        if step.key in step.outputs:
            if step.key not in step.inputs:
                raise ValueError(
                    f"preprocessing: {step.name} makes {step.key!r} of {', '.join(map(repr, step.inputs))}; no change "
                    "can be carried back"
                )
            yield step


def keeps_places(before: Any, after: Any) -> bool:
    """Whether a step leaves every voxel where it was, as far as shape and affine tell."""
    if not (isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor)) or before.shape != after.shape:
        return False
    if not (isinstance(before, MetaTensor) and isinstance(after, MetaTensor)):
        return True
    return bool(torch.allclose(before.affine, after.affine))


def slope_of(step: ReplayStep, key: str | None = None) -> torch.Tensor:
    """Of a step of intensity, ``(C, 1, ...)``, by its own gradient: random signs tell a voxel from its neighbours."""
    key = step.key if key is None else key
    own = _own_gradient(step, key)
    slopes = [channel[channel != 0].median() if bool(channel.any()) else channel.new_zeros(()) for channel in own]
    slope = torch.stack(slopes)
    if not bool(slope.all()):
        raise ValueError(f"preprocessing: no change gets through {step.name} at this image")
    return slope.reshape(-1, *[1] * (step.before[key].ndim - 1))


def _moves_unseen(step: ReplayStep) -> bool:
    """Whether voxels change places although neither the shape nor the affine tells, as by `Transposed` of a square.

    Then each has the slope of another, all of one size and with a sign by chance.
    """
    own = _own_gradient(step, step.key)
    found = own[own != 0]
    if not len(found) or not bool(found.min() < 0 < found.max()):
        return False
    return torch.allclose(found.abs(), found[0].abs()) and not torch.equal(own, _own_gradient(step, step.key, seed=1))


def _own_gradient(step: ReplayStep, key: str, seed: int = 0) -> torch.Tensor:
    """Of random signs in the result, the part that comes back to each voxel with its own sign, ``(C, voxels)``."""
    before = step.before[key]
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, before.shape, generator=generator).float() * 2 - 1
    with torch.enable_grad():
        leaf = before.detach().clone().float().requires_grad_()
        out = step.along(key)(leaf * 1.0)
        (gradient,) = torch.autograd.grad(out, leaf, signs.to(out) if isinstance(out, MetaTensor) else signs)
    return (gradient.as_subclass(torch.Tensor) * signs).flatten(1)


def _undone(step: ReplayStep, value: torch.Tensor) -> torch.Tensor:
    transform, after = step.transform, step.after[step.key]
    operations = copy.deepcopy(getattr(after, "applied_operations", []))
    pretends = no_collation in ensure_tuple(getattr(transform, "inv_func", None))  # a Lambda that was given no inverse
    if not isinstance(transform, InvertibleTransform) or not operations or pretends:
        raise ValueError(f"preprocessing: {step.name} moves voxels and has no inverse; no change can be carried back")
    if operations[-1].get(TraceKeys.CLASS_NAME) == step.name:
        operations[-1][TraceKeys.ID] = TraceKeys.NONE  # of the transform that this one may be a copy of
    data = MetaTensor(value, meta=copy.deepcopy(after.meta), applied_operations=operations)
    given = dict(step.fixed)
    given.update({**step.before, step.key: data})
    undone = transform.inverse(given)[step.key]
    return torch.as_tensor(undone).as_subclass(torch.Tensor)
