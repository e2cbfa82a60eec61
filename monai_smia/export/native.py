# SPDX-License-Identifier: Apache-2.0
"""`NativeCase`: one case of an evaluator, attacked on its file's own grid and levels."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor, list_data_collate
from monai.utils import CommonKeys
from torch import nn

from monai_smia.attacks import BPDA, Attack, AttackResult, EoT, GaussianNoise
from monai_smia.export.carried_back import extremes_scale, keeps_places, slope_of, with_before
from monai_smia.export.fitted_attack import fitted_attack, one_eps
from monai_smia.export.formats import PICTURES, open_stored
from monai_smia.export.inside_budget import inside_budget
from monai_smia.export.reaching import has_clip
from monai_smia.export.recompression import SAMPLES, Recompression
from monai_smia.export.replay import Approximation, Loaded, ReplayStep, replay
from monai_smia.export.stored import StoredImage
from monai_smia.inferers import gradient_inferer

TOLERANCE = 1e-5


class NativeNetwork(nn.Module):
    r"""A network from the file's values to its prediction.

    .. math:: f(P(Q(x)))

    Q is what the file can hold (rounded to its levels, compressed where the format is lossy), with the gradient of its
    approximation; P is the bundle's preprocessing, with its own gradient; f is the network through its inferer.

    Args:
        network: f.
        loaded: the preprocessing at the case, see `replay`.
        held: Q, on ``(C, *spatial)``.
        inferer: ``inferer(inputs, network)``.
        approximation: what stands in for Q in the backward pass; ``None`` is the identity.
        device: of f.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        loaded: Loaded,
        held: Callable[[torch.Tensor], torch.Tensor],
        inferer: Callable[..., Any],
        approximation: Callable[[torch.Tensor], torch.Tensor] | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.device = device
        self.network = network
        self.loaded = loaded
        self.steps: Sequence[ReplayStep] = loaded.steps
        self.meta = loaded.image.meta
        self.inferer = inferer
        self.quantise = BPDA(held, approximation)

    def forward(self, image: torch.Tensor) -> Any:
        """The prediction at the file's values, ``(1, C, *spatial)``."""
        return self.inferer(self.inputs(image), self.network)

    def reaching(self, eps: float) -> NativeNetwork:
        """The same network with a gradient for voxels that a clip hides and a change of `eps` can bring back."""
        if not any(has_clip(step.transform) for step in self.steps):
            return self
        reach, steps = eps, []
        for step, before in with_before(self.loaded):
            steps.append(dataclasses.replace(step, reach=reach))
            if keeps_places(before, step.after):
                reach *= float(slope_of(step, before).abs().max())
        other = copy.copy(self)
        other.steps = steps
        return other

    def unrounded(self) -> NativeNetwork:
        """The same network without Q."""
        other = copy.copy(self)
        other._modules = {**self._modules, "quantise": nn.Identity()}
        return other

    def inputs(self, image: torch.Tensor) -> torch.Tensor:
        """The network's input at the file's values, batch axis first.

        Raises:
            ValueError: for more than one image, as every file has a grid of its own.
        """
        if len(image) != 1:
            raise ValueError(f"image: expected one image, as every file has its own grid; got {len(image)}")
        value = MetaTensor(self.quantise(torch.as_tensor(image[0]).as_subclass(torch.Tensor)), meta=self.meta)
        for step in self.steps:
            value = step(value)
        return value.as_tensor().unsqueeze(0).to(self.device or image.device)


@dataclass(frozen=True)
class NativeResult:
    """A case attacked on its file's grid.

    Attributes:
        values: ``(C, *spatial)``, physical units, on the file's levels and inside the budget: what is written.
        held: what reading the copy gives; `values`, but for a lossy format.
        attack: what was run, its budget in physical units, whole levels.
        result: the attack's own result, on ``(1, C, *spatial)``.
    """

    values: torch.Tensor
    held: torch.Tensor
    attack: Attack
    result: AttackResult


