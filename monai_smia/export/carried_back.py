# SPDX-License-Identifier: Apache-2.0
"""`carried_back`: a change of the network's input as a change of the file, the usual way, which loses something."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform

from monai_smia.export.replay import Loaded, ReplayStep

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
    for step, before in reversed(list(with_before(loaded))):
        value = value / slope_of(step, before) if keeps_places(before, step.after) else _undone(step, value)
    return value


def input_slope(loaded: Loaded) -> torch.Tensor:
    """Input units per physical unit, ``(C,)``: the product of the slopes of the intensity steps."""
    total = torch.ones(len(loaded.image))
    for step, before in with_before(loaded):
        if keeps_places(before, step.after):
            total = total * slope_of(step, before).flatten()
    return total


def extremes_scale(loaded: Loaded) -> bool:
    """Whether one voxel beyond the image's range changes all of the network's input, as by `ScaleIntensity`."""
    for step, before in with_before(loaded):
        if keeps_places(before, step.after):
            raised = before.detach().clone(memory_format=torch.contiguous_format)
            flat = raised.as_subclass(torch.Tensor).view(-1)
            place = int(flat.argmax())
            flat[place] += flat.max() - flat.min() + 1
            change = (step(raised) - step.after).as_subclass(torch.Tensor).abs().reshape(-1)
            change[place] = 0
            if float(change.max()) > EXTREME * float(step.after.abs().max()):
                return True
    return False


def with_before(loaded: Loaded) -> Iterator[tuple[ReplayStep, MetaTensor]]:
    """Every step with the image before it."""
    image = loaded.image
    for step in loaded.steps:
        yield step, image
        image = step.after


def keeps_places(before: MetaTensor, after: MetaTensor) -> bool:
    return before.shape == after.shape and bool(torch.allclose(before.affine, after.affine))


def slope_of(step: ReplayStep, before: MetaTensor) -> torch.Tensor:
    """Of a step of intensity, ``(C, 1, ...)``, by its own gradient: random signs tell a voxel from its neighbours."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, before.shape, generator=generator).float() * 2 - 1
    with torch.enable_grad():
        leaf = before.detach().clone().float().requires_grad_()
        (gradient,) = torch.autograd.grad(step(leaf * 1.0), leaf, MetaTensor(signs))
    own = (gradient.as_subclass(torch.Tensor) * signs).flatten(1)
    slopes = [channel[channel != 0].median() if bool(channel.any()) else channel.new_zeros(()) for channel in own]
    slope = torch.stack(slopes)
    if not bool(slope.all()):
        raise ValueError(f"preprocessing: no change gets through {step.name} at this image")
    return slope.reshape(-1, *[1] * (before.ndim - 1))


def _undone(step: ReplayStep, value: torch.Tensor) -> torch.Tensor:
    transform = step.transform
    operations = copy.deepcopy(step.after.applied_operations)
    if not isinstance(transform, InvertibleTransform) or not operations:
        raise ValueError(f"preprocessing: {step.name} moves voxels and has no inverse; no change can be carried back")
    data = MetaTensor(value, meta=copy.deepcopy(step.after.meta), applied_operations=operations)
    if step.key is None:
        return torch.as_tensor(transform.inverse(data)).as_subclass(torch.Tensor)
    undone = transform.inverse({**step.others, step.key: data})[step.key]
    return torch.as_tensor(undone).as_subclass(torch.Tensor)
