# SPDX-License-Identifier: Apache-2.0
"""`train_under_attack`: the training of any bundle made adversarial, with everything that it writes in one folder."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from tqdm.auto import tqdm

from monai_smia.bundle.config_source import ConfigSource
from monai_smia.bundle.errors import BundleError
from monai_smia.bundle.ids import Ids
from monai_smia.bundle.lacking import lacking_data, lacking_packages
from monai_smia.bundle.layout import bundle_folder, find_file, read_metadata
from monai_smia.bundle.metadata import image_format
from monai_smia.bundle.opening import absolute_folder
from monai_smia.bundle.provenance import hardware
from monai_smia.bundle.surroundings import Surroundings
from monai_smia.bundle.text import get, reached_components
from monai_smia.bundle.training_attack import Taking, put_in
from monai_smia.bundle.training_progress import TrainingBar, one_line_each, shows_its_own
from monai_smia.bundle.training_state import TrainingState
from monai_smia.bundle.training_text import OWN, TrainingText, training_text
from monai_smia.bundle.weights import given_weights, load_weights
from monai_smia.engines.batches import root_cause
from monai_smia.reports.files import write_whole

WEIGHTS, STATE, ABOUT = "model.pt", "checkpoint.pt", "training.json"


@dataclass(frozen=True)
class Trained:
    """What an adversarial training gave.

    Attributes:
        weights: file of the final weights, a state dict.
        folder: where everything was written.
        epochs: that the weights have seen.
        said: how they were made.
    """

    weights: Path
    folder: Path
    epochs: int
    said: Mapping[str, str] = field(default_factory=dict)


def train_under_attack(
    folder: str | Path,
    *,
    out: str | Path,
    method: str | None = None,
    eps: Any = None,
    steps: int | None = None,
    options: Mapping[str, Any] | None = None,
    bounds: Any = None,
    epochs: int | None = None,
    dataset_dir: str | Path | None = None,
    initial_weights: str | Path | None = None,
    configs: Any = None,
    overrides: Mapping[str, Any] | None = None,
    device: str | None = None,
    seed: int | None = None,
    resume: bool = False,
    about: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Trained:
    """Train a bundle adversarially, as its own configuration trains it, without changing the bundle.

    Its data, network, loss, optimizer, schedules, handlers and validation stay as they are; what they write goes to
    `out`. Where neither `method` nor `eps` is given, a bundle's own ``adversarial_train.json`` is used.

    Args:
        folder: the bundle.
        out: folder of everything that is written: ``model.pt``, the final weights; ``checkpoint.pt``, to go on from;
            ``training.json``, how it was made; and what the bundle itself saves.
        method: ``"pgd"``, ``"smia"``, ``"fast"``, ``"free"``, ``"trades"`` or ``"mart"``; None for PGD, or the bundle's
            own.
        eps: the budget, see `parse_eps`; None for a usual one of the unit that is found.
        steps: of the attack, or replays of a batch; None for the method's own.
        options: further arguments of the method: of its attack, ``beta``, ``probability``.
        bounds: of the network's input in training; None reads them, ``"none"`` for none.
        epochs: None for the bundle's.
        dataset_dir: where the data is; None for where the bundle says.
        initial_weights: a file of weights to start from; None for where the bundle starts.
        configs: names of configuration files; None for ``train``.
        overrides: ids to values.
        device: such as ``"cpu"``.
        seed: of the attack, the global random states and the configuration's own ``seed``; None for 0, and the
            configuration's own.
        resume: go on with a training that was interrupted in `out`.
        about: more rows of ``training.json``.
        progress: show a bar, and say what was found.

    Raises:
        BundleError, TypeError, ValueError: in one line, naming the argument or the id.
        FileExistsError: when `out` holds something and `resume` is false.
        RuntimeError: when an epoch fails.

    Example:
        .. code-block:: python

            trained = train_under_attack("spleen_ct_segmentation", out="robust", eps="10HU", epochs=50)
            print(trained.weights)
    """
    root = bundle_folder(folder)
    place = Path(out).expanduser().absolute()
    if place.exists() and not resume and (not place.is_dir() or any(place.iterdir())):
        raise FileExistsError(f"out: {place} is not empty; expected a new folder, or resume to go on with a training")
    metadata = read_metadata(root)
    start = given_weights(initial_weights, root)
    own = find_file(root, OWN) if method is None and eps is None else None
    given = {
        "dataset_dir": None if dataset_dir is None else absolute_folder(dataset_dir),
        "device": None if device is None else f"$torch.device({device!r})",
    }
    changed = {**(overrides or {})}
    if own is not None:
        more = {"steps": steps, "bounds": bounds, **(options or {})}
        changed |= {f"attack#{name}": value for name, value in more.items() if value is not None}
    with _surroundings(root, seed or 0), one_line_each():
        text = training_text(
            root,
            metadata,
            place,
            configs=configs,
            own=own,
            given={key: value for key, value in given.items() if value is not None},
            overrides=changed,
            epochs=epochs,
            seed=seed,
            fresh_weights=start is not None,
        )
        taking = put_in(
            text,
            root,
            own,
            method=method,
            eps=eps,
            steps=steps,
            bounds=bounds,
            seed=seed or 0,
            options=options or {},
            image=image_format(metadata),
        )
        return _train(root, place, text, taking, start, resume, about or {}, progress)


def _train(
    root: Path,
    out: Path,
    text: TrainingText,
    taking: Taking,
    start: Path | None,
    resume: bool,
    about: Mapping[str, str],
    progress: bool,
) -> Trained:
    lacks = _missing(text, root)
    if lacks:
        raise BundleError(f"{root.name}: missing {lacks}")
    text, source = taking.text, _source(taking.text, root)
    early = [step for step in text.steps("initialize") if not text.needs_trainer(step)]
    for step in early:
        source.build(step)
    taking.before(source)
    trainer = source.build(text.ids.trainer)
    for step in text.steps("initialize"):
        if step not in early:
            source.build(step)
    loader = trainer.data_loader
    if hasattr(loader, "__len__") and len(loader) == 0:
        raise BundleError(f"{text.ids.loader}: expected cases to train on; there are none")
    if start is not None:
        load_weights(source.build(text.ids.weights), start)
    said = taking.after(source, trainer)
    own_bar = shows_its_own(reached_components(text.config, text.ids.trainer).values())
    bar = TrainingBar(progress and not own_bar)
    bar.attach(trainer)
    before, after = _around(text)
    for step in before:
        source.build(step)
    built = text.parser.ref_resolver.resolved_content
    settings = {key: said[key] for key in ("method", "attack", "seed") if key in said}
    state = TrainingState(out / STATE, trainer, dict(sorted(built.items())), settings, taking.stateful())
    state.attach(trainer)
    if resume and (done := state.read(trainer.state.max_epochs)):
        said["resumed"] = f"after epoch {done}"
    if progress:
        for name, value in said.items():
            tqdm.write(f"{name}: {value}", file=sys.stderr)
    try:
        _run(trainer)
    finally:
        bar.close()
    network = source.build(text.ids.weights)
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    write_whole(out / WEIGHTS, buffer.getvalue(), overwrite=True)
    rows = {**about, **said, "epochs": str(trainer.state.epoch), "hardware": hardware(trainer.state.device)}
    rows["configuration"] = " + ".join(path.name for path in text.files)
    write_whole(out / ABOUT, json.dumps(rows, indent=2) + "\n", overwrite=True)
    for step in [*after, *text.steps("finalize")]:
        source.build(step)
    return Trained(out / WEIGHTS, out, trainer.state.epoch, rows)


def _run(trainer: Any) -> None:
    """Run it, to its end or to that of an early stop.

    Raises:
        RuntimeError: with the error of an epoch, in one line.
    """
    ended: list[bool] = []
    trainer.add_event_handler(Events.COMPLETED, lambda engine: ended.append(True))
    try:
        trainer.run()
    except Exception as error:  # whatever data, network and handlers raise
        found = root_cause(error)
        line = (str(found).strip().splitlines() or [""])[0]
        where = f"epoch {max(trainer.state.epoch, 1)}"
        raise RuntimeError(f"training: {where} failed; {type(found).__name__}: {line}") from error
    if not ended and not trainer.should_terminate:
        raise RuntimeError(f"training: a handler of the bundle ended it in epoch {trainer.state.epoch}")


def _around(text: TrainingText) -> tuple[list[str], list[str]]:
    """The steps of ``run`` before and after the training itself; none where it is not among them."""
    steps = text.steps("run")
    runs = [step for step in steps if ".run(" in str(get(text.config, step)) and text.needs_trainer(step)]
    if not runs:
        return [], []
    index = steps.index(runs[0])
    return steps[:index], [step for step in steps[index + 1 :] if step not in runs]


def _source(text: TrainingText, root: Path) -> ConfigSource:
    def hint() -> str:
        lacks = _missing(text, root)
        return f"; missing: {lacks}" if lacks else ""

    return ConfigSource(
        text.parser, Ids(text.ids.trainer), root, weights_id=text.ids.weights, weights=None, cases=None, hint=hint
    )


def _missing(text: TrainingText, root: Path) -> str:
    """What the training needs and does not have, handlers left out, as far as the text tells."""
    item = {key: value for key, value in get(text.config, text.ids.trainer).items() if key != "train_handlers"}
    view = {**text.config, "training": item}
    ids = dataclasses.replace(Ids("training"), network=None)
    return "; ".join(map(str, [*lacking_data(view, ids, root), *lacking_packages(view, ids)]))


@contextmanager
def _surroundings(root: Path, seed: int) -> Iterator[None]:
    """The bundle's working folder and import path, and global random states of a seed."""
    surroundings = Surroundings(root)
    surroundings.enter()
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        yield
    finally:
        surroundings.leave()
