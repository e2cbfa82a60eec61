# SPDX-License-Identifier: Apache-2.0
"""Clinical goals of a segmentation: erase a lesion, insert one, shift a volume; success in those terms.

A goal gives any targeted attack its target, its loss and its criterion:

.. code-block:: python

    goal = ShiftVolume(structure=1, by=-5.0, spacing=image)  # five millilitres less
    attack = PGD(goal.loss(), eps=0.03, targeted=True, criterion=goal)
    result = attack(network, image, goal.target(label, network(image)))
    goal.measure(network(result.adversarial))  # millilitres
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.criteria import Criterion
from monai_smia.attacks.heads import ACTIVATIONS, LossFunction
from monai_smia.attacks.regions import Ball, Region, check_region, inside
from monai_smia.attacks.scenes import channelled, holds, removed, scene, written
from monai_smia.attacks.spacing import as_spacing, unit_of, voxel_sizes
from monai_smia.attacks.volumes import VolumeLoss, decided, output_of


class ClinicalGoal(Criterion):
    """What a targeted attack is to bring about, in clinical terms; the attack's criterion."""

    @property
    @abstractmethod
    def unit(self) -> str:
        """Unit of `measure`."""

    @abstractmethod
    def target(self, label: torch.Tensor, prediction: Any = None) -> torch.Tensor:
        """The target of the attack, batch axis first.

        Args:
            label: as MONAI's loaders give it.
            prediction: the network's at the clean image, in evaluation mode; where given, the goal starts from what the
                network sees, not from the label.
        """

    @abstractmethod
    def measure(self, prediction: Any, target: Any = None) -> torch.Tensor:
        """The quantity that success is measured by, ``(B,)``, in `unit`."""

    def loss(self, loss_function: LossFunction | None = None) -> LossFunction:
        """The loss towards the goal: the network's own, as it is, where a label map says all of it.

        Raises:
            TypeError: where the goal needs the network's own loss and none came.
        """
        if loss_function is None:
            raise TypeError(f"loss_function: {type(self).__name__} needs the network's own loss; got None")
        return loss_function


def check_structure(structure: int, activation: str) -> None:
    """A class or a channel, and the head that it is read from."""
    checks.as_count("structure", structure, low=0)
    checks.one_of("activation", activation, ACTIVATIONS)


