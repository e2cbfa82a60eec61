# SPDX-License-Identifier: Apache-2.0
"""Numbers and metrics in words, the same in the page, the model card and the figures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

UNDEFINED = "undefined"

_WORDS = {"dice": "Dice", "iou": "IoU", "hausdorff": "Hausdorff"}
_WORDS |= {word: word.upper() for word in ("auc", "ap", "ap30", "ap50", "hd", "hd95")}
_WORSE_HIGH_ALWAYS = {"loss", "error", "drop", "success"}
_BETTER_HIGH = {"dice", "iou", "accuracy", "auc", "similarity"}
_DISTANCES = {"distance", "hausdorff", "hd", "hd95", "asd", "assd", "surface"}
_WORSE_HIGH = _DISTANCES | {"mae", "mse", "rmse", "ece"}


def shown(value: Any, digits: int = 3) -> str:
    """A number for reading: `digits` decimals below 10, one below 1000; ``"undefined"`` for ``None`` and NaN.

    Example:
        >>> shown(0.41234), shown(float("nan")), shown(12.34), shown(-0.5, 2), shown(0.00012), shown(float("inf"))
        ('0.412', 'undefined', '12.3', '−0.50', '1.2e−04', '∞')
    """
    if value is None or math.isnan(value):
        return UNDEFINED
    size = abs(value)
    if math.isinf(size):
        text = "∞"
    elif 0 < size < 0.5 * 10**-digits:
        text = f"{size:.1e}".replace("-", "−")
    else:
        text = f"{size:.{digits if size < 10 else 1 if size < 1000 else 0}f}"
    return "−" + text if value < 0 else text


def sized(value: float) -> str:
    """A size of a change, in at most three digits.

    Example:
        >>> sized(4.999998), sized(0.0123456), sized(float("nan"))
        ('5', '0.0123', 'undefined')
    """
    return shown(value) if not math.isfinite(value) else f"{float(f'{value:.3g}'):g}".replace("-", "−")


def label_of(name: str, names: Mapping[str, str]) -> str:
    """What readers see for a column: its entry in `names`, or the column's words.

    Example:
        >>> label_of("val_mean_dice_1", {}), label_of("val_mean_dice_0", {"val_mean_dice_0": "left lung"})
        ('mean Dice (1)', 'left lung')
    """
    if name in names:
        return names[name]
    words = [_WORDS.get(word.lower(), word) for word in name.removeprefix("val_").split("_") if word]
    if len(words) > 1 and words[-1].isdecimal():
        words[-1] = f"({words[-1]})"
    return " ".join(words) or name


def is_lower_better(name: str) -> bool:
    """Whether small values of a metric are the good ones, from the words of its name.

    Example:
        >>> [is_lower_better(name) for name in ("val_mean_dice", "hausdorff_distance", "surface_dice", "dice_loss")]
        [False, True, False, True]
    """
    words = set(re.findall(r"[a-z]+\d*", name.lower()))
    return bool(words & _WORSE_HIGH_ALWAYS) or (not words & _BETTER_HIGH and bool(words & _WORSE_HIGH))


def listed(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def counted(number: int, noun: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
