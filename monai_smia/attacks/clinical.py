# SPDX-License-Identifier: Apache-2.0
"""Clinical goals of a segmentation: erase a lesion, insert one, shift a volume; success in those terms.

`Towards` makes an attack of a goal. What it does, by hand:

.. code-block:: python

    goal = ShiftVolume(structure=1, by=-5.0, spacing=image)  # five millilitres less
    attack = PGD(goal.loss(), eps=0.03, targeted=True, criterion=goal)
    result = attack(network, image, goal.target(label, network(image)))
    goal.measure(network(result.adversarial))  # millilitres
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.criteria import Criterion
from monai_smia.attacks.heads import ACTIVATIONS, LossFunction
from monai_smia.attacks.label_edits import channelled, holds, labels_seen, removed, written
from monai_smia.attacks.regions import Ball, Region, check_region, inside
from monai_smia.attacks.spacing import Spacing, as_spacing, known_spacing, unit_of, voxel_sizes
from monai_smia.attacks.volumes import PresenceLoss, VolumeLoss, decided, output_of


class ClinicalGoal(Criterion):
    """What a targeted attack is to bring about, in clinical terms; the attack's criterion."""

    def fitted(self, spacing: Spacing | None, activation: str) -> ClinicalGoal:
        """The goal on a grid of this spacing and for this head, where it was given none; itself where it needs none."""
        return self

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

    def __repr__(self) -> str:
        """Text that rebuilds the goal, but for a mask."""
        shown = []
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, torch.Tensor):
                shown.append(f"{item.name}=<mask {tuple(value.shape)}>")
            elif value is not item.default and value != item.default:
                shown.append(f"{item.name}={value!r}" if item.kw_only else repr(value))
        return f"{type(self).__name__}({', '.join(shown)})"


class StructureGoal(ClinicalGoal):
    """A goal for one structure of a segmentation."""

    structure: int
    activation: str

    def fitted(self, spacing: Spacing | None, activation: str) -> ClinicalGoal:
        changes: dict[str, Any] = {}
        if self.activation == "auto":
            changes["activation"] = activation
        for name in ("spacing", "within", "region"):
            value = getattr(self, name, True)
            if name == "spacing" and value is None and spacing is not None:
                changes[name] = spacing
            elif isinstance(value, Ball):
                changes[name] = value.located(spacing)
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def check_structure(self) -> None:
        """A class or a channel, and the head that it is read from."""
        checks.as_count("structure", self.structure, low=0)
        checks.one_of("activation", self.activation, (*ACTIVATIONS, "auto"))


@dataclass(frozen=True, eq=False, repr=False)
class Erase(StructureGoal):
    """A structure that the network no longer sees: at most `tolerance` of it is left.

    The target is the label with the structure turned into `into`, to be reached with the network's own loss. A Dice
    loss alone has hardly a slope where its target is empty; give one with a cross-entropy.

    Args:
        structure: class of a softmax head, channel of a sigmoid head (0 if it has one).
        spacing: millimetres per voxel along each axis, ``(sx, sy[, sz])``, or a row for each sample, or a batched
            `MetaTensor` to read it from. ``None`` leaves it to `Towards`, which reads it from the image attacked.
        tolerance: what may be left, in millilitres (2-D: mm²), at least 0.
        within: the lesion meant, where the structure has several: a `Ball` or a mask ``(B | 1, 1, H, W[, D])``; what
            lies outside stays and is not measured. ``None`` for all of the structure.
        into: class that takes its place, of a softmax head or of indices.
        activation: the head, ``"softmax"``, ``"sigmoid"``, ``"none"`` (probabilities; of several channels they
            exclude each other), or ``"auto"``: what the loss given to `Towards` says, else a sigmoid of one channel
            and a softmax of several.

    Example:
        >>> goal = Erase(0, spacing=(1.0, 2.0), tolerance=2.0, activation="sigmoid")
        >>> goal.target(torch.tensor([[[[1, 0, 1]]]]))
        tensor([[[[0, 0, 0]]]])
        >>> left = torch.tensor([[[[1.0, -1.0, 1.0]]], [[[1.0, -1.0, -1.0]]]])
        >>> goal.measure(left), goal(left, None)
        (tensor([4., 2.]), tensor([False,  True]))
    """

    structure: int
    spacing: Any = field(default=None, kw_only=True)
    tolerance: float = field(default=0.0, kw_only=True)
    within: Region | None = field(default=None, kw_only=True)
    into: int = field(default=0, kw_only=True)
    activation: str = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        self.check_structure()
        checks.as_count("into", self.into, low=0)
        one_class = self.activation == "softmax" or (self.activation == "auto" and self.structure > 0)
        if one_class and self.into == self.structure:
            raise ValueError(f"into: expected another class than the structure {self.structure}; got {self.into}")
        if self.spacing is not None:
            object.__setattr__(self, "spacing", as_spacing(self.spacing))
        if not (isinstance(self.tolerance, (int, float)) and math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"tolerance: expected ml or mm2 >= 0; got {self.tolerance!r}")
        if self.within is not None:
            check_region("within", self.within)

    @property
    def unit(self) -> str:
        return unit_of(known_spacing(self.spacing).rank)

    def target(self, label: torch.Tensor, prediction: Any = None) -> torch.Tensor:
        """The label without the structure, in its own shape and dtype."""
        seen = labels_seen(label, prediction, self.activation)
        grid = channelled(seen, known_spacing(self.spacing).rank)
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
        # compared in voxels: whole numbers survive single precision
        allowed = [self.tolerance / size for size in sizes]
        return left <= torch.tensor(allowed, dtype=torch.float32, device=left.device)

    def _left(self, prediction: Any) -> tuple[torch.Tensor, list[float]]:
        output = output_of(prediction, self.structure, self.activation)
        found = decided(output, self.structure, self.activation)
        if self.within is not None:
            found = found & inside("within", self.within, output)
        return found.flatten(1).sum(1), voxel_sizes(self.spacing, len(found), found.ndim - 1)