@dataclass(frozen=True, eq=False)
class Erase(ClinicalGoal):
    """A structure that the network no longer sees: at most `tolerance` of it is left.

    The target is the label with the structure turned into `into`, to be reached with the network's own loss. A Dice
    loss alone has hardly a slope where its target is empty; give one with a cross-entropy.

    Args:
        structure: class of a softmax head, channel of a sigmoid head (0 if it has one).
        spacing: millimetres per voxel along each axis, ``(sx, sy[, sz])``, or a row for each sample, or a batched
            `MetaTensor` to read it from.
        tolerance: what may be left, in millilitres (2-D: mm²), at least 0.
        within: the lesion meant, where the structure has several: a `Ball` or a mask ``(B | 1, 1, H, W[, D])``; what
            lies outside stays and is not measured. ``None`` for all of the structure.
        into: class that takes its place, of a softmax head or of indices.
        activation: the head, ``"softmax"``, ``"sigmoid"`` or ``"none"`` (probabilities; of several channels they
            exclude each other).

    Example:
        >>> goal = Erase(0, spacing=(1.0, 2.0), tolerance=2.0, activation="sigmoid")
        >>> goal.target(torch.tensor([[[[1, 0, 1]]]]))
        tensor([[[[0, 0, 0]]]])
        >>> left = torch.tensor([[[[1.0, -1.0, 1.0]]], [[[1.0, -1.0, -1.0]]]])
        >>> goal.measure(left), goal(left, None)
        (tensor([4., 2.]), tensor([False,  True]))
    """

    structure: int
    spacing: Any = field(kw_only=True)
    tolerance: float = field(default=0.0, kw_only=True)
    within: Region | None = field(default=None, kw_only=True, repr=False)
    into: int = field(default=0, kw_only=True)
    activation: str = field(default="softmax", kw_only=True)

    def __post_init__(self) -> None:
        check_structure(self.structure, self.activation)
        checks.as_count("into", self.into, low=0)
        if self.activation == "softmax" and self.into == self.structure:
            raise ValueError(f"into: expected another class than the structure {self.structure}; got {self.into}")
        object.__setattr__(self, "spacing", as_spacing(self.spacing))
        if not (isinstance(self.tolerance, (int, float)) and math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"tolerance: expected {self.unit} >= 0; got {self.tolerance!r}")
        if self.within is not None:
            check_region("within", self.within)

    @property
    def unit(self) -> str:
        return unit_of(self.spacing)

    def target(self, label: torch.Tensor, prediction: Any = None) -> torch.Tensor:
        """The label without the structure, in its own shape and dtype."""
        seen = scene(label, prediction, self.activation)
        grid = channelled(seen, len(self.spacing[0]))
        where = torch.ones_like(grid[:, 0], dtype=torch.bool)
        if self.within is not None:
            where = inside("within", self.within, grid)
        return removed(seen, where, self.structure, self.into, self.activation)

    def measure(self, prediction: Any, target: Any = None) -> torch.Tensor:
        """What is left, in millilitres (2-D: mm²), ``(B,)``."""
        left, sizes = self._left(prediction)
        return left * torch.tensor(sizes, dtype=torch.float32, device=left.device)

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        left, sizes = self._left(prediction)
        allowed = [
            self.tolerance / size for size in sizes
        ]  # compared in voxels: whole numbers survive single precision
        return left <= torch.tensor(allowed, dtype=torch.float32, device=left.device)

    def _left(self, prediction: Any) -> tuple[torch.Tensor, list[float]]:
        output = output_of(prediction, self.structure, self.activation)
        found = decided(output, self.structure, self.activation)
        if self.within is not None:
            found = found & inside("within", self.within, output)
        return found.flatten(1).sum(1), voxel_sizes(self.spacing, len(found), found.ndim - 1)


@dataclass(frozen=True, eq=False)
class Insert(ClinicalGoal):
    """A structure that the network sees where there is none: at least `fraction` of a region is predicted as it.

    The target is the label with the structure written into the region, to be reached with the network's own loss.

    Args:
        structure: class of a softmax head, channel of a sigmoid head (0 if it has one).
        region: where: a `Ball`, or a mask ``(B | 1, 1, H, W[, D])``.
        fraction: share of the region's voxels, in (0, 1].
        activation: the head, ``"softmax"``, ``"sigmoid"`` or ``"none"`` (probabilities; of several channels they
            exclude each other).

    Example:
        >>> goal = Insert(2, region=Ball(at=(0, 1), radius_mm=1.0, spacing=(1.0, 1.0)), fraction=0.5)
        >>> goal.target(torch.zeros(1, 1, 1, 4, dtype=torch.long))
        tensor([[[[2, 2, 2, 0]]]])
    """

    structure: int
    region: Region = field(kw_only=True, repr=False)
    fraction: float = field(default=0.5, kw_only=True)
    activation: str = field(default="softmax", kw_only=True)

    def __post_init__(self) -> None:
        check_structure(self.structure, self.activation)
        check_region("region", self.region)
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction: expected a share in (0, 1]; got {self.fraction!r}")

    @property
    def unit(self) -> str:
        return "share"

    def target(self, label: torch.Tensor, prediction: Any = None) -> torch.Tensor:
        """The label with the structure in the region, in its own shape and dtype."""
        seen = scene(label, prediction, self.activation)
        rank = self.region.rank if isinstance(self.region, Ball) else self.region.ndim - 2
        return written(seen, inside("region", self.region, channelled(seen, rank)), self.structure, self.activation)

    def measure(self, prediction: Any, target: Any = None) -> torch.Tensor:
        """Share of the region that is predicted as the structure, in [0, 1], ``(B,)``."""
        output = output_of(prediction, self.structure, self.activation)
        where = inside("region", self.region, output).flatten(1)
        found = decided(output, self.structure, self.activation).flatten(1)
        return (found & where).sum(1) / where.sum(1)

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        return self.measure(prediction) >= self.fraction


