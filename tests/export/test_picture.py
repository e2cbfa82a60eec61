# SPDX-License-Identifier: Apache-2.0
"""`PictureImage` against Pillow and MONAI's `PILReader`."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import PILReader
from monai.transforms import LoadImage

from monai_smia.attacks.bpda import BPDA
from monai_smia.export import PictureImage
from monai_smia.export.picture_parts import splice_png

Image = pytest.importorskip("PIL.Image")
PngImagePlugin = pytest.importorskip("PIL.PngImagePlugin")
JpegImagePlugin = pytest.importorskip("PIL.JpegImagePlugin")

PNGS = {"L": (np.uint8, ()), "I;16": (np.uint16, ()), "RGB": (np.uint8, (3,))}


def pixels(mode: str, size: tuple[int, int] = (12, 17)) -> np.ndarray:
    """A smooth picture with some noise, ``(height, width[, 3])``."""
    kind, channels = PNGS[mode]
    rng = np.random.default_rng(0)
    top = np.iinfo(kind).max
    ramp = np.add.outer(np.linspace(0.2, 0.6, size[0]), np.linspace(0.0, 0.3, size[1]))
    grid = ramp.reshape(*size, *(1 for _ in channels)) + rng.normal(0, 0.02, (*size, *channels))
    return (np.clip(grid, 0, 1) * top).astype(kind)


def save_png(path: Path, mode: str) -> np.ndarray:
    array = pixels(mode)
    info = PngImagePlugin.PngInfo()
    info.add_text("Description", "made up")
    info.add(b"prVt", b"a private chunk")
    Image.fromarray(array).save(path, pnginfo=info, icc_profile=b"a profile", dpi=(300, 300))
    return array


def chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Names and contents, with the checksums verified."""
    found, begin = [], 8
    while begin < len(content):
        (length,) = struct.unpack(">I", content[begin : begin + 4])
        name, body = content[begin + 4 : begin + 8], content[begin + 8 : begin + 8 + length]
        assert zlib.crc32(name + body) == struct.unpack(">I", content[begin + 8 + length : begin + 12 + length])[0]
        found.append((name, body))
        begin += 12 + length
    return found


@pytest.mark.parametrize("mode", PNGS)
def test_a_png_copy_is_exact_and_keeps_the_other_chunks(tmp_path: Path, mode: str) -> None:
    path, copy, other = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "new" / "c.PNG"
    array = save_png(path, mode)
    image = PictureImage(path)
    loaded = LoadImage(ensure_channel_first=True)(path).as_tensor()
    assert torch.equal(image.values(), loaded)
    assert np.array_equal(image.values().numpy()[0], array.T if array.ndim == 2 else array[..., 0].T)
    image.write(image.values(), copy)
    with Image.open(copy) as read:
        assert read.mode == mode
        assert np.array_equal(np.asarray(read), array)
    names = [name for name, _ in chunks(path.read_bytes())]
    assert {b"iCCP", b"pHYs", b"tEXt", b"prVt"} <= set(names)
    kept = [[pair for pair in chunks(file.read_bytes()) if pair[0] != b"IDAT"] for file in (path, copy)]
    assert kept[0] == kept[1]
    changed = image.values() + 3.3 * torch.randn(loaded.shape, generator=torch.Generator().manual_seed(0))
    image.write(changed, other)
    again = LoadImage(ensure_channel_first=True, reader=PILReader)(other).as_tensor()
    assert torch.equal(again, image.held(changed))
    assert float((again - changed).abs().max()) <= 0.5


