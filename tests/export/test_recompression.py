# SPDX-License-Identifier: Apache-2.0
"""`Recompression` against Pillow, and what it refuses."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch

from monai_smia.export import Recompression, SoftJPEG

Image = pytest.importorskip("PIL.Image")


def pictures(channels: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((count, channels, 5, 4), generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, (40, 32), mode="bilinear").round()


def by_pillow(picture: torch.Tensor, quality: int) -> torch.Tensor:
    stream = io.BytesIO()
    array = picture.permute(2, 1, 0).byte().numpy()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(stream, "JPEG", quality=quality)
    read = np.array(Image.open(stream), dtype=np.float32)
    return torch.from_numpy(read.reshape(array.shape)).permute(2, 1, 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_is_pillows_and_the_gradient_that_of_the_soft_copy(channels: int) -> None:
    image = pictures(channels).requires_grad_()
    out = Recompression((40, 40))(image, torch.Generator().manual_seed(0))
    for one, expected in zip(out, image, strict=True):
        assert torch.equal(one.detach(), by_pillow(expected.detach(), 40))
    weights = pictures(channels)
    (out * weights).sum().backward()
    leaf = image.detach().clone().requires_grad_()
    soft = torch.stack([SoftJPEG.of_quality(40, channels)(one) for one in leaf])
    assert torch.equal(image.grad, torch.autograd.grad(soft, leaf, weights)[0])  # type: ignore[arg-type]


def test_a_file_is_compressed_before_it_is_compressed_again() -> None:
    image = pictures(3)
    out = Recompression((40, 40), before=lambda one: by_pillow(one, 80))(image, torch.Generator().manual_seed(0))
    for one, clean in zip(out, image, strict=True):
        assert torch.equal(one, by_pillow(by_pillow(clean, 80), 40))


def test_every_picture_draws_its_own_quality() -> None:
    image = pictures(3, 1).repeat(16, 1, 1, 1)
    out = Recompression((30, 90))(image, torch.Generator().manual_seed(0))
    assert len({tuple(one.flatten().tolist()) for one in out}) > 8
    again = Recompression((30, 90))(image, torch.Generator().manual_seed(0))
    assert torch.equal(out, again)


@pytest.mark.parametrize("qualities", [(0, 50), (60, 50), (50, 101), (50,), (1.5, 3), (True, 90)])
def test_qualities_are_whole_numbers_in_their_range(qualities: Any) -> None:
    with pytest.raises(ValueError, match="qualities: expected"):
        Recompression(qualities)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image: expected pictures \(B, 1 or 3, width, height\)"):
        Recompression()(torch.zeros(1, 2, 8, 8), torch.Generator())
