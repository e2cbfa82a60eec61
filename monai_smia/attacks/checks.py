# SPDX-License-Identifier: Apache-2.0
"""Validation at the border: arguments of attacks, images, masks and targets."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from monai_smia.attacks.argument_kinds import LARGEST
from monai_smia.attacks.balls import NORMS
from monai_smia.attacks.heads import (
    LossFunction,
    activation_of,
    activations_said,
    core_loss,
    counted_like,
    ignore_index,
    is_per_channel,
    is_regression,
    label_range,
    main_output,
    takes_indices,
)
from monai_smia.attacks.loss_parts import is_library_loss, loss_parts
from monai_smia.attacks.threat_models import Size

LOG = logging.getLogger(__name__)

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
    known = dtype is None or isinstance(dtype, torch.dtype)
    if (
        not known
        or dtype not in (None, torch.float32, torch.bfloat16, torch.float16)
        or (dtype is None and amp is not None)
    ):
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
            f"{name}: expected a number, one per channel ({channels}){each} for an image {tuple(image.shape)}; "
            f"got {value}"
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
    """The mask as booleans. A sample without a voxel that may change stays as it is, and the log says so."""
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
        where = ", ".join(map(str, empty.nonzero().flatten().tolist()))
        LOG.warning("mask: empty in sample %s of the batch, which stays as it is", where)
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


def check_batch_of(prediction: Any, image: torch.Tensor) -> None:
    """The first axis of a prediction that is one tensor agrees with the image's.

    Raises:
        ValueError: naming both shapes.
    """
    if isinstance(prediction, torch.Tensor) and prediction.ndim > 0 and len(prediction) != len(image):
        raise ValueError(
            f"prediction: expected {len(image)} samples, as the image {tuple(image.shape)} has; got "
            f"{tuple(prediction.shape)}; does the image have its batch axis, and the prediction too?"
        )


def check_network_rank(network: Any, image: torch.Tensor, error: Exception) -> None:
    """After a network refused an image: whether its first convolution takes another number of axes.

    Raises:
        ValueError: from `error`, where it does. Networks that make other axes of their input first do not come here.
    """
    modules = network.modules() if isinstance(network, nn.Module) else ()
    first = next((module for module in modules if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
    if first is not None and len(first.kernel_size) != image.ndim - 2:
        raise ValueError(
            f"image: {type(first).__name__} at the network's start takes {len(first.kernel_size) + 2} axes, batch and "
            f"channels first; got {tuple(image.shape)}"
        ) from error


def check_rank(loss_function: LossFunction, prediction: Any, image: torch.Tensor) -> None:
    """A prediction that classes are read from has the image's axes, or is a classifier's.

    Raises:
        ValueError: naming the prediction's shape, for any other rank: a dense output without its channel axis would be
            read as classes.
    """
    first = prediction[0] if isinstance(prediction, (tuple, list)) and prediction else prediction
    if not isinstance(first, torch.Tensor) or hasattr(prediction, "_fields"):
        return
    squeezed = first.ndim < 2
    if (squeezed and takes_indices(loss_function)) or (not squeezed and first.ndim not in (2, image.ndim)):
        spatial = ", ".join(str(size) for size in image.shape[2:])
        raise ValueError(
            f"prediction: expected (B, C) of a classifier or (B, C, {spatial}) of a dense output, for an image "
            f"{tuple(image.shape)}; got {tuple(first.shape)}. Keep the channel axis: no squeeze after the last layer"
        )


def check_target(
    loss_function: LossFunction,
    prediction: Any,
    target: Any,
    activation: str = "auto",
    criterion: Any = None,
) -> None:
    """Labels that fit the prediction, for the classification and segmentation losses of torch and MONAI.

    They are checked for every head, and also where such a loss is inside another module: class indices name classes of
    the prediction, and a label for each channel is in [0, 1] (soft labels too), or what the loss ignores. A target that
    is no tensor, such as a detector's boxes, is left to its loss; of a list of tensors each is checked.

    Args:
        loss_function: the attack's.
        prediction: the network's.
        target: the labels.
        activation: the head; ``"auto"`` reads it from the loss.
        criterion: the attack's, whose head is taken where the loss's own is not clear.

    Raises:
        TypeError: when the loss takes a tensor and the prediction holds none.
        ValueError: when the shape fits no layout of labels, or a value is none of a label.
    """
    opened = getattr(loss_function, "opened", None)
    if opened is not None and isinstance(target, torch.Tensor):
        loss_function, prediction, target = opened(prediction, target)
    several = isinstance(target, (tuple, list)) and all(isinstance(item, torch.Tensor) for item in target)
    if several and isinstance(prediction, (tuple, list)) and len(target) == len(prediction):
        for one, other in zip(prediction, target, strict=True):
            check_target(loss_function, one, other, activation, criterion)
        return
    parts = loss_parts(loss_function)
    if not parts or not isinstance(target, torch.Tensor) or is_regression(loss_function):
        return
    alone = is_library_loss(core_loss(loss_function))
    if not alone and not isinstance(prediction, (torch.Tensor, tuple, list)):
        return  # a loss of one's own reads its own kind of prediction
    output = main_output(prediction, f"{type(core_loss(loss_function)).__name__} takes a tensor: {_WRAPPED}")
    head = _head(loss_function, output, activation, criterion)
    if head is None or (not alone and criterion is not None and not _fits(target, output, head)):
        return
    ignored = ignore_index(loss_function)
    if is_per_channel(target, output, head):
        _check_values(target[counted_like(target, output, head, ignored)], label_range(loss_function))
        return
    index = target[counted_like(target, output, head, ignored)].long()
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < output.shape[1]:
        raise ValueError(
            f"target: expected class indices under {output.shape[1]}, the channels of the prediction; "
            f"got values from {int(index.min())} to {int(index.max())}"
        )


_WRAPPED = "wrap the network so that it returns one, such as lambda x: network(x)['out'], or give a loss that reads it"


def _head(loss_function: LossFunction, output: torch.Tensor, activation: str, criterion: Any) -> str | None:
    """The head: as given, as the loss says, or where losses contradict each other as the criterion has it."""
    said = activations_said(loss_function)
    if activation != "auto" or criterion is None or len(said) < 2:
        return activation_of(activation, loss_function, output)
    found = getattr(getattr(criterion, "criterion", criterion), "activation", None)
    return found if isinstance(found, str) else None


def _fits(target: torch.Tensor, output: torch.Tensor, head: str) -> bool:
    try:
        is_per_channel(target, output, head)
    except ValueError:
        return False
    return True


def _check_values(counted: torch.Tensor, allowed: tuple[float, float]) -> None:
    """Labels of decisions that each channel makes of its own."""
    if counted.dtype == torch.bool or counted.numel() == 0:
        return
    low, high = float(counted.min()), float(counted.max())
    if not (allowed[0] <= low and high <= allowed[1]):  # also where one is NaN
        raise ValueError(
            f"target: expected values in [{allowed[0]:g}, {allowed[1]:g}], a decision for each channel; "
            f"got values from {low:g} to {high:g}. Scale a mask of 0 and 255 to 0 and 1"
        )
