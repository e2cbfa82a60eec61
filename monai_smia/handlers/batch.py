# SPDX-License-Identifier: Apache-2.0
"""`attack_batch`: an attack on a batch as a MONAI engine is about to see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from monai.data import MetaTensor
from monai.utils import CommonKeys, convert_to_dst_type

from monai_smia.attacks import Attack, AttackResult
from monai_smia.attacks.loop import Observer
from monai_smia.inferers import gradient_inferer

CLEAN_SUFFIX = "_clean"
RANK_STRIDE = 1_000_003  # more than any number of epochs
BATCH_STRIDE = 2_147_483_647  # more than any number of epochs and processes makes


def attack_batch(
    engine: Any,
    attack: Attack,
    batch: Any,
    *,
    image_key: str = CommonKeys.IMAGE,
    label_key: str = CommonKeys.LABEL,
    mask_key: str | None = None,
    generator: torch.Generator | None = None,
    only: torch.Tensor | None = None,
    callback: Observer | None = None,
    progress: bool = True,
) -> tuple[Any, AttackResult]:
    """The batch with its image attacked, through the engine's own ``prepare_batch``, inferer, device and autocast.

    A MONAI inferer that slides a window is replaced for the attack by its `gradient_inferer`.

    Args:
        engine: a MONAI engine with a network: `SupervisedEvaluator`, `SupervisedTrainer` or a subclass.
        attack: what to run.
        batch: what the loader gave: a dictionary, or a sequence that starts with the image.
        image_key: the image's key in a dictionary.
        label_key: named in the error where the batch has no label.
        mask_key: key of the mask that restricts the change; ``None`` for everywhere.
        generator: the attack's source of randomness.
        only: indices ``(N,)`` of the samples to attack; ``None`` for all. The others keep their clean image.
        callback: as in the attack's call.
        progress: show a pass over the windows of an image that takes more than two seconds.

    Returns:
        A new batch, the old one untouched: the image is adversarial (metadata kept), the clean one is under
        ``<image_key>_clean``. And the attack's result, for the samples in `only`.

    Raises:
        ValueError: when the batch has no label, or the engine's ``prepare_batch`` makes the network's input from
            something else than the image, so that replacing it would not have the effect meant.
    """
    check_engine(engine)
    original = image_of(batch, image_key)
    prepared = engine.prepare_batch(batch, engine.state.device, engine.non_blocking, **engine.to_kwargs)
    inputs, targets, args, kwargs = prepared if len(prepared) == 4 else (*prepared, (), {})
    if targets is None:
        raise ValueError(f"label_key: an attack needs labels; the batch has none under {label_key!r}")
    if not (
        isinstance(inputs, torch.Tensor) and inputs.shape == original.shape and _same(_plain(inputs), _plain(original))
    ):
        raise ValueError(
            f"image_key: the engine's prepare_batch does not hand batch[{image_key!r}] to the network as it is; "
            "expected the key of the network's input. Convert it in a transform, so that the attack sees it"
        )
    if mask_key is not None and not (isinstance(batch, dict) and mask_key in batch):
        raise ValueError(f"mask_key: expected a dictionary with {mask_key!r}; got {_described(batch)}")
    mask = None if mask_key is None else batch[mask_key].to(inputs.device)
    chosen = inputs
    index = torch.arange(len(inputs), device=inputs.device) if only is None else only.to(inputs.device)
    if only is not None:
        chosen = _take_image(inputs, index)
        size = len(inputs)
        targets, mask, args, kwargs = (_take(value, index, size) for value in (targets, mask, args, kwargs))

    through = gradient_inferer(engine.inferer, progress=progress)

    def with_arguments(images: torch.Tensor, network: Any) -> Any:
        return through(images, network, *args, **kwargs)

    with autocast_of(engine):
        result = attack(
            engine.network,
            chosen,
            targets,
            inferer=with_arguments if args or kwargs else through,
            mask=mask,
            generator=generator,
            callback=callback,
        )
    adversarial = _plain(inputs).clone()
    adversarial[index] = _plain(result.adversarial)
    adversarial = convert_to_dst_type(adversarial, inputs)[0] if isinstance(inputs, MetaTensor) else adversarial
    if only is None:
        result = dataclasses.replace(result, adversarial=adversarial)
    if isinstance(batch, dict):
        return {**batch, image_key: adversarial, image_key + CLEAN_SUFFIX: original}, result
    return with_first(batch, adversarial), result


def check_engine(engine: Any) -> None:
    """Refuse an engine that has not one network.

    Raises:
        TypeError: naming the engine's class.
    """
    if not hasattr(engine, "network"):
        some = "networks, several" if hasattr(engine, "networks") else "no network"
        raise TypeError(
            "evaluator: expected a SupervisedEvaluator, SupervisedTrainer or a subclass, with one network; got "
            f"{type(engine).__name__}, which has {some}. Evaluate a network that holds them all and combines their "
            "predictions"
        )


def image_of(batch: Any, image_key: str = CommonKeys.IMAGE) -> Any:
    """The image of a batch: a dictionary's under the key, a sequence's first item.

    Raises:
        ValueError: when there is none.
    """
    if isinstance(batch, dict) and image_key in batch:
        return batch[image_key]
    if isinstance(batch, (tuple, list)) and batch:
        return batch[0]
    raise ValueError(
        f"image_key: expected a dictionary with {image_key!r}, or a sequence that starts with the image; "
        f"got {_described(batch)}"
    )


def image_checksums(image: Any) -> list[bytes]:
    """A checksum of each image of a batch: of its shape, its type and its values."""
    array = torch.as_tensor(_plain(image)).detach().cpu()
    kind = f"{array.dtype} {tuple(array.shape[1:])}".encode()
    samples = (sample.contiguous().reshape(-1).view(torch.uint8).numpy() for sample in array)
    return [blake2b(sample, key=kind[:64], digest_size=16).digest() for sample in samples]


def with_first(batch: Any, image: Any) -> Any:
    """The sequence with another first item, of the same type; a named tuple takes its items one by one."""
    items = (image, *batch[1:])
    return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)


def scheduled(attack: Attack, eps_schedule: Callable[[int], Any] | None, epoch: int) -> Attack:
    """The attack with the budget of an epoch; itself where there is no schedule."""
    return attack if eps_schedule is None else dataclasses.replace(attack, eps=eps_schedule(epoch))


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's attacks: the same again in a run resumed there, another one in every process."""
    return seed + epoch + RANK_STRIDE * idist.get_rank()