def test_a_png_in_many_pieces_and_interlaced_is_read(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.png", tmp_path / "b.png"
    array = save_png(path, "L")
    content = path.read_bytes()
    parts = [content[:8]]
    for name, body in chunks(content):
        for piece in [body[:20], body[20:]] if name == b"IDAT" else [body]:
            parts.append(struct.pack(">I", len(piece)) + name + piece + struct.pack(">I", zlib.crc32(name + piece)))
    path.write_bytes(b"".join(parts))
    image = PictureImage(path)
    image.write(image.values(), copy)
    with Image.open(copy) as read:
        assert np.array_equal(np.asarray(read), array)
    assert sum(name == b"IDAT" for name, _ in chunks(copy.read_bytes())) == 1
    assert splice_png(copy.read_bytes(), copy.read_bytes()) == copy.read_bytes()


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{"quality": 60}, {"quality": 90, "subsampling": 1, "progressive": True}])
def test_a_jpeg_copy_is_what_held_says_at_the_same_tables(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    path, copy = tmp_path / "a.jpg", tmp_path / "b.jpeg"
    exif = Image.Exif()
    exif[0x010E] = "made up"
    Image.fromarray(pixels(mode)).save(
        path, exif=exif, icc_profile=b"p" * 200, comment=b"a note", dpi=(72, 72), **options
    )
    image = PictureImage(path)
    assert not image.lossless
    assert torch.equal(image.values(), LoadImage(ensure_channel_first=True)(path).as_tensor())
    changed = image.values() + 5 * torch.randn(image.values().shape, generator=torch.Generator().manual_seed(0))
    image.write(changed, copy)
    assert torch.equal(LoadImage(ensure_channel_first=True)(copy).as_tensor(), image.held(changed))
    assert not torch.equal(image.held(changed), image.lattice.nearest(changed))
    with Image.open(path) as one, Image.open(copy) as other:
        assert one.quantization == other.quantization
        assert JpegImagePlugin.get_sampling(one) == JpegImagePlugin.get_sampling(other)
        assert other.info.items() >= one.info.items()
        assert other.getexif()[0x010E] == "made up"


def test_a_jpeg_of_quality_100_is_held_nearly_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(pixels("L")).save(tmp_path / "a.jpg", quality=50)
    coarse, fine = PictureImage(tmp_path / "a.jpg"), PictureImage(tmp_path / "a.jpg", quality=100)
    changed = coarse.values() + 5 * torch.randn(coarse.values().shape, generator=torch.Generator().manual_seed(0))
    errors = [float((one.held(changed) - changed).abs().mean()) for one in (coarse, fine)]
    assert errors[1] < 1 < errors[0]
    fine.write(changed, tmp_path / "b.jpg")
    assert torch.equal(PictureImage(tmp_path / "b.jpg").values(), fine.held(changed))


def test_the_compression_lets_the_gradient_through(tmp_path: Path) -> None:
    Image.fromarray(pixels("RGB")).save(tmp_path / "a.jpg")
    image = PictureImage(tmp_path / "a.jpg")
    leaf = image.values().double().requires_grad_()
    out = BPDA(image.held)(leaf)
    assert out.dtype == torch.float64
    (gradient,) = torch.autograd.grad((out * 3).sum(), leaf)
    assert torch.equal(gradient, torch.full_like(leaf, 3))


def test_an_rgb_file_loads_alike_through_a_converter(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", "RGB")
    reader = PILReader(converter=lambda image: image.convert("RGB"))
    loaded = LoadImage(reader=reader, ensure_channel_first=True)(tmp_path / "a.png").as_tensor()
    assert torch.equal(PictureImage(tmp_path / "a.png").values(), loaded)


@pytest.mark.parametrize(
    ("mode", "suffix", "message"),
    [
        ("RGBA", ".png", "without alpha or palette; got RGBA"),
        ("LA", ".png", "without alpha or palette; got LA"),
        ("P", ".png", "without alpha or palette; got P"),
        ("1", ".png", "got 1, 1 bits"),
        ("CMYK", ".jpg", "got CMYK"),
    ],
)
def test_kinds_that_are_refused(tmp_path: Path, mode: str, suffix: str, message: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels("RGB")).convert(mode).save(path)
    with pytest.raises(ValueError, match=message):
        PictureImage(path)


def test_other_formats_under_the_suffix_are_refused(tmp_path: Path) -> None:
    Image.fromarray(pixels("L")).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(ValueError, match="got GIF"):
        PictureImage(tmp_path / "a.png")
    frames = [Image.fromarray(pixels("L") + i) for i in range(2)]
    frames[0].save(tmp_path / "b.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="of one picture"):
        PictureImage(tmp_path / "b.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_picture_is_refused(tmp_path: Path, suffix: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(pixels("RGB", (64, 64))).save(stream, "PNG" if suffix == ".png" else "JPEG")
    path = tmp_path / f"a{suffix}"
    for size in (0, 10, len(stream.getvalue()) // 2):
        path.write_bytes(stream.getvalue()[:size])
        with pytest.raises(ValueError, match=r"cannot be read as a picture"):
            PictureImage(path)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", "L")
    Image.fromarray(pixels("L")).save(tmp_path / "a.jpg")
    image = PictureImage(tmp_path / "a.png")
    for path, quality in (("a.png", 90), ("a.jpg", 0), ("a.jpg", 101), ("a.jpg", True)):
        with pytest.raises(ValueError, match="quality: expected None, or 1 to 100"):
            PictureImage(tmp_path / path, quality=quality)
    with pytest.raises(ValueError, match=r"ends with \.png; got b\.jpg"):
        image.write(image.values(), tmp_path / "b.jpg")
    with pytest.raises(ValueError, match="NaN"):
        image.write(image.values() * float("nan"), tmp_path / "b.png")
    with pytest.raises(FileExistsError, match="expected a new one"):
        image.write(image.values(), tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"path: no file .*c\.png"):
        PictureImage(tmp_path / "c.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a.png"]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_file_may_have_copies_without_loss(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (9, 7) if mode == "L" else (9, 7, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0131] = "a camera"
    Image.fromarray(levels).save(tmp_path / "a.jpg", quality=80, exif=exif, icc_profile=b"a profile", dpi=(72, 72))
    picture = PictureImage(tmp_path / "a.jpg", as_png=True)
    assert (picture.suffix, picture.lossless) == (".png", True)
    changed = (picture.values() + 1.0).clamp(0, 255)
    with pytest.raises(ValueError, match=r"expected a name that ends with \.png"):
        picture.write(changed, tmp_path / "b.jpg")
    picture.write(changed, tmp_path / "b.png")
    assert torch.equal(PictureImage(tmp_path / "b.png").values(), changed)
    assert torch.equal(picture.held(changed), changed)
    with Image.open(tmp_path / "b.png") as read:
        assert read.info["icc_profile"] == b"a profile"
        assert read.getexif()[0x0131] == "a camera"
    with pytest.raises(ValueError, match="quality: expected None"):
        PictureImage(tmp_path / "a.jpg", as_png=True, quality=90)
