# SPDX-License-Identifier: Apache-2.0
"""`carried_back`: a change of the network's input as a change of the file, the usual way, which loses something."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from monai.data import MetaTensor
from monai.data.utils import no_collation
from monai.transforms import InvertibleTransform
from monai.utils import TraceKeys, ensure_tuple

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
        stays = keeps_places(before, step.after) and not _moves_unseen(step, before)
        value = value / slope_of(step, before) if stays else _undone(step, value)
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
    own = _own_gradient(step, before)
    slopes = [channel[channel != 0].median() if bool(channel.any()) else channel.new_zeros(()) for channel in own]
    slope = torch.stack(slopes)
    if not bool(slope.all()):
        raise ValueError(f"preprocessing: no change gets through {step.name} at this image")
    return slope.reshape(-1, *[1] * (before.ndim - 1))


def _moves_unseen(step: ReplayStep, before: MetaTensor) -> bool:
    """Whether voxels change places although neither the shape nor the affine tells, as by `Transposed` of a square.

    Then each has the slope of another, all of one size and with a sign by chance.
    """
    own = _own_gradient(step, before)
    found = own[own != 0]
    if not len(found) or not bool(found.min() < 0 < found.max()):
        return False
    return torch.allclose(found.abs(), found[0].abs()) and not torch.equal(own, _own_gradient(step, before, seed=1))


def _own_gradient(step: ReplayStep, before: MetaTensor, seed: int = 0) -> torch.Tensor:
    """Of random signs in the result, the part that comes back to each voxel with its own sign, ``(C, voxels)``."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, before.shape, generator=generator).float() * 2 - 1
    with torch.enable_grad():
        leaf = before.detach().clone().float().requires_grad_()
        (gradient,) = torch.autograd.grad(step(leaf * 1.0), leaf, MetaTensor(signs))
    return (gradient.as_subclass(torch.Tensor) * signs).flatten(1)


def _undone(step: ReplayStep, value: torch.Tensor) -> torch.Tensor:
    transform = step.transform
    operations = copy.deepcopy(step.after.applied_operations)
    pretends = no_collation in ensure_tuple(getattr(transform, "inv_func", None))  # a Lambda that was given no inverse
    if not isinstance(transform, InvertibleTransform) or not operations or pretends:
        raise ValueError(f"preprocessing: {step.name} moves voxels and has no inverse; no change can be carried back")
    if operations[-1].get(TraceKeys.CLASS_NAME) == step.name:
        operations[-1][TraceKeys.ID] = TraceKeys.NONE  # of the transform that this one may be a copy of
    data = MetaTensor(value, meta=copy.deepcopy(step.after.meta), applied_operations=operations)
    if step.key is None:
        return torch.as_tensor(transform.inverse(data)).as_subclass(torch.Tensor)
    undone = transform.inverse({**step.others, step.key: data})[step.key]
    return torch.as_tensor(undone).as_subclass(torch.Tensor)
