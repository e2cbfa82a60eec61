# SPDX-License-Identifier: Apache-2.0
"""`close` and `same_values`: what is read in two ways is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from monai_smia.export.dependence import same
from monai_smia.export.replay import Loaded
from monai_smia.export.stored import StoredImage

TOLERANCE = 1e-5
"""Share of the largest value that rounding may make a difference of."""


def close(one: Any, other: Any) -> bool:
    """Whether two values of an item are equal but for the rounding of floating-point numbers."""
    if not all(isinstance(value, torch.Tensor) and value.is_floating_point() for value in (one, other)):
        return same(one, other)
    a, b = (value.detach().cpu().as_subclass(torch.Tensor) for value in (one, other))
    if a.shape != b.shape:
        return False
    return not a.numel() or torch.allclose(a, b, rtol=0, atol=TOLERANCE * float(b.abs().max() + 1), equal_nan=True)


def same_values(stored: StoredImage, loaded: Loaded, path: Path) -> None:
    """What this package reads from the file is what the bundle's loader gave."""
    values, image = stored.values(), loaded.image
    options = f" {', '.join(loaded.options)} of its {loaded.reader} may be why." if loaded.options else ""
    if tuple(values.shape) != tuple(image.shape):
        raise ValueError(
            f"image_key: the bundle loads {path.name} as {tuple(image.shape)}, the file holds {tuple(values.shape)}."
            f"{options}"
        )
    if not bool(values.isfinite().all()):
        raise ValueError(f"image_key: expected finite numbers in {path.name}; got NaN or infinity")
    difference = float((values - image.as_tensor().cpu().float()).abs().max())
    if difference > TOLERANCE * (1 + float(values.abs().max())):
        raise ValueError(
            f"image_key: the bundle's loader changes the values of {path.name}, by up to {difference:.4g}; expected "
            f"one that gives what the file holds.{options}"
        )
    _check_dtype(stored, loaded.dtype, path)


def _check_dtype(stored: StoredImage, dtype: torch.dtype, path: Path) -> None:
    """An integer type that the image is loaded as holds all that the file can hold.

    Raises:
        ValueError: naming the argument of `LoadImaged`.
    """
    if dtype.is_floating_point:
        return
    steps = [
        torch.as_tensor(number, dtype=torch.float64) for number in (stored.lattice.slope, stored.lattice.intercept)
    ]
    bounds, kind = stored.lattice.bounds, torch.iinfo(dtype)
    whole = all(bool((number == number.round()).all()) for number in steps)
    if bounds is None or not whole or bounds[0] < kind.min or bounds[1] > kind.max:
        held = "any number" if bounds is None else f"{bounds[0]:g} to {bounds[1]:g}"
        raise ValueError(
            f"preprocessing: LoadImaged(dtype={str(dtype).removeprefix('torch.')}) does not hold all that "
            f"{path.name} can hold ({held}{'' if whole else ', not whole'}); expected dtype=float32"
        )
