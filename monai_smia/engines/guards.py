# SPDX-License-Identifier: Apache-2.0
"""Guards: an evaluation under attack must not overwrite what a clean one wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai.handlers import (
    CheckpointLoader,
    CheckpointSaver,
    ClassificationSaver,
    EarlyStopHandler,
    MetricsSaver,
    MLFlowHandler,
    PostProcessing,
)
from monai.handlers.tensorboard_handlers import TensorBoardHandler
from monai.transforms import Compose, SaveImage, SaveImaged

RECORDING = (MetricsSaver, ClassificationSaver, EarlyStopHandler, MLFlowHandler, TensorBoardHandler)
"""Handlers that write files, log to a tracker or stop a training by what they see."""


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


def refuse_savers(evaluator: Any) -> list[SaveImage]:
    """Refuse an evaluator that saves checkpoints.

    Returns:
        What saves images in its postprocessing.

    Raises:
        ValueError: naming what saves.
    """
    for owner, _ in _handlers(evaluator):
        if isinstance(owner, CheckpointSaver):
            raise ValueError(
                "evaluator: a CheckpointSaver is attached, which would choose checkpoints by adversarial runs; "
                "expected an evaluator without it"
            )
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


@contextmanager
def without_handlers(evaluator: Any, kinds: tuple[type, ...] = RECORDING) -> Iterator[None]:
    """Runs inside it are not seen by handlers of these kinds; they are back, in their order, afterwards."""
    events = evaluator._event_handlers
    kept = {event: list(handlers) for event, handlers in events.items()}
    for event, handlers in kept.items():
        events[event] = [entry for entry in handlers if not isinstance(_owner(entry[0]), kinds)]
        if not events[event]:
            del events[event]  # an event that is there without handlers would hide errors, see ignite's engine
    try:
        yield
    finally:
        events.update(kept)


@contextmanager
def only_handlers(evaluator: Any, kind: type) -> Iterator[None]:
    """Events inside it are seen by handlers of this kind only; the others are back, in their order, afterwards."""
    events = evaluator._event_handlers
    kept = dict(events)
    events.clear()
    events.update(
        {event: [entry for entry in handlers if isinstance(_owner(entry[0]), kind)] for event, handlers in kept.items()}
    )
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
        for cell in getattr(function, "__closure__", None) or ():  # MONAI's engines keep theirs there
            if isinstance(cell.cell_contents, (Compose, SaveImage, SaveImaged)):
                found.append((cell, "cell_contents"))
    return found


def _handlers(evaluator: Any) -> Iterator[tuple[Any, Any]]:
    for handlers in evaluator._event_handlers.values():
        for function, _, _ in handlers:
            yield _owner(function), function


def _owner(function: Any) -> Any:
    """The object whose method handles an event, also where ignite wrapped it to filter events."""
    parent = getattr(function, "_parent", None)
    function = parent() if callable(parent) else function
    return getattr(function, "__self__", function)
