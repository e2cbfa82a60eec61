# SPDX-License-Identifier: Apache-2.0
"""`SaveAdversariald`: the adversarial images of a pipeline as files like those they were loaded from."""

from __future__ import annotations

import copy
import threading
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch.utils.data import get_worker_info

from monai_smia.attacks import Attack
from monai_smia.export.agreement import TOLERANCE, close, same_values
from monai_smia.export.carried_back import carried_back
from monai_smia.export.formats import open_stored
from monai_smia.export.manifest import IMAGES, MADE, Manifest, entry
from monai_smia.export.replay import Approximation, Loaded, keys_loaded, replay
from monai_smia.handlers.batch import CLEAN_SUFFIX

FILE = "filename_or_obj"
LONGEST_ROW = 1000
ONE_BY_ONE = threading.Lock()
"""Threads of a `CacheDataset` or a `ThreadDataLoader` write one manifest."""


class SaveAdversariald(MapTransform):
    """Writes a copy of each image's file that holds the adversarial image, and lists it in a manifest.

    The adversarial image is one of the network's input: its change is carried back through the preprocessing to the
    file's grid (see `carried_back`), added to the file's values and rounded to the levels that the file can hold. A
    change of less than half a level is lost by that, and so is what an interpolation smooths away; `write_cohort`
    attacks the file itself and loses nothing. The copy keeps everything else of the file (`StoredImage`). Nothing is
    overwritten.

    In a `Compose` after `AdversarialAttackd`, or as ``save=`` of `AttackHandler` and `AttackEvaluator`, which then tell
    the manifest the attack, its seed and its losses. Not in a loader's worker processes, which would write the
    manifest at the same time.

    Args:
        keys: of the images.
        preprocessing: of the data set (``@validate#preprocessing`` in a bundle), without randomness.
        output_dir: takes ``images`` and ``manifest.json``, a MONAI data list (see `Manifest`). It has of an item what a
            list can hold: files, numbers, names, and rows of at most 1000 of them; not arrays that came without a file.
        attack: for the manifest.
        unit: of the attack's eps, for the manifest.
        seed: for the manifest.
        bpda: see `replay`; only slopes are taken from it.
        allow_missing_keys: whether images that are not there are passed over.

    Raises:
        KeyError: at the call, when an image is missing.
        ValueError: at the call, for an image that does not say its file, one padded for its batch, a random
            preprocessing or another than the image's, a step that has no inverse, and where the file holds other values
            than were loaded.
        FileExistsError: at the call, when the file was saved before.
        RuntimeError: in a worker process.

    Example:
        .. code-block:: python

            save = SaveAdversariald("image", preprocessing, "adversarial")
            AttackHandler(PGD(loss, eps=0.01, bounds=(0.0, 1.0)), save=save).attach(evaluator)
    """

    def __init__(
        self,
        keys: KeysCollection,
        preprocessing: Any,
        output_dir: str | Path,
        *,
        attack: Attack | None = None,
        unit: str = "network input",
        seed: int = 0,
        bpda: Mapping[str, Approximation | None] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if attack is not None and not isinstance(attack, Attack):
            raise TypeError(f"attack: expected an Attack or None; got {type(attack).__name__}")
        self.preprocessing = preprocessing
        self.output_dir = Path(output_dir).absolute()
        self.attack = attack
        self.unit = unit
        self.seed = seed
        self.bpda = dict(bpda or {})

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The same data; the files of its images are written."""
        self.save(data, self.attack, self.seed)
        return dict(data)

    def save(self, data: Mapping[Hashable, Any], attack: Attack | None, seed: int, **numbers: float) -> list[Path]:
        """Write the images of one case, and say in the manifest how they were made.

        Args:
            data: an item, not a batch, whose images are adversarial.
            attack, seed: what made it.
            numbers: what else the manifest tells, such as losses.
        """
        if get_worker_info() is not None:
            raise RuntimeError("SaveAdversariald: expected the main process; got a loader's worker. Use num_workers=0")
        with ONE_BY_ONE:
            return [self._saved(data, str(key), attack, seed, numbers) for key in self.key_iterator(data)]

    def under(self, name: str) -> SaveAdversariald:
        """The same into a folder of its own, such as an attack's."""
        other = copy.copy(self)
        other.output_dir = self.output_dir / name
        return other

    def _saved(
        self, data: Mapping[Hashable, Any], key: str, attack: Attack | None, seed: int, numbers: Mapping[str, float]
    ) -> Path:
        sources: dict[Hashable, Any] = {str(name): _source(value) for name, value in data.items()}
        source = sources[key]
        loads = keys_loaded(self.preprocessing)
        # what the pipeline made of the image carries the name of its file, and is no part of the data list
        made = {name for name, value in data.items() if isinstance(value, MetaTensor) and _source(value) == source}
        sources = {name: value for name, value in sources.items() if name == key or name in loads or name not in made}
        if not isinstance(source, str):
            raise ValueError(f"{key}: expected a MetaTensor that says its file ({FILE}); got {type(source).__name__}")
        loaded = replay(self.preprocessing, sources, key, self.bpda)
        stored = open_stored(source, reader=loaded.reader)
        same_values(stored, loaded, Path(source))
        change = _image_of(data, key) - _checked(loaded.result, data, key)
        clean = stored.values()
        values = stored.lattice.nearest(clean + carried_back(loaded, change))
        _check_others(loaded, stored.held(values), data, key)
        manifest = Manifest(self.output_dir / "manifest.json", key)
        target = self.output_dir / IMAGES / _new_name(manifest, Path(source), stored.suffix)
        stored.write(values, target)
        largest = float((stored.held(values) - clean).abs().max())
        manifest.begin()
        manifest.add(
            entry(
                {name: value for name, value in sources.items() if _is_listed(value)},
                key,
                Path(source),
                target,
                attack,
                unit=self.unit,
                seed=seed,
                largest_change=largest,
                **numbers,
            )
        )
        return target


def _image_of(data: Mapping[Hashable, Any], key: str) -> torch.Tensor:
    return torch.as_tensor(data[key]).detach().cpu().float().as_subclass(torch.Tensor)


def _checked(clean: MetaTensor, data: Mapping[Hashable, Any], key: str) -> torch.Tensor:
    """The clean image by the preprocessing, where it is that of the item.

    Raises:
        ValueError: when the item's image has another shape, such as one padded for its batch, or its clean one, where
            there is one, other values.
    """
    plain, name = clean.as_tensor().cpu().float(), key + CLEAN_SUFFIX
    for one in (key, name):
        if one in data and tuple(data[one].shape) != tuple(plain.shape):
            raise ValueError(
                f"{one}: expected {tuple(plain.shape)}, what preprocessing gives; got {tuple(data[one].shape)}. Images "
                "padded for their batch are not saved; use batches of one"
            )
    if name in data:
        difference = float((_image_of(data, name) - plain).abs().max())
        if difference > TOLERANCE * (1 + float(plain.abs().max())):
            raise ValueError(
                f"preprocessing: expected what made {name}, the image before the attack; it gives other values, by up "
                f"to {difference:.4g}"
            )
    return plain


def _check_others(loaded: Loaded, values: torch.Tensor, data: Mapping[Hashable, Any], key: str) -> None:
    """What else the preprocessing makes of the image is as it was: the copy holds it changed, the item does not.

    Raises:
        ValueError: naming the keys and the transforms that make them.
    """
    again = loaded.item_at(values)
    changed = [
        f"{name!r} (by {maker})"
        for name, maker in loaded.dependent.items()
        if name != key and _is_array(data.get(name)) and not close(again.get(name), loaded.end.get(name))
    ]
    if changed:
        raise ValueError(
            f"{key}: the preprocessing also makes {', '.join(changed)} of it, and the copy would give other ones than "
            "were attacked; expected nothing else made of the image. write_cohort attacks the file itself"
        )


def _is_array(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim > 1


def _source(value: Any) -> Any:
    """The file of an image; anything else as it is."""
    return value.meta.get(FILE, value) if isinstance(value, MetaTensor) else value


def _is_listed(value: Any) -> bool:
    """What a data list holds: paths, numbers, names, and short rows of them, such as one-hot labels."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim < 2 and len(np.atleast_1d(np.asarray(value))) <= LONGEST_ROW
    if isinstance(value, (list, tuple)):
        return len(value) <= LONGEST_ROW and all(_is_listed(one) for one in value)
    return isinstance(value, (str, int, float, bool, np.generic))


def _new_name(manifest: Manifest, source: Path, suffix: str) -> str:
    """The file's own name; with a number where files of other folders have the same.

    Raises:
        FileExistsError: when this file was saved before.
    """
    name = source.name[: -len(suffix)] if suffix and source.name.lower().endswith(suffix) else source.name
    rows = manifest.read() if manifest.exists() else []
    if any(row[MADE]["source"] == str(source.absolute()) for row in rows):
        raise FileExistsError(f"output_dir: {source.name} was saved before, into {manifest.file.parent}")
    values = [value for row in rows for value in row.values() if isinstance(value, str)]
    taken = {Path(value).name for value in values if value.startswith(f"{IMAGES}/")}
    names = (f"{name}{number}{suffix}" for number in ("", *(f"_{i}" for i in range(2, len(taken) + 3))))
    return next(one for one in names if one not in taken)
