# SPDX-License-Identifier: Apache-2.0
"""`pack_image`, `pack_difference` and `pack_classes`: arrays small enough for a page, with what reading them needs."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_SAMPLED = 2**20  # bytes that an estimate of the compressed size looks at


@dataclass(frozen=True)
class Packed:
    """Whole numbers of 8 or 4 bits; the value is ``low + step * code``.

    Attributes:
        codes: flat, C order, uint8.
        low, step: see above; values are exact to half a step.
        bits: 8, or 4: two codes in a byte, the first in the lower half.
    """

    codes: Array
    low: float
    step: float
    bits: int

    def size(self) -> int:
        """About how many characters `text` has, from parts of a large array."""
        content = self._bytes()
        if len(content) <= _SAMPLED:
            return _as_text(len(zlib.compress(content, 6)))
        length = _SAMPLED // 16
        starts = np.linspace(0, len(content) - length, 16).astype(int)
        parts = [len(zlib.compress(content[start : start + length], 6)) for start in starts]
        return _as_text(int(sum(parts) / _SAMPLED * len(content)))

    def text(self) -> str:
        """Zlib-compressed and in base64, for ``DecompressionStream("deflate")``."""
        return base64.b64encode(zlib.compress(self._bytes(), 6)).decode("ascii")

    def _bytes(self) -> bytes:
        if self.bits == 8:
            return self.codes.tobytes()
        padded = np.append(self.codes, np.zeros(len(self.codes) % 2, np.uint8))
        return (padded[::2] | (padded[1::2] << 4)).astype(np.uint8).tobytes()


def pack_image(image: Array) -> Packed:
    """256 steps from the smallest to the largest value; exact for whole numbers that span at most 255.

    Example:
        >>> packed = pack_image(np.array([[-1000.0, 275.0]]))
        >>> packed.low, packed.step, packed.codes.tolist()
        (-1000.0, 5.0, [0, 255])
    """
    low, high = float(image.min()), float(image.max())
    whole = high - low <= 255 and bool(np.abs(image - np.rint(image)).max() <= 1e-3)
    low = float(np.rint(low)) if whole else low
    step = 1.0 if whole or high <= low else (high - low) / 255
    return Packed(_codes(image, low, step, 0, 255), low, step, 8)


def pack_difference(difference: Array, bits: int = 8) -> Packed:
    """Steps of the same size on both sides of an exact zero, up to the largest change.

    Example:
        >>> packed = pack_difference(np.array([-7.0, 0.0, 3.5]), bits=4)
        >>> packed.step, packed.codes.tolist(), (packed.low + packed.step * packed.codes).tolist()
        (1.0, [1, 8, 12], [-7.0, 0.0, 4.0])
    """
    zero = 2 ** (bits - 1)
    largest = float(np.abs(difference).max())
    step = largest / (zero - 1) if largest > 0 else 1.0
    return Packed(_codes(difference, -zero * step, step, 1, 2 * zero - 1), -zero * step, step, bits)


def pack_classes(classes: Array) -> Packed:
    """Whole numbers from 0 to 255 as they are."""
    return Packed(classes.astype(np.uint8).ravel(), 0.0, 1.0, 8)


def unpack(text: str, *, low: float, step: float, bits: int) -> Array:
    """The values of `Packed.text`, flat; a zero code may be added at the end of an odd number of 4-bit codes.

    Example:
        >>> packed = pack_image(np.array([0.0, 0.5, 1.0]))
        >>> unpack(packed.text(), low=packed.low, step=packed.step, bits=packed.bits).round(2).tolist()
        [0.0, 0.5, 1.0]
    """
    codes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], 1).ravel()
    return low + step * codes.astype(float)


def _codes(values: Array, low: float, step: float, first: int, last: int) -> Array:
    return np.clip(np.rint((values - low) / step), first, last).astype(np.uint8).ravel()


def _as_text(size: int) -> int:
    return (size + 2) // 3 * 4
