# SPDX-License-Identifier: Apache-2.0
"""`NativeCase`: one case of an evaluator, attacked on its file's own grid and levels."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import CommonKeys
from torch import nn

from monai_smia.attacks import BPDA, Attack, AttackResult, EoT, GaussianNoise
from monai_smia.export.agreement import close, same_values
from monai_smia.export.carried_back import extremes_scale, keeps_places, slope_of
from monai_smia.export.deidentify import Deidentification
from monai_smia.export.dependence import same
from monai_smia.export.feeding import Fed, Feed
from monai_smia.export.fitted_attack import fitted_attack, one_eps
from monai_smia.export.formats import PICTURES, open_stored
from monai_smia.export.inside_budget import inside_budget
from monai_smia.export.reaching import clip_slope, has_clip
from monai_smia.export.recompression import SAMPLES, Recompression
from monai_smia.export.replay import Loaded, reader_at, replay
from monai_smia.export.replay_step import Approximation, Live, ReplayStep
from monai_smia.export.stored import StoredImage
from monai_smia.inferers import gradient_inferer


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
        feed: from the preprocessed item to the network's arguments.
        approximation: what stands in for Q in the backward pass; ``None`` is the identity.
        moving: keys of the target that depend on the image, in words.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        loaded: Loaded,
        held: Callable[[torch.Tensor], torch.Tensor],
        inferer: Callable[..., Any],
        feed: Feed,
        approximation: Callable[[torch.Tensor], torch.Tensor] | None = None,
        moving: str = "",
    ) -> None:
        super().__init__()
        self.moving = moving
        self.network = network
        self.loaded = loaded
        self.steps: Sequence[ReplayStep] = loaded.steps
        self.meta = loaded.image.meta
        self.inferer = inferer
        self.feed = feed
        self.quantise = BPDA(held, approximation)

    def forward(self, image: torch.Tensor) -> Any:
        """The prediction at the file's values, ``(1, C, *spatial)``."""
        given = self._given(image)
        return self.inferer(given.inputs, self.network, *given.args, **given.kwargs)

    def reaching(self, eps: float) -> NativeNetwork:
        """The same network with a gradient for voxels that a clip hides and a change of `eps` can bring back."""
        clips = [i for i, step in enumerate(self.steps) if has_clip(step.transform)]
        if not clips:
            return self
        reach, steps = dict.fromkeys(self.loaded.begin(self.loaded.image), eps), list(self.steps)
        for i, step in enumerate(self.steps[: clips[-1] + 1]):
            own = {key: reach.get(key, 0.0) for key in step.inputs}
            steps[i] = dataclasses.replace(step, reach=own if has_clip(step.transform) else {})
            reach |= {key: _carried(step, key, own) for key in step.outputs}
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
        return self._given(image).inputs

    def _given(self, image: torch.Tensor) -> Fed:
        """All that the network is given."""
        return self.feed(self.loaded.end, self.live(image))

    def live(self, image: torch.Tensor) -> Live:
        """Every key of the preprocessed item that the network needs and that depends on the image."""
        if len(image) != 1:
            raise ValueError(f"image: expected one image, as every file has its own grid; got {len(image)}")
        value = MetaTensor(self.quantise(torch.as_tensor(image[0]).as_subclass(torch.Tensor)), meta=self.meta)
        live = self.loaded.begin(value)
        for step in self.steps:
            live |= step.apply(live)
            self._check_shapes(step, live)
        return live

    def _check_shapes(self, step: ReplayStep, live: Live) -> None:
        """A box around the image's content that moves under the attack moves the target, which is fixed.

        Raises:
            ValueError: naming the transform and the keys.
        """
        for key in step.outputs if self.moving else ():
            found, wanted = (tuple(getattr(value, "shape", ())) for value in (live[key], step.after[key]))
            if found != wanted:
                raise ValueError(
                    f"label: {self.moving} depends on the image's content, and {step.name} gives {key!r} of shape "
                    f"{found} under the attack, {wanted} before; expected a label that stays"
                )


