# SPDX-License-Identifier: Apache-2.0
"""What a bundle's configuration expects of the process around it, and putting everything back."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Surroundings:
    """The working folder, the import path and the settings that a bundle's ``initialize`` may change.

    While entered, the working folder is the bundle (its relative paths mean that), ``scripts`` is the bundle's own,
    and importing it writes no byte code beside it. `leave` restores them, the global random states and the switches of
    cuDNN, which bundles set by `monai.utils.set_determinism`.

    Args:
        root: the bundle.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._kept: dict[str, Any] | None = None

    def enter(self) -> None:
        """Take the bundle's surroundings."""
        self._kept = {
            "cwd": Path.cwd(),
            "path": list(sys.path),
            "bytecode": sys.dont_write_bytecode,
            "scripts": _take_scripts(),
            "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
            "algorithms": torch.are_deterministic_algorithms_enabled(),
            "random": (random.getstate(), np.random.get_state(), torch.get_rng_state()),  # noqa: NPY002
        }
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(self.root))
        os.chdir(self.root)

    def leave(self) -> None:
        """Put back what was there; a second call does nothing."""
        if self._kept is None:
            return
        kept, self._kept = self._kept, None
        os.chdir(kept["cwd"])
        sys.path[:] = kept["path"]
        sys.dont_write_bytecode = kept["bytecode"]
        _take_scripts()
        sys.modules.update(kept["scripts"])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = kept["cudnn"]
        torch.use_deterministic_algorithms(kept["algorithms"])
        python, numpy, own = kept["random"]
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(own)


def _take_scripts() -> dict[str, Any]:
    """Take `scripts` out of the imported modules: every bundle has one of that name."""
    names = [name for name in sys.modules if name == "scripts" or name.startswith("scripts.")]
    return {name: sys.modules.pop(name) for name in names}
