# SPDX-License-Identifier: Apache-2.0
"""Dictionary versions of the transforms that attack images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.transforms.traits import RandomizableTrait
from monai.utils import CommonKeys

from monai_smia.attacks import Attack
from monai_smia.transforms.adversarial import (
    AdversarialAttack,
    RandAdversarialAttack,
    check_probability,
    transform_repr,
)


class AdversarialAttackd(MapTransform, RandomizableTrait):
    """Dictionary-based version of `AdversarialAttack`, whose remarks on loaders, caches and networks hold here.

    Args:
        keys: keys of the images; each is attacked on its own, with the same label.
        attack: any attack.
        network: any callable from image to prediction.
        label_key: key of the label.
        mask_key: key of the mask of what may change; ``None`` for everywhere.
        inferer: a MONAI inferer; ``None`` calls the network.
        device: where to attack; ``None`` is the network's.
        seed: of the attack's randomness, started anew for every image.
        allow_missing_keys: whether images that are not there are passed over; label and mask of those that are must
            be.

    Raises:
        TypeError, ValueError: at construction, naming the argument.
        KeyError: at the call, when an image, its label or its mask is missing.

    Example:
        >>> from monai_smia.attacks import FGSM
        >>> weights = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
        >>> attack = FGSM(torch.nn.CrossEntropyLoss(), eps=0.1, bounds=(0.0, 1.0))
        >>> transform = AdversarialAttackd("image", attack, lambda image: image.flatten(1) @ weights.T)
        >>> transform({"image": torch.tensor([[0.5, 0.5]]), "label": 0})
        {'image': tensor([[0.4000, 0.6000]]), 'label': 0}
    """

    backend = AdversarialAttack.backend

    def __init__(
        self,
        keys: KeysCollection,
        attack: Attack,
        network: Callable[..., Any],
        *,
        label_key: Hashable = CommonKeys.LABEL.value,
        mask_key: Hashable | None = None,
        inferer: Any = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.adversary = AdversarialAttack(attack, network, inferer=inferer, device=device, seed=seed)
        self.label_key = label_key
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A new dictionary with adversarial images.

        Args:
            data: one case; images ``CHW[D]``.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.adversary(d[key], *_label_and_mask(d, self.label_key, self.mask_key))
        return d

    def __repr__(self) -> str:
        adversary = self.adversary
        return transform_repr(
            self,
            keys=self.keys,
            attack=adversary.attack,
            network=adversary.network,
            label_key=self.label_key,
            mask_key=self.mask_key,
            inferer=adversary.inferer,
            device=adversary.device,
            seed=adversary.seed,
            allow_missing_keys=self.allow_missing_keys,
        )


class RandAdversarialAttackd(RandomizableTransform, MapTransform):
    """Dictionary-based version of `RandAdversarialAttack`, whose remarks hold here.

    One draw decides for all images of a case whether they are attacked; each attack then has randomness of its own.

    Args:
        keys, attack, network, label_key, mask_key, inferer, device, allow_missing_keys: as for `AdversarialAttackd`.
        prob: probability that the images of a case are attacked; otherwise they are returned as they are.

    Raises:
        TypeError, ValueError: at construction, naming the argument.
        KeyError: at the call, when an image is missing, or its label or mask while it is attacked.

    Example:
        .. code-block:: python

            train_transform = Compose(
                [LoadImaged(("image", "label")), ..., RandAdversarialAttackd("image", attack, network, prob=0.5)]
            )
    """

    backend = RandAdversarialAttack.backend

    def __init__(
        self,
        keys: KeysCollection,
        attack: Attack,
        network: Callable[..., Any],
        *,
        prob: float = 0.1,
        label_key: Hashable = CommonKeys.LABEL.value,
        mask_key: Hashable | None = None,
        inferer: Any = None,
        device: torch.device | str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, check_probability(prob))
        self.rand_adversary = RandAdversarialAttack(attack, network, prob=1.0, inferer=inferer, device=device)
        self.label_key = label_key
        self.mask_key = mask_key

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandAdversarialAttackd:
        """Start the randomness anew, of the decision and of the attacks.

        Args:
            seed, state: as for MONAI's `Randomizable`.
        """
        super().set_random_state(seed, state)
        self.rand_adversary.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A new dictionary, with adversarial images or the images as they were.

        Args:
            data: one case; images ``CHW[D]``.
        """
        d = dict(data)
        self.randomize(None)
        for key in self.key_iterator(d):
            if self._do_transform:
                d[key] = self.rand_adversary(d[key], *_label_and_mask(d, self.label_key, self.mask_key))
        return d

    def __repr__(self) -> str:
        adversary = self.rand_adversary.adversary
        return transform_repr(
            self,
            keys=self.keys,
            attack=adversary.attack,
            network=adversary.network,
            prob=self.prob,
            label_key=self.label_key,
            mask_key=self.mask_key,
            inferer=adversary.inferer,
            device=adversary.device,
            allow_missing_keys=self.allow_missing_keys,
        )


def _label_and_mask(data: Mapping[Hashable, Any], label_key: Hashable, mask_key: Hashable | None) -> tuple[Any, Any]:
    """The label, and the mask where there is a key for one."""

    def entry(argument: str, key: Hashable) -> Any:
        if key not in data:
            raise KeyError(f"{argument}: expected {key!r} in the data; got the keys {sorted(map(str, data))}")
        return data[key]

    return entry("label_key", label_key), None if mask_key is None else entry("mask_key", mask_key)


AdversarialAttackD = AdversarialAttackDict = AdversarialAttackd
RandAdversarialAttackD = RandAdversarialAttackDict = RandAdversarialAttackd
