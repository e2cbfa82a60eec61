# SPDX-License-Identifier: Apache-2.0
"""`SoftJPEG` against Pillow's codec, and what its gradient is worth there."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monai_smia.attacks import BIM, BPDA
from monai_smia.export import PictureImage, Recompression, SoftJPEG
from monai_smia.export.jpeg_tables import JpegTables
from monai_smia.export.recompression import as_jpeg
from monai_smia.export.soft_jpeg import SPREAD, hard_rounding, soft_rounding

Image = pytest.importorskip("PIL.Image")

# ITU-T T.81, table K.1, first two rows: the luma steps of libjpeg at quality 50
LUMA_50 = ((16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55))


def waves(channels: int, width: int, height: int) -> torch.Tensor:
    """A smooth picture, ``(C, width, height)``, whole levels."""
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="ij")
    lengths = ((17, 12), (23, 15), (11, 30))[:channels]
    return torch.stack([128 + 45 * torch.sin(x / a) + 35 * torch.cos(y / b) for a, b in lengths]).round().double()


def bare(steps: Sequence[int]) -> bytes:
    """The segments of a grey JPEG file with a table of 16 bits, in the order of the file; no picture."""
    table = struct.pack(">BBHB64H", 0xFF, 0xDB, 131, 0x10, *steps)
    frame = struct.pack(">BBHBHHB3B", 0xFF, 0xC1, 11, 8, 8, 8, 1, 1, 0x11, 0)
    return b"\xff\xd8" + table + frame + b"\xff\xda"


def encoded(pixels: torch.Tensor, **options: Any) -> bytes:
    array = pixels.permute(2, 1, 0).byte().numpy()
    stream = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(stream, "JPEG", **options)
    return stream.getvalue()


def decoded(content: bytes) -> torch.Tensor:
    array = np.array(Image.open(io.BytesIO(content)), dtype=np.float64)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 1, 0)


def test_the_tables_are_in_the_order_of_the_standard() -> None:
    pixels = waves(3, 24, 24)
    for name, factors in (("4:4:4", (1, 1)), ("4:2:2", (1, 2)), ("4:2:0", (2, 2))):
        tables = JpegTables.of_file(encoded(pixels, quality=50, subsampling=name))
        assert tables.factors == factors
        assert tables.steps[0][:2] == LUMA_50
        assert tables.steps[1] == tables.steps[2] != tables.steps[0]
    grey = JpegTables.of_file(encoded(pixels[:1], quality=50, progressive=True))
    assert grey.steps == tables.steps[:1]
    own = [list(range(1, 65)), list(range(255, 191, -1))]
    written = JpegTables.of_file(encoded(pixels, qtables=own))
    with Image.open(io.BytesIO(encoded(pixels, qtables=own))) as image:
        assert [sum(table, ()) for table in written.steps[:2]] == [tuple(image.quantization[i]) for i in range(2)]
    (wide,) = JpegTables.of_file(bare(range(1000, 1064))).steps
    assert [row[:3] for row in wide[:3]] == [(1000, 1001, 1005), (1002, 1004, 1007), (1003, 1008, 1012)]


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [(48, 64), (41, 53), (7, 9)])
@pytest.mark.parametrize("channels", [1, 3])
def test_with_exact_rounding_it_is_pillows_codec(channels: int, size: tuple[int, int], sampling: str) -> None:
    """But for the whole levels that libjpeg rounds to on its way, which tip a few coefficients over."""
    pixels = waves(channels, *size)
    for quality in (50, 75, 95):
        content = encoded(pixels, quality=quality, subsampling=sampling)
        soft = SoftJPEG(JpegTables.of_file(content), hard_rounding)
        difference = (soft(pixels).clamp(0, 255) - decoded(content)).abs()
        assert float(difference.mean()) < (0.35 if channels == 1 else 0.9)
        assert float((difference > 2).double().mean()) < (0.01 if channels == 1 else 0.1)


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_is_the_derivative(channels: int, sampling: str) -> None:
    pixels = waves(channels, 5, 9) + 0.3 * torch.rand((channels, 5, 9), generator=torch.Generator().manual_seed(0))
    soft = SoftJPEG.of_file(encoded(pixels, quality=80, subsampling=sampling))
    assert torch.autograd.gradcheck(soft, (pixels.requires_grad_(),))


def slope(offset: float, step: float) -> float:
    y = torch.tensor([3.0 + offset], dtype=torch.float64, requires_grad=True)
    return float(torch.autograd.grad(soft_rounding(y, torch.tensor([step], dtype=torch.float64)).sum(), y)[0])


def test_the_soft_rounding_is_flat_in_the_middle_of_wide_cells_and_steep_at_their_edges() -> None:
    assert slope(0.0, 40.0) < 1e-9
    assert slope(0.499, 40.0) > 5
    assert slope(0.499, 40.0) == pytest.approx(slope(-0.499, 40.0))
    for offset in (0.0, 0.25, 0.5):
        assert slope(offset, 2.0) == pytest.approx(1, abs=0.02)
    for step in (2.0, 10.0, 40.0):  # over a cell it goes up by one
        assert np.mean([slope((i + 0.5) / 400 - 0.5, step) for i in range(400)]) == pytest.approx(1, abs=0.01)
    y = torch.linspace(-2, 2, 81, dtype=torch.float64)
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in (5.0, 20.0):  # the mean of what rounding gives with noise
        mean = torch.stack([(one + SPREAD / step * noise).round().mean() for one in y])
        assert torch.allclose(soft_rounding(y, torch.tensor(step)), mean, atol=0.01)


def test_nothing_gets_through_in_the_middle_of_all_cells_and_much_at_the_edges() -> None:
    flat = SoftJPEG(JpegTables((((80,) * 8,) * 8,), (1, 1)))
    middle = torch.full((1, 16, 16), 128.0, dtype=torch.float64)
    cotangent = torch.randn(middle.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.autograd.functional.jacobian(SoftJPEG(flat.tables, lambda y, _: y), middle).reshape(256, 256)
    assert torch.allclose(basis, torch.eye(256, dtype=torch.float64), atol=1e-12)
    gradients = []
    for start in (middle, middle + 80 * 0.5 / 8):  # the mean of each block at the edge of its cell
        leaf = start.clone().requires_grad_()
        gradients.append(torch.autograd.grad(flat(leaf), leaf, cotangent)[0])
    assert float(gradients[0].abs().max()) < 1e-12
    means = cotangent.reshape(2, 8, 2, 8).mean((1, 3)) * slope(0.5, 80.0)
    expected = means.repeat_interleave(8, 0).repeat_interleave(8, 1)[None]
    assert torch.allclose(gradients[1], expected)


def test_a_picture_gives_that_of_its_own_copies(tmp_path: Path) -> None:
    pixels = waves(3, 40, 24)
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(pixels, quality=60, subsampling="4:2:2"))
    for picture, reference in (
        (PictureImage(path), encoded(pixels, quality=60, subsampling="4:2:2")),
        (PictureImage(path, quality=90), encoded(pixels, quality=90, subsampling="4:2:2")),
    ):
        approximation = picture.approximation()
        assert approximation is not None
        assert approximation.tables == JpegTables.of_file(reference)
    assert PictureImage(path, as_png=True).approximation() is None


def test_recompression_has_the_gradient_of_the_quality_that_was_drawn() -> None:
    pixels = torch.stack([waves(3, 24, 17), waves(3, 24, 17).flip(1)]).requires_grad_()
    cotangent = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = Recompression((40, 40))(pixels, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(out, pixels, cotangent)
    soft = SoftJPEG.of_quality(40, 3)
    (expected,) = torch.autograd.grad(torch.stack([soft(one) for one in pixels]), pixels, cotangent)
    assert torch.equal(out[0].detach(), as_jpeg(pixels[0].detach(), 40))
    assert torch.equal(gradient, expected)
    assert soft.tables == JpegTables.of_file(encoded(pixels[0].detach(), quality=40))


class Held(torch.nn.Module):
    """A fixed network behind a codec."""

    def __init__(self, codec: Any, approximation: Any) -> None:
        super().__init__()
        self.quantise = BPDA(codec, approximation)
        torch.manual_seed(5)
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 5, stride=2), torch.nn.Tanh(), torch.nn.Conv2d(8, 4, 5, stride=2), torch.nn.Tanh()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(self.quantise(x[0])[None] / 64 - 2).mean((2, 3)) * 20


@pytest.mark.parametrize("quality", [50, 75])
def test_an_attack_through_it_keeps_more_of_its_damage_than_through_the_identity(quality: int) -> None:
    gains = []
    clean = as_jpeg(waves(3, 64, 48).float(), quality)[None]
    for label in range(4):
        damage = []
        for approximation in (None, SoftJPEG.of_quality(quality, 3)):
            with torch.random.fork_rng(devices=[]):
                network = Held(lambda x: as_jpeg(x, quality), approximation).eval()
            attack = BIM(torch.nn.CrossEntropyLoss(), eps=3.0, steps=10, bounds=(0.0, 255.0))
            result = attack(network, clean, torch.tensor([label]))
            damage.append(float(result.loss - result.clean_loss))
        gains.append(damage)
    identity, soft = np.mean(gains, 0)
    assert soft > 1.2 * identity


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8), (1, 3, 8, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"pixels: expected \(3, width, height\)"):
        SoftJPEG.of_quality(75, 3)(torch.zeros(shape))


def test_other_kinds_are_refused() -> None:
    stream = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(stream, "JPEG")
    with pytest.raises(ValueError, match="content: expected grey, 4:4:4, 4:2:2 or 4:2:0; got sampling factors"):
        JpegTables.of_file(stream.getvalue())
