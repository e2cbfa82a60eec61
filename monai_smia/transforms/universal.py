# SPDX-License-Identifier: Apache-2.0
"""`AddUniversalPerturbation`: a fitted universal perturbation as a MONAI transform, array and dictionary version."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

from monai_smia.attacks.universal import UniversalPerturbation


class AddUniversalPerturbation(Transform):
    """Adds a universal perturbation to an image, clipped to its bounds.

    It needs no network and draws nothing, so caches may keep its result and worker processes run it.

    Args:
        perturbation: what `UAP.fit` gave or `UniversalPerturbation.load` read.

    Raises:
        TypeError: at construction, when it is something else.

    Example:
        >>> perturbation = UniversalPerturbation(torch.tensor([[0.1, -0.1]]), eps=0.1, bounds=(0.0, 1.0))
        >>> AddUniversalPerturbation(perturbation)(np.array([[0.5, 0.0]], dtype=np.float32))
        array([[0.6, 0. ]], dtype=float32)
    """

    backend: ClassVar[list[Any]] = [TransformBackends.TORCH]

    def __init__(self, perturbation: UniversalPerturbation) -> None:
        if not isinstance(perturbation, UniversalPerturbation):
            raise TypeError(f"perturbation: expected a UniversalPerturbation; got {type(perturbation).__name__}")
        self.perturbation = perturbation

    def __call__(self, img: Any, mask: Any = None) -> Any:
        """The image with the perturbation.

        Args:
            img: ``CHW[D]`` array, tensor or `MetaTensor`, floating, in the network's input units; not changed.
            mask: where the image may change, zeros and ones, broadcasts against ``CHW[D]``; ``None`` for everywhere.

        Returns:
            The same type, shape, dtype and device as `img`, with its metadata.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        if not isinstance(img, (np.ndarray, torch.Tensor)):
            raise TypeError(f"img: expected an array or tensor CHW[D]; got {type(img).__name__}")
        image = convert_to_tensor(img)
        if image.ndim != self.perturbation.delta.ndim:
            shape = tuple(self.perturbation.delta.shape)
            raise ValueError(f"img: expected one image of shape {shape}, as the perturbation; got {tuple(image.shape)}")
        allowed = None if mask is None else convert_to_tensor(mask, device=image.device)
        return convert_to_dst_type(self.perturbation(image, allowed), img)[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.perturbation!r})"


class AddUniversalPerturbationd(MapTransform):
    """Dictionary-based version of `AddUniversalPerturbation`.

    Args:
        keys: keys of the images.
        perturbation: what `UAP.fit` gave or `UniversalPerturbation.load` read.
        mask_key: key of the mask of what may change; ``None`` for everywhere.
        allow_missing_keys: whether images that are not there are passed over.

    Raises:
        TypeError: at construction, naming the argument.
        KeyError: at the call, when an image or its mask is missing.

    Example:
        >>> perturbation = UniversalPerturbation(torch.tensor([[0.1, -0.1]]), eps=0.1)
        >>> AddUniversalPerturbationd("image", perturbation)({"image": torch.tensor([[0.5, 0.5]]), "label": 0})
        {'image': tensor([[0.6000, 0.4000]]), 'label': 0}
    """

    backend = AddUniversalPerturbation.backend

    def __init__(
        self,
        keys: KeysCollection,
        perturbation: UniversalPerturbation,
        *,
        mask_key: Hashable | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.adder = AddUniversalPerturbation(perturbation)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A new dictionary with perturbed images.

        Args:
            data: one case; images ``CHW[D]``.
        """
        d = dict(data)
        if self.mask_key is not None and self.mask_key not in d:
            raise KeyError(f"mask_key: expected {self.mask_key!r} in the data; got the keys {sorted(map(str, d))}")
        mask = None if self.mask_key is None else d[self.mask_key]
        for key in self.key_iterator(d):
            d[key] = self.adder(d[key], mask)
        return d

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(keys={self.keys}, perturbation={self.adder.perturbation!r}, "
            f"mask_key={self.mask_key!r}, allow_missing_keys={self.allow_missing_keys})"
        )


AddUniversalPerturbationD = AddUniversalPerturbationDict = AddUniversalPerturbationd
