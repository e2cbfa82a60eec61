# SPDX-License-Identifier: Apache-2.0
"""`PictureImage`: a PNG or JPEG file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import optional_import

from monai_smia.export.deidentify import Deidentification
from monai_smia.export.lattice import Lattice
from monai_smia.export.picture_parts import jpeg_segments, splice_jpeg, splice_png
from monai_smia.export.soft_jpeg import SoftJPEG
from monai_smia.export.stored import StoredImage, appearing, one_line

Image, _ = optional_import("PIL.Image")
JpegImagePlugin, _ = optional_import("PIL.JpegImagePlugin")

SUFFIXES = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif")}
PNG_KINDS = {(8, 0): np.uint8, (16, 0): np.uint16, (8, 2): np.uint8}  # bit depth and colour type: grey, grey, RGB
UNREADABLE_PICTURE = (EOFError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error, zlib.error)
"""What Pillow and the parts of a file raise where its bytes are damaged."""


class PictureImage(StoredImage):
    """A PNG file, grey (8 or 16 bits) or RGB (8 bits), or a JPEG file, grey or RGB.

    A copy of a PNG file has its pixels in a new stream, not interlaced, and every other chunk byte for byte: ICC
    profile, text, resolution, time. A copy of a JPEG file has the original's quantisation tables, chroma subsampling
    and progression, and its APP and COM segments (EXIF, ICC profile, comments) byte for byte. JPEG is lossy: `held`
    encodes and decodes, and a copy without a change differs from the original by a second compression.

    An alpha channel is refused, since a change that is not seen fools nobody; so is a palette, whose numbers are no
    intensities, and 16 bits of RGB, of which Pillow and so MONAI read 8. TIFF is not written.

    Args:
        path: the file.
        quality: of the copies of a JPEG file, 1 to 100; ``None`` for the original's tables.
        as_png: write the copies of a JPEG file as PNG, without loss, with its ICC profile and EXIF.
        deidentify: leave EXIF, texts, comments, times and colour profiles out of the copies.

    Raises:
        ImportError: without Pillow (the extra ``report``).
        FileNotFoundError: when there is no file.
        ValueError: when it cannot be read, or is another kind of picture; for a quality out of range, or of PNG copies.

    Example:
        .. code-block:: python

            picture = PictureImage("fundus.jpg", quality=95)
            picture.write(picture.values() + 1.0, Path("fundus_adversarial.jpg"))
    """

    def __init__(
        self,
        path: str | Path,
        *,
        quality: int | None = None,
        as_png: bool = False,
        deidentify: Deidentification | None = None,
    ) -> None:
        self.path = Path(path)
        self._deidentify = deidentify
        if not self.path.is_file():
            raise FileNotFoundError(f"path: no file {self.path}")
        self._content = self.path.read_bytes()
        self._array, self._options, self._format = _open(self._content, self.path)
        self._converted = as_png and self._format == "JPEG"
        if self._converted:
            self._format, self._options = "PNG", _profiles(self._content) if deidentify is None else {}
        if quality is not None:
            if self._format != "JPEG" or isinstance(quality, bool) or not 1 <= quality <= 100:
                raise ValueError(f"quality: expected None, or 1 to 100 for JPEG; got {quality!r} for {self.path.name}")
            self._options = {name: value for name, value in self._options.items() if name != "qtables"}
            self._options["quality"] = quality
        self.lattice = Lattice.of_type(self._array.dtype)
        self.lossless = self._format == "PNG"
        self.suffix = ".png" if self._converted else self.path.suffix.lower()

    def values(self) -> torch.Tensor:
        """As MONAI's `PILReader` loads it, channel first: ``(1 or 3, width, height)``."""
        return _as_tensor(self._array)

    def held(self, values: torch.Tensor) -> torch.Tensor:
        if self.lossless:
            return self.lattice.nearest(values)
        array = _open(self._encode(values), self.path)[0]
        return _as_tensor(array).to(values.device, values.dtype)

    def approximation(self) -> SoftJPEG | None:
        """A differentiable copy of the JPEG of the copies, with their tables and subsampling; the identity for PNG."""
        return None if self.lossless else SoftJPEG.of_file(self._encode(self.values()))

    def write(self, values: torch.Tensor, path: Path) -> None:
        if path.suffix.lower() not in SUFFIXES[self._format]:
            raise ValueError(f"path: expected a name that ends with {self.suffix}; got {path.name}")
        content = self._encode(self.check(values))
        with appearing(path) as place:
            place.write_bytes(content)

    def _encode(self, values: torch.Tensor) -> bytes:
        levels = self.lattice.levels(values).cpu().numpy().astype(self._array.dtype)
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(levels[0].T if self._array.ndim == 2 else levels.T)).save(
            stream, self._format, **self._options
        )
        if self._converted:
            return stream.getvalue()
        splice = splice_png if self._format == "PNG" else splice_jpeg
        return splice(self._content, stream.getvalue(), self._deidentify is not None)


def _open(content: bytes, path: Path) -> tuple[np.ndarray, dict[str, Any], str]:
    """Pixels, ``(height, width)`` or ``(height, width, 3)``, how to encode others, and the format."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            kind = _check_kind(image, content, path)
            if image.format == "JPEG":
                list(jpeg_segments(content))  # a copy takes them over, so they must be whole
            array = np.array(image).astype(kind)
            return array, _jpeg_options(image, path) if image.format == "JPEG" else {}, image.format
    except _PictureError:
        raise
    except UNREADABLE_PICTURE as error:
        raise ValueError(f"path: {path} cannot be read as a picture: {one_line(error)}") from error


def _profiles(content: bytes) -> dict[str, Any]:
    """What Pillow writes into a PNG file beside the pixels of a JPEG file."""
    with Image.open(io.BytesIO(content)) as image:
        found = {name: image.info.get(name) for name in ("icc_profile", "exif", "dpi")}
    return {name: value for name, value in found.items() if value}


class _PictureError(ValueError):
    """A picture that can be read, of a kind that is not written back."""


def _check_kind(image: Any, content: bytes, path: Path) -> Any:
    if image.format not in SUFFIXES or getattr(image, "n_frames", 1) > 1:
        raise _PictureError(f"path: expected a PNG or JPEG file of one picture; got {image.format} in {path}")
    if image.format == "JPEG":
        if image.mode not in ("L", "RGB") or (image.mode == "RGB" and image.info.get("adobe_transform") == 0):
            raise _PictureError(f"path: expected grey, or RGB stored as YCbCr; got {image.mode} in {path}")
        return np.uint8
    depth, colour = content[24], content[25]
    if (depth, colour) not in PNG_KINDS:
        raise _PictureError(
            f"path: expected grey of 8 or 16 bits, or RGB of 8, without alpha or palette; got {image.mode}, "
            f"{depth} bits, colour type {colour} in {path}"
        )
    return PNG_KINDS[depth, colour]


def _jpeg_options(image: Any, path: Path) -> dict[str, Any]:
    sampling = JpegImagePlugin.get_sampling(image)
    if image.mode == "RGB" and sampling < 0:
        raise _PictureError(f"path: expected chroma subsampling 4:4:4, 4:2:2 or 4:2:0; got another one in {path}")
    return {
        "qtables": image.quantization,
        "subsampling": sampling,
        "progressive": bool(image.info.get("progressive")),
    }


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    grid = np.ascontiguousarray(array.T, dtype=np.float32)
    return torch.from_numpy(grid if array.ndim == 3 else grid[np.newaxis])
