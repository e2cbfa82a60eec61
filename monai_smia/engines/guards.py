# SPDX-License-Identifier: Apache-2.0
"""Guards: an evaluation under attack must not overwrite what a clean one wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from monai.handlers import (
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


def refuse_image_savers(postprocessing: Any) -> None:
    """Adversarial predictions would be written over the clean ones.

    Raises:
        ValueError: when the postprocessing saves images.
    """
    transforms = postprocessing.flatten().transforms if isinstance(postprocessing, Compose) else [postprocessing]
    for transform in transforms:
        if isinstance(transform, (SaveImage, SaveImaged)):
            raise ValueError(
                f"postprocessing: {type(transform).__name__} would write adversarial predictions over the clean ones; "
                "expected none (in a bundle: set its _disabled_ to true)"
            )


def refuse_savers(evaluator: Any) -> None:
    """Refuse an evaluator that saves checkpoints or predictions.

    Raises:
        ValueError: naming what saves.
    """
    for owner, function in _handlers(evaluator):
        if isinstance(owner, CheckpointSaver):
            raise ValueError(
                "evaluator: a CheckpointSaver is attached, which would choose checkpoints by adversarial runs; "
                "expected an evaluator without it"
            )
        if isinstance(owner, PostProcessing):
            refuse_image_savers(owner.transform)
        for cell in getattr(function, "__closure__", None) or ():  # where MONAI's engines keep their postprocessing
            refuse_image_savers(cell.cell_contents)


@contextmanager
def without_recording(evaluator: Any) -> Iterator[None]:
    """Runs inside it are not seen by the handlers that record; they are back, in their order, afterwards."""
    kept = {event: list(handlers) for event, handlers in evaluator._event_handlers.items()}
    for handlers in evaluator._event_handlers.values():
        handlers[:] = [entry for entry in handlers if not isinstance(_owner(entry[0]), RECORDING)]
    try:
        yield
    finally:
        for event, handlers in kept.items():
            evaluator._event_handlers[event][:] = handlers


def _handlers(evaluator: Any) -> Iterator[tuple[Any, Any]]:
    for handlers in evaluator._event_handlers.values():
        for function, _, _ in handlers:
            yield _owner(function), function


def _owner(function: Any) -> Any:
    """The object whose method handles an event, also where ignite wrapped it to filter events."""
    parent = getattr(function, "_parent", None)
    function = parent() if callable(parent) else function
    return getattr(function, "__self__", function)
