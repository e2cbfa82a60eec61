# SPDX-License-Identifier: Apache-2.0
"""`AdversarialAttack` and `RandAdversarialAttack`: an attack on one image without batch axis, as a MONAI transform.

The network is in evaluation mode and without parameter gradients while it is attacked, and then as it was. Threads of
one process therefore attack one after another, whichever transforms they use. Training the same network in another
thread meanwhile is not safe: `AttackHandler` is for that.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import RandomizableTransform, Transform
from monai.transforms.traits import RandomizableTrait
from monai.utils import MAX_SEED, TransformBackends, convert_to_dst_type, convert_to_tensor
from torch import nn
from torch.utils.data import default_collate, get_worker_info

from monai_smia.attacks import Attack
from monai_smia.attacks.checks import as_count

_LOCKS: dict[int, threading.RLock] = {}  # by process: a fork must not inherit one that another thread holds


class AdversarialAttack(Transform, RandomizableTrait):
    """Replaces an image by an adversarial one.

    It draws nothing: `seed` starts the attack's randomness anew at every call. It bears MONAI's `RandomizableTrait` all
    the same, so that `CacheDataset` and `PersistentDataset` run it every time instead of keeping images made against
    weights that are outdated since. It is no `ThreadUnsafe`: nothing in it changes, threads attack one after another,
    and MONAI would copy the network with it.

    Works in `DataLoader` with and without worker processes, and in `ThreadDataLoader`. A worker process attacks its own
    copy of the network, with the weights of the time it was started, and only on the CPU. The network must not be
    trained while a loader attacks it from another thread.

    Args:
        attack: any attack.
        network: any callable from image to prediction, in its mode and with its flags again after each call.
        inferer: a MONAI inferer, ``inferer(inputs, network)``; ``None`` calls the network.
        device: where image, label and mask are taken for the attack; ``None`` is the network's, or the image's where
            the network has no parameters.
        seed: of the attack's randomness.

    Raises:
        TypeError, ValueError: at construction, naming the argument.

    Example:
        >>> from monai_smia.attacks import FGSM
        >>> weights = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
        >>> attack = FGSM(nn.CrossEntropyLoss(), eps=0.1, bounds=(0.0, 1.0))
        >>> transform = AdversarialAttack(attack, lambda image: image.flatten(1) @ weights.T)
        >>> transform(np.array([[0.5, 0.5]], dtype=np.float32), 0)
        array([[0.4, 0.6]], dtype=float32)
    """

    backend: ClassVar[list[Any]] = [TransformBackends.TORCH]

    def __init__(
        self,
        attack: Attack,
        network: Callable[..., Any],
        *,
        inferer: Any = None,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(attack, Attack):
            raise TypeError(f"attack: expected an Attack; got {type(attack).__name__}")
        if not callable(network):
            raise TypeError(f"network: expected a callable from image to prediction; got {type(network).__name__}")
        if not (inferer is None or callable(inferer)):
            raise TypeError(f"inferer: expected a MONAI inferer or None; got {type(inferer).__name__}")
        self.attack = attack
        self.network = network
        self.inferer = inferer
        self.device = None if device is None else torch.device(device)
        self.seed = as_count("seed", seed, low=0)

    def __call__(self, img: Any, label: Any, mask: Any = None) -> Any:
        """The adversarial image.

        Args:
            img: ``CHW[D]`` array, tensor or `MetaTensor`, floating, in the network's input units; not changed.
            label: as a loader gives it for one case: a number, ``(1, H, W[, D])`` or one-hot ``(K, H, W[, D])``; array,
                tensor, `MetaTensor` or Python number, also bool.
            mask: where the image may change, zeros and ones, broadcasts against ``CHW[D]``; ``None`` for everywhere.

        Returns:
            The same type, shape, dtype and device as `img`, with its metadata and applied operations; detached.

        Raises:
            TypeError, ValueError: naming the argument, also what the attack refuses.
            RuntimeError: in a worker process, when the network or `device` is not the CPU.
        """
        if not isinstance(img, (np.ndarray, torch.Tensor)):
            raise TypeError(f"img: expected an array or tensor CHW[D]; got {type(img).__name__}")
        if label is None:
            raise TypeError("label: expected a number, array or tensor; got None")
        device = self._device(img)
        image = _batch_of_one(img, device)
        with _LOCKS.setdefault(os.getpid(), threading.RLock()):
            result = self.attack(
                self.network,
                MetaTensor(image, affine=img.affine) if isinstance(img, MetaTensor) else image,
                _batch_of_one(label, device),
                inferer=self.inferer,
                mask=None if mask is None else _batch_of_one(mask, device),
                generator=torch.Generator().manual_seed(self.seed),
            )
        return convert_to_dst_type(convert_to_tensor(result.adversarial)[0], img)[0]

    def _device(self, img: Any) -> torch.device:
        """Where to attack, refused where that cannot work."""
        own = _device_of(self.network)
        chosen = self.device or own or (img.device if isinstance(img, torch.Tensor) else torch.device("cpu"))
        foreign = next((device for device in (own, chosen) if device is not None and device.type != "cpu"), None)
        if foreign is not None and _in_worker_process():
            raise RuntimeError(
                f"network: expected one on the CPU in a loader's worker process; got {foreign}. Use num_workers=0 or "
                "MONAI's ThreadDataLoader without worker processes, or attack whole batches with AttackHandler"
            )
        return chosen

    def __repr__(self) -> str:
        return transform_repr(
            self,
            attack=self.attack,
            network=self.network,
            inferer=self.inferer,
            device=self.device,
            seed=self.seed,
        )


class RandAdversarialAttack(RandomizableTransform):
    """Replaces an image by an adversarial one with a probability, the attack's randomness drawn anew for each image.

    What `AdversarialAttack` says about loaders and networks holds here. As every random transform of MONAI it keeps
    what it drew and is `ThreadUnsafe`: not for the thread workers of a `ThreadDataLoader`.

    Args:
        attack, network, inferer, device: as for `AdversarialAttack`.
        prob: probability of an attack; otherwise the image is returned as it is.

    Raises:
        TypeError, ValueError: at construction, naming the argument.

    Example:
        >>> from monai_smia.attacks import FGSM
        >>> weights = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
        >>> attack = FGSM(nn.CrossEntropyLoss(), eps=0.1, bounds=(0.0, 1.0))
        >>> transform = RandAdversarialAttack(attack, lambda image: image.flatten(1) @ weights.T, prob=0.5)
        >>> transform = transform.set_random_state(1)
        >>> [transform(torch.tensor([[0.5, 0.5]]), 0).tolist()[0][0] < 0.5 for _ in range(4)]
        [True, False, True, True]
    """

    backend = AdversarialAttack.backend

    def __init__(
        self,
        attack: Attack,
        network: Callable[..., Any],
        *,
        prob: float = 0.1,
        inferer: Any = None,
        device: torch.device | str | None = None,
    ) -> None:
        RandomizableTransform.__init__(self, check_probability(prob))
        self.adversary = AdversarialAttack(attack, network, inferer=inferer, device=device)
        self._seed: int | None = None

    def randomize(self, data: Any | None = None) -> None:
        """Draw whether to attack, and the seed of the attack.

        Args:
            data: not used.
        """
        super().randomize(None)
        if self._do_transform:
            self._seed = int(self.R.randint(MAX_SEED, dtype="uint32"))

    def __call__(self, img: Any, label: Any, mask: Any = None, randomize: bool = True) -> Any:
        """The adversarial image, or the image itself.

        Args:
            img, label, mask: as for `AdversarialAttack`.
            randomize: whether to draw first; ``False`` repeats the last draw.

        Returns:
            The same type, shape, dtype and device as `img`, with its metadata, attacked or not.

        Raises:
            RuntimeError: when `randomize` is ``False`` and nothing was drawn.
        """
        if randomize:
            self.randomize()
        if not self._do_transform:
            return img
        if self._seed is None:
            raise RuntimeError("randomize: expected a call of randomize() before randomize=False")
        adversary = self.adversary
        return AdversarialAttack(
            adversary.attack, adversary.network, inferer=adversary.inferer, device=adversary.device, seed=self._seed
        )(img, label, mask)

    def __repr__(self) -> str:
        adversary = self.adversary
        return transform_repr(
            self,
            attack=adversary.attack,
            network=adversary.network,
            prob=self.prob,
            inferer=adversary.inferer,
            device=adversary.device,
        )


def check_probability(prob: float) -> float:
    """A number in [0, 1]; MONAI's base class would clip it."""
    if not 0 <= prob <= 1:
        raise ValueError(f"prob: expected a number in [0, 1]; got {prob!r}")
    return prob


def transform_repr(transform: Any, **arguments: Any) -> str:
    """One line for `repr`; a network by its class alone, as its layers would fill a page."""
    shown = (
        f"{name}={type(value).__name__ if isinstance(value, nn.Module) else repr(value)}"
        for name, value in arguments.items()
    )
    return f"{type(transform).__name__}({', '.join(shown)})"


def _batch_of_one(value: Any, device: torch.device) -> Any:
    """What a loader with ``batch_size=1`` makes of `value`, without metadata."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return convert_to_tensor(value, device=device)[None]
    return convert_to_tensor(default_collate([value]), device=device)


def _device_of(network: Callable[..., Any]) -> torch.device | None:
    """The device of a network's first parameter; ``None`` where it has none."""
    parameter = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    return None if parameter is None else parameter.device


def _in_worker_process() -> bool:
    """Whether this is a `DataLoader`'s worker process; worker threads have CUDA as the main one has.

    Torch's workers are daemons; the note that `get_worker_info` reads is also left by worker threads, for all threads.
    """
    return get_worker_info() is not None and multiprocessing.current_process().daemon