@dataclass(frozen=True)
class NativeCase:
    """One case of an evaluator on its file's own grid.

    Attributes:
        path: the file, or folder, of the image.
        stored: how it holds the image.
        image: ``(1, C, *spatial)``, physical units.
        target: as the evaluator's ``prepare_batch`` gives it.
        network: from the file's values to the prediction.
        loaded: the preprocessing at this case.
    """

    path: Path
    stored: StoredImage
    image: MetaTensor
    target: Any
    network: NativeNetwork
    loaded: Loaded

    @property
    def name(self) -> str:
        """The file's name without what its format adds."""
        name = self.path.name
        known = (self.stored.suffix, *PICTURES)
        return next((name[: -len(one)] for one in known if one and name.lower().endswith(one)), name)

    def attack(
        self,
        attack: Attack,
        *,
        generator: torch.Generator | None = None,
        qualities: Sequence[int] | None = None,
        **arguments: Any,
    ) -> NativeResult:
        """Run an attack whose `eps` is in the file's physical units (HU, grey levels).

        In Linf the budget becomes the largest one of whole levels inside `eps`; in L1 and L2 voxels that rounding
        carries out of it are rounded towards the clean image (`inside_budget`). The bounds are what the type can hold,
        unless the attack has bounds of its own. Where the preprocessing scales by the image's extremes
        (`ScaleIntensity`), they are also the image's own range: one voxel beyond it would shrink the change of all
        others. Voxels that a clip hides have a gradient where `eps` can bring them back, see `reached`. Random starts,
        steps and projections work on real numbers; what the network sees at every step is what the file would hold.

        Args:
            attack: any attack of this package.
            generator: its source of randomness.
            qualities: ``(lowest, highest)`` of the JPEG that the file will be compressed with again: the attack follows
                the mean over them, see `Recompression`; loss and success are those of the file.
            arguments: further ones of the attack's call, such as ``mask``.

        Raises:
            ValueError: when `eps` is under one level of the file.
        """
        lattice, eps, norm = self.stored.lattice, one_eps(attack), float(attack.norm)
        if norm == float("inf"):
            eps = lattice.whole_levels(eps)
        network = self.network.reaching(eps)
        if qualities is not None:
            attack = EoT(attack, Recompression(qualities, self.network.quantise), samples=SAMPLES)
            network = network.unrounded()
        fitted = fitted_attack(attack, eps, self._bounds())
        result = fitted(network, self.image, self.target, generator=generator, **arguments)
        found, clean = (x[0].as_subclass(torch.Tensor).cpu() for x in (result.adversarial, self.image))
        values = inside_budget(lattice, found, clean, eps, norm)
        if qualities is not None or not torch.equal(values, lattice.nearest(found)):
            result = self._judged(values, fitted, result)
        return NativeResult(values, self.stored.held(values), fitted, result)

    def _judged(self, values: torch.Tensor, attack: Attack, result: AttackResult) -> AttackResult:
        """The result with loss and success of what is written."""
        still = GaussianNoise(attack.loss_function, eps=0.0, criterion=attack.criterion, targeted=attack.targeted)
        seen, clean = (
            still(self.network, image, self.target) for image in (values.unsqueeze(0).to(self.image.device), self.image)
        )
        return dataclasses.replace(
            result,
            loss=seen.clean_loss,
            success=seen.clean_success,
            clean_loss=clean.clean_loss,
            clean_success=clean.clean_success,
            forward_passes=result.forward_passes + 2,
        )

    def _bounds(self) -> tuple[float, float] | None:
        """What the type can hold, and what the image spans where its extremes scale all of it."""
        held = self.stored.lattice.bounds
        if not extremes_scale(self.loaded):
            return held
        low, high = float(self.image.min()), float(self.image.max())
        return (low, high) if held is None else (max(low, held[0]), min(high, held[1]))


