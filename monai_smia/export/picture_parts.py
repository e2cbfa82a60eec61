# SPDX-License-Identifier: Apache-2.0
"""`splice_png` and `splice_jpeg`: the pixels of one file inside everything else of another."""

from __future__ import annotations

import struct
from collections.abc import Iterator

SIGNATURE = 8  # bytes before the first chunk of a PNG file
START_OF_SCAN = 0xDA
SHOWN = {b"IEND", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD"}
SEGMENTS_KEPT = {*range(0xE0, 0xF0), 0xFE}  # APP0 to APP15, and comments


def splice_png(original: bytes, encoded: bytes, bare: bool = False) -> bytes:
    """The picture of `encoded` with the other chunks of `original`, such as ICC profile and text, where they were.

    Args:
        original: a PNG file.
        encoded: a PNG file of the same size and kind.
        bare: only chunks that say how the pixels are to be shown.
    """
    fresh = list(_png_chunks(encoded))
    pixels = b"".join(chunk for name, chunk in fresh if name == b"IDAT")
    head = next(chunk for name, chunk in fresh if name == b"IHDR")
    parts = [original[:SIGNATURE], head]
    for name, chunk in _png_chunks(original):
        if name == b"IDAT":
            parts.append(pixels)
            pixels = b""
        elif name != b"IHDR" and (name in SHOWN or not bare):
            parts.append(chunk)
    return b"".join(parts)


def splice_jpeg(original: bytes, encoded: bytes, bare: bool = False) -> bytes:
    """The picture of `encoded` with the APP and COM segments of `original`.

    Args:
        original: a JPEG file.
        encoded: a JPEG file.
        bare: only segments that say how the pixels are to be read.
    """
    own = [(marker, part) for marker, part in jpeg_segments(original) if marker in SEGMENTS_KEPT]
    kept = b"".join(part for marker, part in own if not bare or (marker == 0xEE and part[4:9] == b"Adobe"))
    if bare:
        return encoded[:2] + kept + b"".join(part for _, part in jpeg_segments(encoded) if _ not in SEGMENTS_KEPT)
    fresh = b"".join(part for marker, part in jpeg_segments(encoded) if marker not in SEGMENTS_KEPT)
    return encoded[:2] + kept + fresh


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and bytes of each chunk, with its length and checksum."""
    begin = SIGNATURE
    while begin + 12 <= len(content):
        (length,) = struct.unpack(">I", content[begin : begin + 4])
        yield content[begin + 4 : begin + 8], content[begin : begin + 12 + length]
        begin += 12 + length


def jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and bytes of each segment after the start; the scan with all that follows is the last."""
    begin = 2
    while content[begin + 1] != START_OF_SCAN:
        if content[begin + 1] == 0xFF:  # a filling byte
            begin += 1
            continue
        (length,) = struct.unpack(">H", content[begin + 2 : begin + 4])
        yield content[begin + 1], content[begin : begin + 2 + length]
        begin += 2 + length
    yield START_OF_SCAN, content[begin:]
