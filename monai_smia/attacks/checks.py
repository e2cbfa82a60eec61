# SPDX-License-Identifier: Apache-2.0
"""Validation at the border: arguments of attacks, images, masks and targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from monai_smia.attacks.argument_kinds import LARGEST
from monai_smia.attacks.balls import NORMS
from monai_smia.attacks.heads import (
    LossFunction,
    activation_of,
    core_loss,
    ignore_index,
    is_regression,
    labels,
    main_output,
)
from monai_smia.attacks.threat_models import Size

BOUNDS_TOLERANCE = 1e-6  # of the bounds' width: rounding of an intensity scaling, not a wrong range

Numbers = float | tuple["Numbers", ...]
"""What an attack stores for a number, or for one per channel or sample."""


def as_norm(norm: float | str) -> float:
    """``inf``, 2.0 or 1.0, also from the string ``"inf"`` that JSON needs."""
    written = norm == "inf" if isinstance(norm, str) else isinstance(norm, (int, float)) and not isinstance(norm, bool)
    value = float(norm) if written else math.nan
    if value not in NORMS:
        raise ValueError(f'norm: expected inf (in JSON "inf"), 2 or 1; got {norm!r}')
    return value


def as_numbers(name: str, value: Any, low: float = -math.inf) -> Numbers:
    """A number or nested sequence, array or tensor of numbers as immutable numbers, finite and at least `low`."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, Sequence) and not isinstance(plain, (str, bytes, bytearray, range)):
        return tuple(as_numbers(name, item, low) for item in plain)
    if isinstance(plain, bool) or not isinstance(plain, (int, float)):
        raise TypeError(f"{name}: expected a number, or a sequence of numbers; got {value!r}")
    if not (abs(plain) <= LARGEST and plain >= low):
        wanted = f"finite numbers{'' if low == -math.inf else f' >= {low:g}'}"
        if LARGEST < abs(plain) < math.inf:
            wanted += f", at most {LARGEST:g} in magnitude"
        raise ValueError(f"{name}: expected {wanted}; got {value!r}")
    return float(plain)


def as_count(name: str, value: int, low: int = 1) -> int:
    """A whole number, at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name}: expected a whole number >= {low}; got {value!r}")
    return value


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """One of the strings allowed."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}; got {value!r}")
    return value


def as_bounds(bounds: Any) -> tuple[Numbers, Numbers] | None:
    """``(low, high)``, numbers or one per channel, low under high everywhere; ``None`` for none."""
    if bounds is None:
        return None
    if not isinstance(bounds, Sequence) or isinstance(bounds, (str, bytes, bytearray)) or len(bounds) != 2:
        raise ValueError(f"bounds: expected (low, high), each a number or one per channel, or None; got {bounds!r}")
    low, high = as_numbers("bounds", bounds[0]), as_numbers("bounds", bounds[1])
    if () in (low, high) or not bool((torch.tensor(low) < torch.tensor(high)).all()):
        raise ValueError(f"bounds: expected low < high; got {bounds!r}")
    return low, high


def as_amp(amp: torch.dtype | str | None) -> torch.dtype | None:
    """A floating dtype from its torch object or its name."""
    dtype = getattr(torch, amp, None) if isinstance(amp, str) else amp
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16) or (dtype is None and amp is not None):
        raise ValueError(
            f"amp: expected None, torch.bfloat16, torch.float16 or torch.float32, or its name; got {amp!r}"
        )
    return dtype


def spread(name: str, value: Numbers, image: torch.Tensor, samples: bool = True) -> Size:
    """A stored number as one that broadcasts against `image`: itself, or a tensor ``(B | 1, C | 1, 1, ...)``.

    A sequence is one value per channel, whatever the size of the batch; a nested one has a row per sample.

    Raises:
        ValueError: when it does not fit the image.
    """
    if isinstance(value, float):
        return value
    tensor = torch.tensor(value, dtype=image.dtype, device=image.device)
    batch, channels = image.shape[:2]
    if tensor.ndim == 1:
        tensor = tensor[None]
    if tensor.ndim != 2 or tensor.shape[0] not in (1, batch) or tensor.shape[1] not in (1, channels):
        each = f", or one per sample in shape ({batch}, 1)" if samples else ""
        raise ValueError(
            f"{name}: expected a number, one per channel ({channels}){each} for an image {tuple(image.shape)}; got {value}"
        )
    return tensor.reshape(*tensor.shape, *[1] * (image.ndim - 2))