def native_case(
    evaluator: Any,
    index: int,
    *,
    image_key: str = CommonKeys.IMAGE,
    bpda: Mapping[str, Approximation | None] | None = None,
    as_png: bool = False,
) -> NativeCase:
    """One case of an evaluator, ready to be attacked on its file's own grid.

    Args:
        evaluator: a MONAI `SupervisedEvaluator` whose data set loads its images from files.
        index: of the case in the data set.
        image_key: of the image, and of its path in the data list.
        bpda: name of a transform without a gradient to what stands in for it, see `replay`.
        as_png: write copies of JPEG files as PNG, see `PictureImage`.

    Raises:
        NotDifferentiableError: naming the transforms that no gradient gets through.
        ValueError: when the file, its loading or the preprocessing is not understood: when what is read from the file
            is not what the bundle loads, or the replayed preprocessing gives another input than the data set.

    Example:
        .. code-block:: python

            with open_bundle("lung_ct_segmentation") as bundle:
                case = native_case(bundle.evaluator(), 0)
                attacked = case.attack(SMIA(bundle.loss(), eps=10.0))  # HU
                case.stored.write(attacked.values, Path("adversarial.nii.gz"))
    """
    return case_from(evaluator, evaluator.data_loader, index, image_key, bpda, as_png)


def case_from(
    evaluator: Any,
    loader: Any,
    index: int,
    image_key: str,
    bpda: Mapping[str, Approximation | None] | None,
    as_png: bool = False,
) -> NativeCase:
    """`native_case` of a loader that the evaluator need not hold at the moment."""
    dataset = loader.dataset
    item, preprocessing = _source(dataset, index)
    loaded = replay(preprocessing, item, image_key, bpda)
    path = _path_of(item[image_key], image_key)
    stored = open_stored(path, reader=loaded.reader, as_png=as_png)
    same_values(stored, loaded.image, path)
    collate = loader.collate_fn or list_data_collate
    batch = collate([dataset[index]])
    device = evaluator.state.device
    inputs, target = evaluator.prepare_batch(batch, device, False)[:2]
    inferer = gradient_inferer(evaluator.inferer)
    network = NativeNetwork(evaluator.network, loaded, stored.held, inferer, stored.approximation(), device)
    image = MetaTensor(loaded.image.as_tensor().float().to(device), meta=loaded.image.meta).unsqueeze(0)
    clean = network.inputs(image) if stored.lossless else loaded.result.unsqueeze(0)
    if inputs.shape != clean.shape or not torch.allclose(
        torch.as_tensor(inputs).cpu(),
        torch.as_tensor(clean).cpu(),
        rtol=0,
        atol=TOLERANCE * float(inputs.abs().max() + 1),
    ):
        raise ValueError(
            f"preprocessing: replayed from {path.name} it gives another input than the data set: "
            f"{tuple(clean.shape)} and {tuple(inputs.shape)}"
        )
    return NativeCase(path, stored, image, target, network, loaded)


def _source(dataset: Any, index: int) -> tuple[Mapping[Any, Any], Any]:
    """The item of the data list and the transform of a MONAI data set."""
    data, transform = getattr(dataset, "data", None), getattr(dataset, "transform", None)
    if data is None or transform is None:
        raise ValueError(f"evaluator: expected a MONAI data set with data and transform; got {type(dataset).__name__}")
    item = data[index]
    if not isinstance(item, Mapping):
        raise ValueError(f"evaluator: expected a data list of dictionaries; got {type(item).__name__}")
    return item, transform


def _path_of(value: Any, key: str) -> Path:
    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise ValueError(f"{key}: expected one file for an image; got {len(value)}")
        value = value[0]
    return Path(value)


def same_values(stored: StoredImage, image: MetaTensor, path: Path) -> None:
    """What this package reads from the file is what the bundle's loader gave."""
    values = stored.values()
    if tuple(values.shape) != tuple(image.shape):
        raise ValueError(
            f"image_key: the bundle loads {path.name} as {tuple(image.shape)}, the file holds {tuple(values.shape)}"
        )
    if not bool(values.isfinite().all()):
        raise ValueError(f"image_key: expected finite numbers in {path.name}; got NaN or infinity")
    difference = float((values - image.as_tensor().cpu().float()).abs().max())
    if difference > TOLERANCE * (1 + float(values.abs().max())):
        raise ValueError(
            f"image_key: the bundle's loader changes the values of {path.name}, by up to {difference:.4g}; expected "
            "one that gives what the file holds"
        )