def batch_seed(seed: int, engine: Any) -> int:
    """The seed of the attack on the engine's current batch, whatever was attacked before it.

    A batch has the number of its iteration in the epoch, counted from ``engine.state.first_batch`` where an evaluation
    is run in parts. The processes of a group take the batches in turn, as a `DistributedSampler` deals them out.
    """
    state = engine.state
    number = getattr(state, "first_batch", 0) + (state.iteration - 1) % (state.epoch_length or state.iteration)
    return seed + state.epoch + BATCH_STRIDE * (number * idist.get_world_size() + idist.get_rank())


def autocast_of(engine: Any) -> AbstractContextManager[Any]:
    """The autocast that MONAI's engines run their forward pass in: the one for CUDA, without effect elsewhere."""
    return torch.autocast("cuda", **engine.amp_kwargs) if engine.amp and torch.cuda.is_available() else nullcontext()


def case_names(batch: Any, image_key: str = CommonKeys.IMAGE, start: int = 0) -> list[str]:
    """The file name of every case in a batch, decollated or not; where it has none, its number."""
    return [Path(file).name for file in case_files(batch, image_key, start)]


def case_files(batch: Any, image_key: str = CommonKeys.IMAGE, start: int = 0) -> list[str]:
    """The file of every case in a batch, as its image's metadata have it; where they have none, its number."""
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], (dict, tuple, list)):
        images = [item.get(image_key) if isinstance(item, dict) else item[0] for item in batch]
        files = [getattr(image, "meta", {}).get("filename_or_obj") for image in images]
    else:
        image = batch[image_key] if isinstance(batch, dict) else batch[0]
        files = getattr(image, "meta", {}).get("filename_or_obj") or []
        files = [files] if isinstance(files, str) else list(files)
        if len(files) != len(image):  # some items came without metadata, as from a disk cache
            files = [None] * len(image)
    return [str(file) if file else str(start + i) for i, file in enumerate(files)]


def _described(batch: Any) -> str:
    return f"the keys {sorted(map(str, batch))}" if isinstance(batch, dict) else f"a {type(batch).__name__}"


def _plain(image: torch.Tensor) -> torch.Tensor:
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal values; NaN equals NaN, and is left for the attack to refuse."""
    return bool(torch.isclose(one, other.to(one), rtol=0, atol=0, equal_nan=True).all())


def _take_image(image: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Some samples of a batch, with what an attack reads of their metadata: the affine."""
    if not isinstance(image, MetaTensor):
        return image[index]
    affine = image.affine
    return MetaTensor(image.as_tensor()[index], affine=affine[index.cpu()] if affine.ndim == 3 else affine)


def _take(value: Any, index: torch.Tensor, size: int) -> Any:
    """The same samples of everything that has one entry per sample."""
    if isinstance(value, torch.Tensor):
        return _plain(value)[index.to(value.device)] if value.ndim and len(value) == size else value
    if isinstance(value, dict):
        return {key: _take(item, index, size) for key, item in value.items()}
    if isinstance(value, list) and len(value) == size:
        return [value[i] for i in index.tolist()]
    if isinstance(value, (tuple, list)):
        return type(value)(_take(item, index, size) for item in value)
    return value