def check_image(image: Any) -> None:
    """A floating, finite ``BCHW[D]`` tensor (any rank with batch and channel axes)."""
    if not isinstance(image, torch.Tensor):
        raise TypeError(f"image: expected a tensor BCHW[D]; got {type(image).__name__}")
    if image.ndim < 3 or image.numel() == 0:
        raise ValueError(f"image: expected BCHW[D], batch and channel axes and more; got {tuple(image.shape)}")
    if not image.is_floating_point():
        raise TypeError(f"image: expected a floating dtype, in the units that the network is given; got {image.dtype}")
    finite = image.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        raise ValueError(f"image: expected finite values; sample {int((~finite).nonzero()[0])} holds NaN or infinity")


def check_mask(mask: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The mask as booleans; every sample must have at least one voxel that may change."""
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"mask: expected a tensor; got {type(mask).__name__}")
    fits = mask.ndim == image.ndim and all(m in (1, i) for m, i in zip(mask.shape, image.shape, strict=True))
    if not fits:
        raise ValueError(
            f"mask: expected a shape that broadcasts to the image {tuple(image.shape)}, as (B, 1, ...); "
            f"got {tuple(mask.shape)}"
        )
    allowed = mask != 0
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"mask: expected zeros and ones; got values from {mask.min():g} to {mask.max():g}")
    empty = ~allowed.flatten(1).any(1)
    if bool(empty.any()):
        raise ValueError(
            f"mask: expected a voxel that may change in every sample; it is empty in sample {int(empty.nonzero()[0])}"
        )
    return allowed.to(image.device)


def fit_bounds(bounds: tuple[Numbers, Numbers] | None, image: torch.Tensor) -> tuple[Size, Size] | None:
    """Bounds that broadcast against `image`, widened by the rounding that the image itself shows.

    Raises:
        ValueError: when the image leaves them by more than 1e-6 of their width.
    """
    if bounds is None:
        return None
    low, high = (spread("bounds", value, image, samples=False) for value in bounds)
    axes = [i for i in range(image.ndim) if i != 1]
    lowest, highest = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    low, high = torch.as_tensor(low).to(image), torch.as_tensor(high).to(image)
    slack = BOUNDS_TOLERANCE * (high - low)
    if bool(((lowest < low - slack) | (highest > high + slack)).any()):
        raise ValueError(
            f"bounds: the image leaves [{bounds[0]}, {bounds[1]}]: its values run from {image.min():.6g} to "
            f"{image.max():.6g}. Set `bounds` to the range that the network is given, or to None for an unbounded image"
        )
    return torch.minimum(low, lowest), torch.maximum(high, highest)


def check_batch(name: str, value: Any, image: torch.Tensor) -> None:
    """The batch axis of a target agrees with the image's."""
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        raise ValueError(f"{name}: expected {len(image)} samples, as the image has; got a single number without axes")
    if isinstance(value, (torch.Tensor, tuple, list)) and len(value) != len(image):
        raise ValueError(f"{name}: expected {len(image)} samples, as the image has; got {len(value)}")


def check_target(loss_function: LossFunction, prediction: Any, target: Any, activation: str = "auto") -> None:
    """Labels that fit the prediction, for the classification and segmentation losses of torch and MONAI.

    Raises:
        ValueError: when the shape fits no layout of labels, or an index names a class that the prediction has not.
    """
    family = type(core_loss(loss_function)).__module__.partition(".")[0]
    known = family in ("torch", "monai") or getattr(loss_function, "__module__", "").startswith(("torch.", "monai."))
    if not known or not isinstance(target, torch.Tensor) or is_regression(loss_function):
        return
    output = main_output(prediction)
    activation = activation_of(activation, loss_function, output)
    if activation != "softmax" or target.shape == output.shape:
        labels(target, output, activation)
        return
    index = labels(target, output, activation)
    ignored = ignore_index(loss_function)
    wrong = (index < 0) | (index >= output.shape[1])
    if ignored is not None:
        wrong &= index != ignored
    if bool(wrong.any()):
        raise ValueError(
            f"target: expected class indices under {output.shape[1]}, the channels of the prediction; "
            f"got values from {int(index.min())} to {int(index.max())}"
        )
