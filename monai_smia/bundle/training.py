# SPDX-License-Identifier: Apache-2.0
"""`AdversarialTraining`: any bundle's training with an attack in it, saved elsewhere than in the bundle."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.handlers import ProgressBar
from monai.bundle import ConfigParser

from monai_smia.bundle.edits import WRITERS
from monai_smia.bundle.eps import Budget, parse_eps
from monai_smia.bundle.errors import BundleError, reason
from monai_smia.bundle.ids import Ids, find_ids, weights_id
from monai_smia.bundle.layout import bundle_folder, find_file, read_metadata
from monai_smia.bundle.merging import merge, override, resolved
from monai_smia.bundle.metadata import image_format
from monai_smia.bundle.opening import absolute_folder, as_overrides, refuse_unknown
from monai_smia.bundle.surroundings import Surroundings
from monai_smia.bundle.text import argument_id, class_name, components, get, references
from monai_smia.bundle.training_checkpoints import TrainingCheckpoints, saved_epochs
from monai_smia.bundle.training_methods import METHODS, Method
from monai_smia.bundle.units import IntensityReading, read_intensity
from monai_smia.bundle.weights import load_weights
from monai_smia.engines.described import described
from monai_smia.engines.file_digests import FileDigests
from monai_smia.engines.fingerprint import Fingerprint
from monai_smia.engines.folder_lock import FolderLock
from monai_smia.reports.files import write_whole
from monai_smia.reports.own_files import clear_temporary

OWN = "adversarial_train"
_PLACES = ("save_dir", "output_dir", "log_dir")
_NOT_COUNTED = ("_meta_", "bundle_root", "ckpt_dir", "output_dir", "dataset_dir", "device")
"""Ids that say where, not what: the data themselves count, wherever they lie."""


class AdversarialTraining:
    """A bundle's training, built with an attack in it; `run` trains.

    The configuration's text is changed before anything is built: the attack is put in, and every saver, tracker and
    log file goes to `out`. While it is open the working folder is the bundle; use it in a ``with`` statement.

    Args:
        folder: the bundle.
        method: one of `METHODS`; ``None`` takes the bundle's own ``adversarial_train.json``.
        eps: a budget with its unit, see `parse_eps`.
        steps: of the attack; ``None`` for the method's usual number.
        out: folder for everything that is saved; the weights are ``out/model.pt``.
        resume: go on from the last checkpoint in `out`: on a CPU to the same weights, to the bit, as in one go
            (see `monai_smia.engines.training_state.TrainingState`); a line on stderr says where that can't be. Refused
            where method, budget, steps, seed, epochs, data, configuration or initial weights are others.
        epochs, dataset_dir, device, seed: ``None`` leaves them to the bundle.
        initial_weights: a file of weights to start from.
        bounds: of the network's input; ``None`` reads them.
        overrides: ids to values.

    Raises:
        BundleError, ValueError: in one line.
        FileExistsError: when `out` holds a training and `resume` is false.
        FolderInUse: when another run writes into `out`.
    """

    def __init__(
        self,
        folder: str | Path,
        method: str | None,
        eps: Any = None,
        *,
        out: str | Path,
        steps: int | None = None,
        resume: bool = False,
        epochs: int | None = None,
        dataset_dir: str | Path | None = None,
        initial_weights: str | Path | None = None,
        device: str | None = None,
        bounds: Any = None,
        seed: int | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.root = bundle_folder(folder)
        self.out = Path(out).absolute()
        self.checkpoints = self.out / "checkpoints"
        start = None if initial_weights is None else Path(initial_weights).absolute()
        if method is not None and method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}; got {method!r}")
        data = None if dataset_dir is None else absolute_folder(dataset_dir)
        self._surroundings = Surroundings(self.root)
        self._lock = FolderLock(self.out)
        self._lock.__enter__()
        try:
            self._check_place(resume)
            self._surroundings.enter()
            self.parser, self._trainer_id = self._text(method, data, device, epochs, overrides or {})
            depends = self._asked(method, eps, steps, bounds, seed)
            ids = find_ids(self.parser.config)
            self._network_id = self._weights_of(ids)
            if method is not None:
                self._put_in(METHODS[method], eps, steps, bounds, seed or 0, ids)
            self._save_elsewhere()
            self._initialize()
            for name in references(self.parser.config.get("run", [])):
                self._build(name)  # in the order of MONAI's own run, on which the random numbers depend
            self.trainer = self._build(self._trainer_id)
            self.network = self._build(self._network_id)
            if start is not None:
                load_weights(self.network, start)
            depends |= self._beginning(start)
            TrainingCheckpoints(self.checkpoints, self.trainer, Fingerprint(depends)).attach(resume)
            ProgressBar(persist=True, desc="adversarial training").attach(self.trainer)
        except BaseException:
            self._leave()
            raise

    def __enter__(self) -> AdversarialTraining:
        return self

    def __exit__(self, *error: Any) -> None:
        self._leave()

    def _leave(self) -> None:
        self._surroundings.leave()
        self._lock.__exit__(None, None, None)

    def _check_place(self, resume: bool) -> None:
        saved = saved_epochs(self.checkpoints)
        if resume and not saved:
            raise FileNotFoundError(f"resume: expected checkpoints in {self.checkpoints}; there are none")
        if not resume and (saved or (self.out / "model.pt").exists()):
            raise FileExistsError(f"out: {self.out} holds a training; expected a new folder, or resume")
        clear_temporary(self.out, self.checkpoints)

    def run(self) -> Path:
        """Train, and write the weights whole or not at all.

        Returns:
            The file of the weights, a state dict.

        Raises:
            FileExistsError: when there is a ``model.pt`` of something else.
        """
        self.trainer.run()
        network = getattr(self.network, "module", self.network)
        buffer = io.BytesIO()
        torch.save(network.state_dict(), buffer)
        file = self.out / "model.pt"
        if not file.exists() and not file.is_symlink():
            write_whole(file, buffer.getvalue())
        elif (
            file.is_symlink() or file.read_bytes() != buffer.getvalue()
        ):  # a finished training, resumed, gives the same
            raise FileExistsError(f"out: {file} is there and not of this training; nothing was replaced")
        return file

    def _text(
        self, method: str | None, data: str | None, device: str | None, epochs: int | None, overrides: Mapping[str, Any]
    ) -> tuple[ConfigParser, str]:
        """The configuration's text, overridden, and the id of the trainer in it."""
        train, own = find_file(self.root, "train"), find_file(self.root, OWN)
        if train is None:
            raise BundleError(f"{self.root.name}: expected a configuration to train with, configs/train.json or .yaml")
        if method is None and own is None:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}; the bundle has no {OWN}.json of its own")
        files = [train] if method is not None or own is None else [train, own]
        parser = merge(files, read_metadata(self.root))
        refuse_unknown(parser.config, overrides)
        given: dict[str, Any] = {} if data is None else {"dataset_dir": data}
        given |= {} if device is None else {"device": f"$torch.device({device!r})"}
        override(parser, {**as_overrides(parser, self.root, given), **overrides})
        parser = resolved(parser)
        trainer = _trainer_of(parser.config)
        if trainer is None:
            raise BundleError(f"{self.root.name}: expected a SupervisedTrainer in {train.name}; there is none")
        if epochs is not None:
            place = argument_id(parser.config, trainer, "max_epochs") or f"{trainer}#max_epochs"
            parser[place] = epochs
        return parser, trainer

    def _weights_of(self, ids: Ids | None) -> str:
        found = weights_id(self.parser.config, ids) if ids is not None else None
        found = found or argument_id(self.parser.config, self._trainer_id, "network")
        if found is None:
            raise BundleError(f"{self._trainer_id}: expected a network; there is none")
        return found

    def _put_in(self, method: Method, eps: Any, steps: int | None, bounds: Any, seed: int, ids: Ids | None) -> None:
        """Change the trainer's text, with the budget in the network's units."""
        reading = self._reading(ids)
        budgets = parse_eps(eps, reading) if eps is not None else ()
        if len(budgets) != 1:
            raise ValueError(f"eps: expected one budget, such as 4{reading.default_unit}; got {eps!r}")
        size: Any = budgets[0].to_network(reading)
        if isinstance(size, torch.Tensor):
            size = size.flatten().tolist()
        bounds = tuple(bounds) if bounds is not None else reading.bounds
        self.budget: Budget = budgets[0]
        method.put_in(self.parser, self._trainer_id, eps=size, steps=steps, bounds=bounds, seed=seed)

    def _reading(self, ids: Ids | None) -> IntensityReading:
        """Of the validation's preprocessing, whose bounds the training's must keep; of the training's without one."""
        image = image_format(read_metadata(self.root))
        place = None if ids is None else ids.preprocessing
        if place is None:
            loader = argument_id(self.parser.config, self._trainer_id, "train_data_loader")
            dataset = argument_id(self.parser.config, loader, "dataset")
            place = argument_id(self.parser.config, dataset, "transform")
        transforms = None if place is None else self._build(place)
        return read_intensity(transforms, modality=image.get("modality"), value_range=image.get("value_range"))

    def _save_elsewhere(self) -> None:
        for name, item in components(self.parser.config):
            if WRITERS.fullmatch(class_name(item)) or class_name(item).endswith("StatsHandler"):
                for place in _PLACES:
                    if place in item:
                        self.parser[f"{name}#{place}"] = str(self.out)
        for name in ("output_dir", "ckpt_dir"):
            if name in self.parser.config:
                self.parser[name] = str(self.out)

    def _initialize(self) -> None:
        steps = self.parser.config.get("initialize", [])
        for i, _ in enumerate(steps if isinstance(steps, list) else []):
            self._build(f"initialize#{i}")

    def _asked(self, method: str | None, eps: Any, steps: int | None, bounds: Any, seed: int | None) -> dict[str, str]:
        """What the training depends on by its arguments and by the configuration after overrides, by name."""
        asked = {"method": method, "eps": eps, "steps": steps, "bounds": bounds, "seed": seed}
        config = {key: text for key, text in self.parser.config.items() if key not in _NOT_COUNTED}
        return {
            **{name: "the default" if value is None else described(value) for name, value in asked.items()},
            **{f"configuration {key}": described(text) for key, text in config.items()},
        }

    def _beginning(self, start: Path | None) -> dict[str, str]:
        """The weights that it starts from, and the data that it sees."""
        files = FileDigests(self.checkpoints / "files.json")
        loaders = (name for name, item in components(self.parser.config) if class_name(item) == "CheckpointLoader")
        given = [start, *(self._build(f"{name}#load_path") for name in loaders)]
        weights = [files.of(path) for path in given if path is not None and Path(path).is_file()]
        data = getattr(getattr(getattr(self.trainer, "data_loader", None), "dataset", None), "data", None)
        cases = {} if data is None else {"data": files.content(data)}
        files.save()
        return {"initial weights": ", ".join(weights) or "none given", **cases}

    def _build(self, name: str) -> Any:
        try:
            return self.parser.get_parsed_content(name)
        except Exception as error:
            raise BundleError(f"{name}: cannot be built; {reason(error)}") from error


def _trainer_of(config: Mapping[str, Any]) -> str | None:
    """MONAI's property first, then the first component whose class is a trainer."""
    for name in ("train#trainer", "trainer"):
        if class_name(get(config, name)):
            return name
    return next((name for name, item in components(config) if class_name(item).endswith("Trainer")), None)