def _carried(step: ReplayStep, key: str, reach: Mapping[str, float]) -> float:
    """How far a voxel of an output may lie outside a range and still be brought back."""
    if key not in reach:  # made of the others
        return max(reach.values(), default=0.0)
    if not keeps_places(step.before[key], step.after[key]):
        return reach[key]
    slope = clip_slope(step.transform)
    return reach[key] * (float(slope_of(step, key).abs().max()) if math.isnan(slope) else slope)


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
        self._check_followed(values)
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

    def at(self, values: torch.Tensor) -> Any:
        """The evaluator's batch as it is made of the copy's values, by the whole preprocessing."""
        return self.network.feed.batch(self.loaded.item_at(self.stored.held(values).cpu()))

    def _check_followed(self, values: torch.Tensor) -> None:
        """What was attacked is what the whole preprocessing makes of the copy, and the target is still the same.

        Raises:
            ValueError: naming the key that differs, and the transform that makes it of the image.
        """
        item = self.loaded.item_at(self.stored.held(values).cpu())
        live = self.network.live(values.unsqueeze(0).to(self.image.device))
        for name in self.loaded.needed:
            if not close(live[name], item.get(name)):
                raise ValueError(
                    f"{name}: what was attacked is not what the preprocessing makes of {self.path.name} with these "
                    f"values; {self.loaded.dependent.get(name, 'a transform')} makes it in another way than it was "
                    "followed"
                )
        if not same(self.network.feed.of(item)[1], self.target):
            changed = [
                f"{name!r} (by {maker})"
                for name, maker in self.loaded.dependent.items()
                if name not in self.loaded.needed and not same(self.loaded.end.get(name), item.get(name))
            ]
            raise ValueError(
                f"label: the preprocessing makes it of the image's content, and it changes with the attack on "
                f"{self.path.name}: {', '.join(changed)}; expected a label that stays"
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
    deidentify: Deidentification | None = None,
) -> NativeCase:
    """One case of an evaluator, ready to be attacked on its file's own grid.

    Args:
        evaluator: a MONAI `SupervisedEvaluator` whose data set loads its images from files.
        index: of the case in the data set.
        image_key: of the image, and of its path in the data list.
        bpda: name of a transform without a gradient to what stands in for it, see `replay`.
        as_png: write copies of JPEG files as PNG, see `PictureImage`.
        deidentify: takes what names the patient out of the copies.

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
    return case_from(evaluator, evaluator.data_loader, index, image_key, bpda, as_png, deidentify)


def case_from(
    evaluator: Any,
    loader: Any,
    index: int,
    image_key: str,
    bpda: Mapping[str, Approximation | None] | None,
    as_png: bool = False,
    deidentify: Deidentification | None = None,
) -> NativeCase:
    """`native_case` of a loader that the evaluator need not hold at the moment."""
    dataset = loader.dataset
    item, preprocessing = _source(dataset, index)
    path = _path_of(item[image_key], image_key)
    stored = open_stored(path, reader=reader_at(preprocessing, item, image_key), as_png=as_png, deidentify=deidentify)
    feed = Feed(evaluator.prepare_batch, loader.collate_fn, evaluator.state.device)
    loaded = replay(preprocessing, item, image_key, bpda, reaches=feed.needs)
    same_values(stored, loaded, path)
    given, target = feed.of(dataset[index])
    feed = feed.narrowed(loaded.end, image_key, set(loaded.needed))
    inferer = gradient_inferer(evaluator.inferer)
    others = [name for name in loaded.dependent if name not in loaded.needed and name in loaded.end]
    moving = ", ".join(f"{name!r} (by {loaded.dependent[name]})" for name in feed.moves_target(loaded.end, others))
    network = NativeNetwork(evaluator.network, loaded, stored.held, inferer, feed, stored.approximation(), moving)
    device = evaluator.state.device
    image = MetaTensor(loaded.image.as_tensor().float().to(device), meta=loaded.image.meta).unsqueeze(0)
    clean = network.inputs(image) if stored.lossless else feed.of(loaded.end)[0].inputs
    if not close(given.inputs, clean):
        raise ValueError(
            f"preprocessing: replayed from {path.name} it gives another input than the data set: "
            f"{tuple(clean.shape)} and {tuple(given.inputs.shape)}"
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
