# SPDX-License-Identifier: Apache-2.0
"""`TrainingCheckpoints`: a training's state after every epoch, in files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events

from monai_smia.engines.fingerprint import Fingerprint
from monai_smia.engines.training_state import TrainingState
from monai_smia.reports.files import write_whole
from monai_smia.reports.own_files import clear_temporary

LOG = logging.getLogger(__name__)
_NAME = re.compile(r"training_epoch=(\d+)\.pt")
KEPT = 2


class TrainingCheckpoints:
    """Saves a trainer after every epoch, and before the first; a new process goes on with the last one that is whole.

    Only the last two are kept. A file is written beside its place and moved there when it is complete, and the older
    one is taken away after that: a kill or a full disk at any moment leaves one to go on with.

    Args:
        folder: where the files are; nothing in it is touched but ``training_epoch=N.pt`` and what a kill left of one.
        trainer: the engine; its other handlers have to be attached before these.
        fingerprint: what the training depends on.
    """

    def __init__(self, folder: Path, trainer: Any, fingerprint: Fingerprint) -> None:
        self.folder = folder
        self.trainer = trainer
        self.fingerprint = fingerprint
        self.state = TrainingState(trainer)

    def attach(self, resume: bool) -> None:
        """Save from now on.

        Args:
            resume: go on with the last state first.

        Raises:
            FileNotFoundError: when there is none that can be read.
            ValueError: when it is of another training; names what differs.
        """
        if resume:
            content = self._last()
            self.fingerprint.refuse_other(content["fingerprint"])
            for reason in self.state.differs():
                LOG.warning("monai-smia: resume: the weights may differ from one go; %s", reason)
            self.trainer.add_event_handler(Events.STARTED, lambda: self.state.load_state_dict(content["training"]))
        else:
            self.trainer.add_event_handler(Events.STARTED, self.save)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self) -> None:
        """Write the state of now, then take away all but the last two."""
        content = {"fingerprint": dict(self.fingerprint.parts), "training": self.state.state_dict()}
        if idist.get_rank() > 0:
            return
        buffer = io.BytesIO()
        torch.save(content, buffer)
        file = self.folder / f"training_epoch={self.trainer.state.epoch}.pt"
        write_whole(file, buffer.getvalue(), overwrite=True)
        clear_temporary(self.folder)
        for old in saved_epochs(self.folder)[KEPT:]:
            with contextlib.suppress(FileNotFoundError):
                old.unlink()

    def _last(self) -> Mapping[str, Any]:
        for file in saved_epochs(self.folder):
            try:
                content = torch.load(file, map_location="cpu", weights_only=True)
                if set(content) == {"fingerprint", "training"}:
                    return content
                problem = "it is none of this version"
            except Exception as error:  # whatever pickle and torch raise at half a file
                problem = f"{type(error).__name__}"
            LOG.warning("monai-smia: resume: %s cannot be read (%s); an earlier one is taken", file, problem)
        raise FileNotFoundError(f"resume: expected checkpoints in {self.folder} that can be read; there are none")


def saved_epochs(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the last epoch's first."""
    found = [(int(match[1]), file) for file in folder.glob("*.pt") if (match := _NAME.fullmatch(file.name))]
    return [file for _, file in sorted(found, reverse=True)]
