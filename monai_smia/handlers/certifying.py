# SPDX-License-Identifier: Apache-2.0
"""`certify_batch`: the certificates of a batch as a MONAI engine is about to see it, as rows of a report."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.utils import CommonKeys

from monai_smia.attacks import Attack
from monai_smia.certificates import certify
from monai_smia.certificates.binomial import require_scipy
from monai_smia.handlers.batch import _plain, _take, autocast_of
from monai_smia.intensity import IntensityScale

_OF_THE_EVALUATION = {"network", "image", "inferer", "generator", "intensity", "progress"}


def certify_options(given: Mapping[str, Any] | None, attacks: Mapping[str, Attack]) -> dict[str, Any] | None:
    """What an evaluation is told to certify, with the loss and the activation of the attacks where it has none.

    Args:
        given: arguments of `certify`, of which ``sigma`` is needed; ``None`` certifies nothing.
        attacks: by name.

    Raises:
        TypeError: when it is no mapping.
        ValueError: when an argument is not known, or there is no ``sigma``.
        OptionalImportError: without scipy.
    """
    if given is None:
        return None
    require_scipy()
    if not isinstance(given, Mapping):
        raise TypeError(f'certify: expected arguments by name, such as {{"sigma": 0.25}}; got {given!r}')
    known = set(inspect.signature(certify).parameters) - _OF_THE_EVALUATION
    unknown = sorted(set(given) - known)
    if unknown or "sigma" not in given:
        found = f"got {', '.join(unknown)}" if unknown else "got no sigma"
        raise ValueError(f"certify: expected sigma, and of {', '.join(sorted(known - {'sigma'}))} any; {found}")
    options: dict[str, Any] = {}
    for name in ("loss_function", "activation"):
        values = [value for attack in attacks.values() if (value := getattr(attack, name, None)) is not None]
        options |= {name: values[0]} if values else {}
    return options | dict(given)


def certify_batch(
    engine: Any,
    batch: Any,
    options: Mapping[str, Any],
    names: Sequence[str],
    *,
    image_key: str = CommonKeys.IMAGE,
    seed: int = 0,
    intensity: IntensityScale | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Rows of `Certificate.to_rows`, through the engine's own ``prepare_batch``, inferer, device and autocast.

    The noise of a case comes from the seed and the name of its file: its certificate is the same whatever is evaluated
    beside it, in batches of any size, and in a run that was interrupted.

    Args:
        engine: a MONAI engine with a network.
        batch: what the loader gave; without a label, rows say nothing of accuracy.
        options: of `certify`.
        names: files of the cases.
        image_key: the image's key, named in errors.
        seed: of the noise.
        intensity: physical unit of the network's input.
        progress: show a bar for every case.

    Raises:
        ValueError: when the network's input is no tensor of one image for each case, or as `certify`.
    """
    prepared = engine.prepare_batch(batch, engine.state.device, engine.non_blocking, **engine.to_kwargs)
    inputs, targets, args, kwargs = prepared if len(prepared) == 4 else (*prepared, (), {})
    if not (isinstance(inputs, torch.Tensor) and len(inputs) == len(names)):
        raise ValueError(f"image_key: expected a tensor of {len(names)} images under {image_key!r}, to certify them")
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(names):

        def through(noisy: torch.Tensor, network: Any, index: int = i) -> Any:
            copies = torch.full((len(noisy),), index, device=noisy.device)
            own = [_take(value, copies, len(inputs)) for value in args]
            named = {key: _take(value, copies, len(inputs)) for key, value in kwargs.items()}
            return engine.inferer(noisy, network, *own, **named)

        with autocast_of(engine):
            certificate = certify(
                engine.network,
                _plain(inputs)[i : i + 1],
                inferer=through,
                generator=torch.Generator().manual_seed(zlib.crc32(f"{seed} {Path(name).name}".encode())),
                intensity=intensity,
                progress=progress,
                **options,
            )
        label = None if targets is None else _plain(torch.as_tensor(targets))[i : i + 1]
        rows += certificate.to_rows(label, names=[name])
    return rows