@dataclass(frozen=True, eq=False)
class ShiftVolume(ClinicalGoal):
    r"""A structure's predicted volume changed by at least so many millilitres.

    .. math:: \operatorname{sign}(b)\,(V(f(x')) - V_0) \ge |b|

    with :math:`V_0` the volume in the clean prediction, or in the label where `target` is given none. Its loss is
    `VolumeLoss`.

    Args:
        structure: class of a softmax head, channel of a sigmoid head (0 if it has one).
        by: b, in millilitres (2-D: mm²), negative to shrink.
        spacing: millimetres per voxel along each axis, ``(sx, sy[, sz])``, or a row for each sample, or a batched
            `MetaTensor` to read it from.
        activation: the head, ``"softmax"``, ``"sigmoid"`` or ``"none"`` (probabilities; of several channels they
            exclude each other).
        soft: whether the loss counts probabilities, for attacks without gradients, see `VolumeLoss`; success counts
            decisions.

    Example:
        >>> goal = ShiftVolume(1, by=-0.002, spacing=(1.0, 1.0, 1.0))
        >>> label = torch.tensor([1, 1, 1, 0]).reshape(1, 1, 4, 1, 1)
        >>> goal.target(label)  # one voxel, each of a thousandth of a millilitre
        tensor([[1.0000, 0.0010]])
    """

    structure: int
    by: float = field(kw_only=True)
    spacing: Any = field(kw_only=True)
    activation: str = field(default="softmax", kw_only=True)
    soft: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_structure(self.structure, self.activation)
        object.__setattr__(self, "spacing", as_spacing(self.spacing))
        if not (isinstance(self.by, (int, float)) and math.isfinite(self.by) and self.by != 0):
            raise ValueError(f"by: expected {self.unit}, finite and not 0; got {self.by!r}")

    @property
    def unit(self) -> str:
        return unit_of(self.spacing)

    def loss(self, loss_function: LossFunction | None = None) -> LossFunction:
        """`VolumeLoss`; the network's own is not needed."""
        return VolumeLoss(self.structure, self.by > 0, self.activation, self.soft)

    def target(self, label: torch.Tensor, prediction: Any = None) -> torch.Tensor:
        """``(B, 2)``, single precision: the wanted number of voxels, and the size of one in millilitres (2-D: mm²).

        Raises:
            ValueError: when a sample has less than what it is to lose, or no room for what it is to gain.
        """
        if prediction is None:
            rank = len(self.spacing[0])
            found = holds(scene(label, None, self.activation), self.structure, self.activation, rank)
        else:
            found = decided(prediction, self.structure, self.activation)
        count, voxels = found.flatten(1).sum(1), found[0].numel()
        sizes = voxel_sizes(self.spacing, len(found), found.ndim - 1)
        wanted = count + torch.tensor([self.by / size for size in sizes], dtype=torch.float32, device=count.device)
        impossible = (wanted < 0) | (wanted > voxels)
        if bool(impossible.any()):
            i = int(impossible.nonzero()[0])
            raise ValueError(
                f"by: sample {i} holds {int(count[i]) * sizes[i]:.6g} {self.unit} of structure {self.structure} in an "
                f"image of {voxels * sizes[i]:.6g}; it cannot change by {self.by:g}"
            )
        return torch.stack((wanted, torch.tensor(sizes, dtype=torch.float32, device=count.device)), 1)

    def measure(self, prediction: Any, target: Any = None) -> torch.Tensor:
        """The predicted volume, in millilitres (2-D: mm²), ``(B,)``."""
        found = decided(prediction, self.structure, self.activation)
        sizes = voxel_sizes(self.spacing, len(found), found.ndim - 1)
        return found.flatten(1).sum(1) * torch.tensor(sizes, dtype=torch.float32, device=found.device)

    def __call__(self, prediction: Any, target: torch.Tensor) -> torch.Tensor:
        count = decided(prediction, self.structure, self.activation).flatten(1).sum(1)
        return count >= target[:, 0] if self.by > 0 else count <= target[:, 0]
