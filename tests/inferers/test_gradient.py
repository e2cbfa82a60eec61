"""`GradientSlidingWindowInferer` against autograd through MONAI's own inferer."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer, SlidingWindowInferer
from torch import nn
from windows import WINDOW, Softmax, Unaliased, error, make, picture, tensors, value

from monai_smia.inferers import GradientSliceInferer, GradientSlidingWindowInferer

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def check(ours: Any, plain: Any, network: nn.Module, image: torch.Tensor, parameters: bool = False) -> None:
    """The output has MONAI's bits, the gradients are autograd's."""
    expected, found = plain(image, Unaliased(network)), ours(image, network)
    assert type(found) is type(expected)
    assert list(found) == list(expected) if isinstance(expected, dict) else True
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        assert torch.equal(one, other)
    wanted = [image, *(network.parameters() if parameters else ())]
    exact = torch.autograd.grad(value(expected), wanted)
    for one, other in zip(torch.autograd.grad(value(found), wanted), exact, strict=True):
        assert error(one, other) < TOLERANCE[image.dtype]


OVERLAPS: dict[str, Any] = {"0": 0, "0.25": 0.25, "0.5": 0.5, "axes": {2: (0.5, 0.25), 3: (0.5, 0.0, 0.25)}}


@pytest.mark.parametrize(
    ("rank", "overlap", "mode", "kind", "batch", "dtype"),
    [  # every pair of rank, overlap, blending, network, windows at once and type occurs where it takes another way
        (2, "0", "constant", "unet", 1, torch.float32),
        (3, "0", "gaussian", "strided", 4, torch.float64),
        (2, "0.25", "gaussian", "softmax", 4, torch.float32),
        (3, "0.25", "constant", "unet", 1, torch.float64),
        (2, "axes", "gaussian", "unet", 4, torch.float64),
        (3, "axes", "constant", "softmax", 4, torch.float32),
        (2, "0.5", "constant", "strided", 1, torch.float64),
        (3, "0.5", "gaussian", "softmax", 1, torch.float32),
    ],
)
def test_gradient_is_that_of_autograd(
    rank: int, overlap: str, mode: str, kind: str, batch: int, dtype: torch.dtype
) -> None:
    part = OVERLAPS[overlap]
    settings = {"sw_batch_size": batch, "overlap": part[rank] if isinstance(part, dict) else part, "mode": mode}
    network, image = make(kind, rank, dtype), picture(rank, dtype)
    plain = SlidingWindowInferer(WINDOW[rank], **settings)
    check(GradientSlidingWindowInferer(WINDOW[rank], **settings), plain, network, image)
    ours = GradientSlidingWindowInferer(WINDOW[rank], parameters=True, **settings)
    check(ours, plain, network, image, parameters=True)


@pytest.mark.parametrize("padding", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("rank", [2, 3])
def test_images_smaller_than_the_window(rank: int, padding: str) -> None:
    sizes = {2: [(7, 5), (7, 19)], 3: [(7, 5, 6), (7, 19, 6)]}
    for size, kind in itertools.product(sizes[rank], ("softmax", "strided")):
        settings = {"sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian", "padding_mode": padding}
        settings["cval"] = 0.3 if padding == "constant" else 0.0
        ours, plain = (k(WINDOW[rank], **settings) for k in (GradientSlidingWindowInferer, SlidingWindowInferer))
        check(ours, plain, make(kind, rank), picture(rank, size=size))


@pytest.mark.parametrize("kind", ["tuple", "dict"])
@pytest.mark.parametrize("rank", [2, 3])
def test_several_outputs_of_several_sizes(rank: int, kind: str) -> None:
    for mode in ("constant", "gaussian"):
        settings = {"sw_batch_size": 2, "overlap": 0.5, "mode": mode}
        ours, plain = (k(WINDOW[rank], **settings) for k in (GradientSlidingWindowInferer, SlidingWindowInferer))
        size = {2: (24, 20), 3: (20, 16, 12)}[rank]  # so that every output has a whole number of voxels
        check(ours, plain, make(kind, rank), picture(rank, size=size))
        found = ours(picture(rank, size=size), make(kind, rank))
        first = tensors(found)[0]
        image = picture(rank, size=size)
        (one,) = torch.autograd.grad(tensors(ours(image, make(kind, rank)))[0].square().sum(), image)
        (other,) = torch.autograd.grad(tensors(plain(image, Unaliased(make(kind, rank))))[0].square().sum(), image)
        assert first.requires_grad
        assert error(one, other) < 1e-10


BUFFERED: list[dict[str, Any]] = [
    {"buffer_steps": 1},
    {"buffer_steps": 2, "buffer_dim": 0},
    {"buffer_steps": 1, "sw_batch_size": 3},
]
OTHERS: list[dict[str, Any]] = [
    {"roi_size": (8, -1, None)},
    {"roi_size": 8},
    {"sw_device": "cpu", "device": "cpu"},
    {"cache_roi_weight_map": True},
    {"roi_weight_map": torch.linspace(0.1, 1, 512, dtype=torch.float64).reshape(8, 8, 8)},
    {"sigma_scale": (0.3, 0.1, 0.2)},
    {"cpu_thresh": 10},
    {"progress": True},
]


@pytest.mark.parametrize("settings", [*BUFFERED, *OTHERS], ids=str)
def test_every_other_setting(settings: dict[str, Any]) -> None:
    settings = {"roi_size": WINDOW[3], "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian", **settings}
    ours = GradientSlidingWindowInferer(**settings)
    weights = settings.pop("roi_weight_map", None)
    plain = SlidingWindowInferer(**settings)
    plain.roi_weight_map = plain.roi_weight_map if weights is None else weights
    check(ours, plain, make("unet", 3), picture(3))


def test_slices() -> None:
    network, image = make("softmax", 2), picture(3)
    for axis, size in itertools.product(range(3), ((8, 8), (16, 8))):
        settings = {"roi_size": size, "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}
        check(GradientSliceInferer(axis, **settings), SliceInferer(axis, **settings), network, image)


class Conditioned(nn.Module):
    """Uses everything that MONAI hands a network."""

    def forward(self, image: torch.Tensor, *args: Any, condition: torch.Tensor | None = None, **kwargs: Any) -> Any:
        places = args[0] if args and isinstance(args[0], list) else [[slice(1)] * image.ndim] * len(image)
        start = torch.tensor([[part.start or 0 for part in index[2:]] for index in places]).to(image).sum(1)
        shift = start.reshape(-1, *[1] * (image.ndim - 1)) / 10 + kwargs.get("shift", 0.0)
        return (image + shift).square() * (1 if condition is None else condition + 0.5)


@pytest.mark.parametrize("rank", [2, 3])
def test_conditions_coordinates_and_arguments(rank: int) -> None:
    settings = {"roi_size": WINDOW[rank], "sw_batch_size": 2, "overlap": 0.5, "with_coord": True}
    size = {2: (19, 5), 3: (19, 5, 11)}[rank]
    image, condition = picture(rank, size=size), picture(rank, size=size).detach().flip(2)
    ours, plain = GradientSlidingWindowInferer(**settings), SlidingWindowInferer(**settings)
    network = Conditioned()
    found = ours(image, network, condition=condition, shift=0.25)
    expected = plain(image, Unaliased(network), condition=condition, shift=0.25)
    assert torch.equal(found, expected)
    one, other = (torch.autograd.grad(value(x), image)[0] for x in (found, expected))
    assert error(one, other) < 1e-10


def test_process_fn_weighs_each_window() -> None:
    from monai.inferers import sliding_window_inference

    def process(outputs: Any, windows: torch.Tensor, weight: torch.Tensor) -> Any:
        return tuple(output * 2 + windows for output in outputs), weight + 0.5

    network, image = make("softmax", 3), picture(3)
    arguments = {"roi_size": WINDOW[3], "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
    expected = sliding_window_inference(image, predictor=network, process_fn=process, **arguments)
    found = GradientSlidingWindowInferer(process_fn=process, **arguments)(image, network)
    assert torch.equal(found, expected)
    one, other = (torch.autograd.grad(value(x), image)[0] for x in (found, expected))
    assert error(one, other) < 1e-10


def test_a_weight_that_depends_on_the_image_is_refused() -> None:
    def process(outputs: Any, windows: torch.Tensor, weight: torch.Tensor) -> Any:
        return outputs, weight * windows.mean()

    image = picture(3, batch=1)
    found = GradientSlidingWindowInferer(WINDOW[3], process_fn=process)(image, make("unet", 3))
    with pytest.raises(ValueError, match="process_fn: its weight depends on the image"):
        torch.autograd.grad(found.sum(), image)


def test_meta_tensors_keep_their_metadata() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    image = MetaTensor(picture(3, torch.float32).detach(), affine=affine).requires_grad_()
    settings = {"roi_size": WINDOW[3], "overlap": 0.5}
    found = GradientSlidingWindowInferer(**settings)(image, make("unet", 3, torch.float32))
    expected = SlidingWindowInferer(**settings)(image, make("unet", 3, torch.float32))
    assert isinstance(found, MetaTensor)
    assert torch.equal(found.affine, expected.affine)
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    one, other = (torch.autograd.grad(value(x.as_tensor()), image)[0] for x in (found, expected))
    assert error(one.as_tensor(), other.as_tensor()) < 1e-5


@pytest.mark.parametrize("rank", [2, 3])
def test_autocast_of_the_forward_pass_is_that_of_the_backward_pass(rank: int) -> None:
    seen = []

    class Watched(Softmax):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return self.network(image)

    image, network = picture(rank, torch.float32), make("unet", rank, torch.float32)
    settings = {"roi_size": WINDOW[rank], "overlap": 0.5, "sw_batch_size": 2}
    ours, plain = GradientSlidingWindowInferer(**settings), SlidingWindowInferer(**settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = ours(image, Watched(network)), plain(image, network)
    assert torch.equal(found, expected)
    (one,) = torch.autograd.grad(value(found), image)
    (other,) = torch.autograd.grad(value(expected), image)
    assert all(seen)
    assert len(seen) > 2
    assert error(one, other) < 0.02  # sums of bfloat16 numbers in another order
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (again,) = torch.autograd.grad(value(ours(image, Watched(network))), image)
    assert torch.equal(again, one)
    plain_precision = ours(image, network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inside,) = torch.autograd.grad(value(plain_precision), image)
    assert torch.equal(inside, torch.autograd.grad(value(ours(image, network)), image)[0])
