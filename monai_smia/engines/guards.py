# SPDX-License-Identifier: Apache-2.0
"""Guards: an evaluation under attack must not overwrite what a clean one wrote."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ignite.engine import Events
from ignite.metrics import Metric
from monai.handlers import (
    CheckpointLoader,
    ClassificationSaver,
    DecollateBatch,
    MetricsSaver,
    MLFlowHandler,
    PostProcessing,
    StatsHandler,
)
from monai.handlers.tensorboard_handlers import TensorBoardHandler
from monai.transforms import Compose, SaveImage, SaveImaged

from monai_smia.engines.ignite import private

COMPUTING = (Metric, PostProcessing, DecollateBatch)
"""Owners of handlers without which a run has no numbers, or others."""

RECORDING = (MetricsSaver, ClassificationSaver, StatsHandler, MLFlowHandler, TensorBoardHandler, CheckpointLoader)
"""Handlers that write files, print or log to a tracker: what `CaseByCase` does not do at all."""


def image_savers(postprocessing: Any) -> list[SaveImage]:
    """What saves images in a postprocessing."""
    transforms = postprocessing.flatten().transforms if isinstance(postprocessing, Compose) else [postprocessing]
    savers = [transform.saver if isinstance(transform, SaveImaged) else transform for transform in transforms]
    return [saver for saver in savers if isinstance(saver, SaveImage)]


@contextmanager
def beside_the_clean(savers: list[SaveImage], run: str) -> Iterator[None]:
    """Images saved inside it go to the folder ``under_attack/<run>`` of where they go outside it.

    Raises:
        ValueError: when a saver's folder cannot be known, so that clean predictions would be overwritten.
    """
    kept = []
    for saver in savers:
        folder = getattr(saver.folder_layout, "output_dir", None)
        if folder is None:
            raise ValueError(
                f"postprocessing: SaveImage with a {type(saver.folder_layout).__name__} would write adversarial "
                "predictions over the clean ones; expected a FolderLayout (in a bundle: set its _disabled_ to true)"
            )
        kept.append((saver.folder_layout, folder))
    try:
        for layout, folder in kept:
            layout.output_dir = Path(folder) / "under_attack" / run
        yield
    finally:
        for layout, folder in kept:
            layout.output_dir = folder


def savers_of(evaluator: Any) -> list[SaveImage]:
    """What saves images in the evaluator's postprocessing."""
    return [saver for holder, name in _postprocessings(evaluator) for saver in image_savers(getattr(holder, name))]


def loaders(evaluator: Any) -> list[CheckpointLoader]:
    """What loads weights when the evaluator starts."""
    return [owner for owner, _ in _handlers(evaluator) if isinstance(owner, CheckpointLoader)]


def postprocessing_of(evaluator: Any) -> Any:
    """The evaluator's postprocessing; ``None`` where it has none that can be found."""
    found = [getattr(holder, name) for holder, name in _postprocessings(evaluator)]
    return found[0] if found else None


@contextmanager
def without_saving_images(evaluator: Any) -> Iterator[None]:
    """Nothing in the evaluator's postprocessing saves images inside it."""
    kept = []
    try:
        for holder, name in _postprocessings(evaluator):
            transform = getattr(holder, name)
            if image_savers(transform):
                kept.append((holder, name, transform))
                flat = transform.flatten().transforms if isinstance(transform, Compose) else [transform]
                setattr(holder, name, Compose([item for item in flat if not isinstance(item, (SaveImage, SaveImaged))]))
        yield
    finally:
        for holder, name, transform in kept:
            setattr(holder, name, transform)


def takes_part(event: Any, function: Any) -> bool:
    """Whether a handler helps to compute what an evaluation says, so that an attacked run needs it.

    It does where it belongs to a metric or a postprocessing, or where it is attached inside the iteration, between the
    network and the metrics (``FORWARD_COMPLETED``, ``MODEL_COMPLETED`` and events of one's own): that is the place for
    postprocessing by hand. Everything else looks on: it saves, stops, schedules or logs, by the clean run.
    """
    return isinstance(private.owner_of(function), COMPUTING) or event not in tuple(Events)


@contextmanager
def only_computing(evaluator: Any) -> Iterator[None]:
    """Runs inside it are seen by the handlers that take part in them only; the others are back afterwards."""
    with _only(evaluator, takes_part):
        yield


@contextmanager
def without_own_attacks(evaluator: Any) -> Iterator[None]:
    """An `AttackEvaluator` inside it is a plain evaluator: what it attached for attacks of its own is left out."""
    own = {id(function) for function, _, _ in getattr(evaluator, "own_handlers", ())}
    if not own:
        yield
        return
    with _only(evaluator, lambda event, function: id(function) not in own):
        yield


@contextmanager
def silenced(evaluator: Any) -> Iterator[None]:
    """The evaluator inside it computes, and does nothing else: no onlooker, no saved image, no word."""
    logger = evaluator.logger
    level = logger.level
    with without_own_attacks(evaluator), only_computing(evaluator), without_saving_images(evaluator):
        logger.setLevel(logging.CRITICAL)  # of every run of every batch; failures are reported
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def only_handlers(evaluator: Any, kind: type) -> Iterator[None]:
    """Events inside it are seen by handlers of this kind only; the others are back, in their order, afterwards."""
    with _only(evaluator, lambda event, function: isinstance(private.owner_of(function), kind)):
        yield


@contextmanager
def _only(evaluator: Any, wanted: Callable[[Any, Any], bool]) -> Iterator[None]:
    events = private.handlers_of(evaluator)
    kept = dict(events)
    chosen = {event: [entry for entry in handlers if wanted(event, entry[0])] for event, handlers in kept.items()}
    events.clear()  # an event that is there without handlers would hide errors, see ignite's engine
    events.update({event: handlers for event, handlers in chosen.items() if handlers})
    try:
        yield
    finally:
        events.clear()
        events.update(kept)


def _postprocessings(evaluator: Any) -> list[tuple[Any, str]]:
    """Where the evaluator keeps its postprocessing: an object and the name of its attribute."""
    found: list[tuple[Any, str]] = []
    for owner, function in _handlers(evaluator):
        if isinstance(owner, PostProcessing):
            found.append((owner, "transform"))
        for cell in private.captured(function):  # MONAI's engines keep theirs there
            if isinstance(cell.cell_contents, (Compose, SaveImage, SaveImaged)):
                found.append((cell, "cell_contents"))
    return found


def _handlers(evaluator: Any) -> Iterator[tuple[Any, Any]]:
    for handlers in private.handlers_of(evaluator).values():
        for function, _, _ in handlers:
            yield private.owner_of(function), function