@dataclass(frozen=True, eq=False, repr=False)
class Insert(StructureGoal):
    """A structure that the network sees where there is none: at least `fraction` of a region is predicted as it.

    The target is the label with the structure written into the region; the loss is `PresenceLoss`, of the region alone.

    Args:
        structure: class of a softmax head, channel of a sigmoid head (0 if it has one).
        region: where: a `Ball`, or a mask ``(B | 1, 1, H, W[, D])``.
        fraction: share of the region's voxels, in (0, 1].
        activation: the head, ``"softmax"``, ``"sigmoid"``, ``"none"`` (probabilities; of several channels they
            exclude each other), or ``"auto"``: what the loss given to `Towards` says, else a sigmoid of one channel
            and a softmax of several.

    Example:
        >>> goal = Insert(2, region=Ball(at=(0, 1), radius_mm=1.0, spacing=(1.0, 1.0)), fraction=0.5)
        >>> goal.target(torch.zeros(1, 1, 1, 4, dtype=torch.long))
        tensor([[[[2, 2, 2, 0]]]])
    """

    structure: int
    region: Region = field(kw_only=True)
    fraction: float = field(default=0.5, kw_only=True)
    activation: str = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        self.check_structure()
        check_region("region", self.region)
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction: expected a share in (0, 1]; got {self.fraction!r}")

    @property
    def unit(self) -> str:
        return "share"

    def target(self, label: torch.Tensor, prediction: Any = None) -> torch.Tensor:
        """The label with the structure in the region, in its own shape and dtype."""
        seen = labels_seen(label, prediction, self.activation)
        rank = self.region.rank if isinstance(self.region, Ball) else self.region.ndim - 2
        return written(seen, inside("region", self.region, channelled(seen, rank)), self.structure, self.activation)

    def loss(self, loss_function: LossFunction | None = None) -> LossFunction:
        """`PresenceLoss`; the network's own is not needed."""
        return PresenceLoss(self.structure, self.region, self.activation)

    def measure(self, prediction: Any, target: Any = None) -> torch.Tensor:
        """Share of the region that is predicted as the structure, in [0, 1], ``(B,)``."""
        output = output_of(prediction, self.structure, self.activation)
        where = inside("region", self.region, output).flatten(1)
        found = decided(output, self.structure, self.activation).flatten(1)
        return (found & where).sum(1) / where.sum(1)

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        return self.measure(prediction) >= self.fraction


@dataclass(frozen=True, eq=False, repr=False)
class ShiftVolume(StructureGoal):
    r"""A structure's predicted volume changed by at least so many millilitres.

    .. math:: \operatorname{sign}(b)\,(V(f(x')) - V_0) \ge |b|

    with :math:`V_0` the volume in the clean prediction, or in the label where `target` is given none. Its loss is
    `VolumeLoss`.

    Args:
        structure: class of a softmax head, channel of a sigmoid head (0 if it has one).
        by: b, in millilitres (2-D: mm²), negative to shrink.
        spacing: millimetres per voxel along each axis, ``(sx, sy[, sz])``, or a row for each sample, or a batched
            `MetaTensor` to read it from. ``None`` leaves it to `Towards`, which reads it from the image attacked.
        activation: the head, ``"softmax"``, ``"sigmoid"``, ``"none"`` (probabilities; of several channels they
            exclude each other), or ``"auto"``: what the loss given to `Towards` says, else a sigmoid of one channel
            and a softmax of several.
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
    spacing: Any = field(default=None, kw_only=True)
    activation: str = field(default="auto", kw_only=True)
    soft: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self.check_structure()
        if self.spacing is not None:
            object.__setattr__(self, "spacing", as_spacing(self.spacing))
        if not (isinstance(self.by, (int, float)) and math.isfinite(self.by) and self.by != 0):
            raise ValueError(f"by: expected ml or mm2, finite and not 0; got {self.by!r}")

    @property
    def unit(self) -> str:
        return unit_of(known_spacing(self.spacing).rank)

    def loss(self, loss_function: LossFunction | None = None) -> LossFunction:
        """`VolumeLoss`; the network's own is not needed."""
        return VolumeLoss(self.structure, self.by > 0, self.activation, self.soft)

    def target(self, label: torch.Tensor, prediction: Any = None) -> torch.Tensor:
        """``(B, 2)``, single precision: the wanted number of voxels, and the size of one in millilitres (2-D: mm²).

        Raises:
            ValueError: when a sample has less than what it is to lose, or no room for what it is to gain.
        """
        if prediction is None:
            rank = known_spacing(self.spacing).rank
            found = holds(labels_seen(label, None, self.activation), self.structure, self.activation, rank)
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
