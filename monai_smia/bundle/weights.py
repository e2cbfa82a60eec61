# SPDX-License-Identifier: Apache-2.0
"""The weights that a bundle is evaluated with: where they are, and loading them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from monai_smia.bundle.errors import BundleError, reason

DEFAULT = Path("models") / "model.pt"
KEYS = ("model", "network", "net", "state_dict")
"""Under which a checkpoint holds the network."""


def given_weights(weights: str | Path | None, root: Path) -> Path | None:
    """The file that a user names: from here, from the bundle, or from its ``models``.

    Raises:
        BundleError: when it is nowhere.
    """
    if weights is None:
        return None
    path = Path(weights).expanduser()
    for place in (path.absolute(), root / path, root / "models" / path):
        if place.is_file():
            return place.resolve()
    raise BundleError(f"weights: expected a file; {weights} does not exist, nor in {root.name} or {root.name}/models")


def load_weights(network: Any, path: Path) -> None:
    """Load a state dict, or a dict with one under ``model``, ``network``, ``net`` or ``state_dict``; nothing missing,
    nothing left over. The file is read as tensors only (``weights_only=True``).

    Raises:
        BundleError: when the file does not exist, is no such file, or is of another network.
    """
    if not path.is_file():
        raise BundleError(f"weights: expected the file {path}; it does not exist, and nothing is evaluated without it")
    if not isinstance(network, nn.Module):
        raise BundleError(f"weights: expected a torch network to load them into; got {type(network).__name__}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever pickle and torch raise at a file that is none of theirs
        raise BundleError(f"weights: expected a torch state dict in {path}; {reason(error)}") from error
    if isinstance(content, Mapping):
        content = next((content[key] for key in KEYS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not any(torch.is_tensor(v) for v in content.values()):
        keys = list(content)[:5] if isinstance(content, Mapping) else type(content).__name__
        raise BundleError(f"weights: expected a state dict in {path}, alone or under one of {KEYS}; got {keys}")
    try:
        network.load_state_dict(content, strict=True)
    except RuntimeError as error:
        raise BundleError(f"weights: {path} is not of this {type(network).__name__}; {reason(error)[:400]}") from error


def listed_download(root: Path, path: Path) -> str:
    """How to get a file of the bundle that its list of large files names; empty when it is in no list."""
    for name in ("large_files.yml", "large_files.yaml", "large_files.json"):
        if not (root / name).is_file():
            continue
        files = ConfigParser.load_config_file(root / name).get("large_files") or []
        if any((root / str(entry.get("path"))).resolve() == path.resolve() for entry in files):
            return f"python -m monai.bundle download_large_files --bundle_path {root} --large_file_name {name}"
    return ""
