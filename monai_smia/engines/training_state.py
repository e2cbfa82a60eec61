# SPDX-License-Identifier: Apache-2.0
"""`TrainingState`: all that a training goes on from, to the bit."""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import SmartCacheDataset

from monai_smia.engines.stateful import as_tuples, put_state, state_of, stateful_parts

_FORMAT = 1


class TrainingState:
    """The state of a trainer and of everything that it is made of, taken at the end of an epoch.

    It has the states of `stateful_parts`, found by a walk from the trainer: network, optimizer, schedules, scaler, the
    perturbation of free training, early stopping, the best metric, the random states of loader, sampler, transforms
    and attacks; and the random states of the process, of torch, numpy and Python. A trainer of the same configuration
    that is given this state, after all other handlers of ``STARTED``, makes the epochs that the first one would have
    made, on a CPU to the bit. `differs` says where that does not hold.

    It is made for a `CheckpointSaver` and a `CheckpointLoader`, which are to be attached after all other handlers.

    Args:
        trainer: the engine.

    Example:
        .. code-block:: python

            state = {"training": TrainingState(trainer)}
            CheckpointSaver("checkpoints", state, save_interval=1, n_saved=2).attach(trainer)
            CheckpointLoader("checkpoints/checkpoint_epoch=3.pt", state).attach(trainer)  # in a new process
    """

    def __init__(self, trainer: Engine) -> None:
        if not isinstance(trainer, Engine):
            raise TypeError(f"trainer: expected an engine; got {type(trainer).__name__}")
        self.trainer = trainer
        self._unsaved: set[str] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states, as far as they are plain values and tensors: the file can be read without running any code.

        A part whose state holds other objects is left out, and named in a warning of the trainer's logger.
        """
        parts = {name: state_of(part) for name, part in stateful_parts(self.trainer, self).items()}
        if self._unsaved is None:
            self._unsaved = set() if _is_data(parts) else {name for name, state in parts.items() if not _is_data(state)}
            for name in sorted(self._unsaved):
                self._warn("the state of %s cannot be saved: it holds more than numbers and tensors", name)
        kept = {name: state for name, state in parts.items() if name not in self._unsaved}
        return {"format": _FORMAT, "random": _random_states(), "parts": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: when it is none of `state_dict`.
        """
        if not isinstance(state, Mapping) or state.get("format") != _FORMAT:
            raise ValueError("resume: expected the state of a training as this version writes it; got another one")
        parts = stateful_parts(self.trainer, self)
        for name, saved in state["parts"].items():
            if name in parts:
                put_state(parts[name], saved)
            else:
                self._warn("nothing takes the saved state of %s: the weights may become others", name)
        _put_random_states(state["random"])  # last: nothing above may draw

    def differs(self) -> list[str]:
        """Why a resumed training may become another than one in one go: a sentence for each reason; empty where none
        is known."""
        loader = getattr(self.trainer, "data_loader", None)
        reasons = []
        device = torch.device(getattr(self.trainer.state, "device", None) or "cpu")
        if device.type != "cpu":
            reasons.append(f"{device.type} sums in no fixed order, unless torch is told to")
        if getattr(loader, "num_workers", 0) > 0 and getattr(loader, "persistent_workers", False):
            reasons.append("the loader's workers persist, and their random states are theirs")
        length, batches = self.trainer.state.epoch_length, _length(loader)
        if None not in (length, batches) and length != batches:
            reasons.append(f"an epoch of {length} batches ends inside the loader's {batches}, and starts at its first")
        if isinstance(getattr(loader, "dataset", None), SmartCacheDataset):
            reasons.append("SmartCacheDataset replaces its items from the start")
        reasons += [f"the state of {name} is not saved" for name in sorted(self._unsaved or ())]
        return reasons

    def _warn(self, message: str, *values: Any) -> None:
        getattr(self.trainer, "logger", logging.getLogger(__name__)).warning(message, *values)


def _random_states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the process's own, which MONAI seeds
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, [int(key) for key in keys], *rest],
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _put_random_states(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["torch"].cpu())
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))  # noqa: NPY002
    random.setstate(as_tuples(states["python"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


def _is_data(value: Any) -> bool:
    """Whether torch reads it back as data alone."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception:  # whatever pickle and torch raise at an object that is no data
        return False
    return True


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None
