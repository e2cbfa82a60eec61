"""What the two passes over the windows leave alone, leave out and draw."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import contract
import networks
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from windows import WINDOW, error, make, picture, value

from monai_smia.inferers import GradientSlidingWindowInferer

SETTINGS: dict[str, Any] = {"overlap": 0.25, "mode": "gaussian"}


class Counting(nn.Module):
    """Counts windows, predicted without and with a graph, and remembers the size of each batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen = {False: 0, True: 0}
        self.batches: dict[bool, list[int]] = {False: [], True: []}
        self.train(network.training)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        graph = torch.is_grad_enabled()
        self.seen[graph] += len(image)
        self.batches[graph].append(len(image))
        return self.network(image)


def laid(image: torch.Tensor, **settings: Any) -> list[tuple[slice, ...]]:
    """The windows that MONAI lays over a batch of images."""
    found: list[tuple[slice, ...]] = []

    def note(windows: torch.Tensor, where: list[list[slice]]) -> torch.Tensor:
        found.extend(tuple(index) for index in where)
        return windows.clone()

    SlidingWindowInferer(WINDOW[image.ndim - 2], with_coord=True, **settings)(image.detach(), note)
    return found


def exact(image: torch.Tensor, network: nn.Module, weights: torch.Tensor, **settings: Any) -> torch.Tensor:
    """Autograd through MONAI's inferer, of a sum weighted by voxels."""
    prediction = SlidingWindowInferer(WINDOW[image.ndim - 2], **settings)(image, lambda x: network(x).clone())
    return torch.autograd.grad((prediction.square() * weights).sum(), image)[0]


@pytest.mark.parametrize("rank", [2, 3])
def test_two_forward_passes_and_one_backward_pass(rank: int) -> None:
    network, image = Counting(make("softmax", rank)), picture(rank)
    prediction = GradientSlidingWindowInferer(WINDOW[rank], 3, **SETTINGS)(image, network)
    total = len(laid(image, **SETTINGS))
    assert network.seen == {False: total, True: 0}
    (one,) = torch.autograd.grad(value(prediction), image, retain_graph=True)
    assert network.seen == {False: total, True: total}
    assert max(network.batches[True]) == 3
    (other,) = torch.autograd.grad(value(prediction), image)
    assert torch.equal(one, other)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("rank", [2, 3])
def test_windows_without_an_incoming_gradient_are_not_visited_again(rank: int, batch: int) -> None:
    network, image = Counting(make("softmax", rank)), picture(rank)
    where = torch.zeros_like(image, dtype=torch.bool)
    where[1, :, 6:12, :4] = True
    touched = sum(bool(where[index].any()) for index in laid(image, **SETTINGS))
    assert 1 < touched < len(laid(image, **SETTINGS)) // 2
    prediction = GradientSlidingWindowInferer(WINDOW[rank], batch, **SETTINGS)(image, network)
    (found,) = torch.autograd.grad((prediction.square() * where).sum(), image)
    assert network.seen[True] == touched
    assert network.batches[True] == [*[batch] * (touched // batch), *([touched % batch] if touched % batch else [])]
    assert error(found, exact(image, network, where, **SETTINGS)) < 1e-10


@pytest.mark.parametrize("rank", [2, 3])
def test_a_mask_restricts_the_gradient_and_not_the_prediction(rank: int) -> None:
    image, everywhere = picture(rank), torch.ones(())
    plain = GradientSlidingWindowInferer(WINDOW[rank], 2, **SETTINGS)
    for shape in (image.shape, (1, 1, *image.shape[2:])):
        network, mask = Counting(make("softmax", rank)), torch.zeros(shape, dtype=torch.bool)
        mask[:, :, :3, 2:4] = True
        if len(mask) == 2:
            mask[0] = False
        touched = sum(bool(mask.expand(image.shape)[index].any()) for index in laid(image, **SETTINGS))
        assert 0 < touched < len(laid(image, **SETTINGS)) // 2
        prediction = plain.within(mask)(image, network)
        assert torch.equal(prediction, plain(image, network.network))
        (found,) = torch.autograd.grad((prediction.square() * everywhere).sum(), image)
        assert network.seen[True] == touched
        assert error(found, exact(image, network, everywhere, **SETTINGS) * mask) < 1e-10
        assert not found[~mask.expand(found.shape)].any()
    assert plain.mask is None


def test_a_mask_of_an_image_smaller_than_the_window() -> None:
    image = picture(3, size=(5, 20, 6))
    mask = torch.zeros(1, 1, 5, 20, 6, dtype=torch.bool)
    mask[:, :, 4:, :2] = True
    for padding in ("constant", "reflect", "circular"):
        settings = {"overlap": 0.5, "padding_mode": padding}
        prediction = GradientSlidingWindowInferer(WINDOW[3], **settings).within(mask)(image, make("unet", 3))
        (found,) = torch.autograd.grad(prediction.square().sum(), image)
        assert error(found, exact(image, make("unet", 3), torch.ones(()), **settings) * mask) < 1e-10


@pytest.mark.parametrize("rank", [2, 3])
def test_two_images_share_a_pass(rank: int) -> None:
    image, other = picture(rank), picture(rank).detach().flip(2)
    network = Counting(make("softmax", rank))
    ours = GradientSlidingWindowInferer(WINDOW[rank], 2, **SETTINGS)
    first, second = ours.beside(image, other, network)
    total = len(laid(image, **SETTINGS))
    assert set(network.batches[False][:-1]) == {4}
    assert network.seen == {False: 2 * total, True: 0}
    assert not second.requires_grad
    torch.testing.assert_close(first, ours(image, network.network), rtol=0, atol=1e-12)
    torch.testing.assert_close(second, ours(other, network.network), rtol=0, atol=1e-12)
    (found,) = torch.autograd.grad((first.square() * second).sum(), image)
    assert error(found, exact(image, network, second, **SETTINGS)) < 1e-10
    assert network.seen[True] - total == total  # `exact` has a graph everywhere


def test_networks_that_may_not_mix_images_get_a_pass_each() -> None:
    image, other = picture(2), picture(2).detach().flip(2)
    ours = GradientSlidingWindowInferer(WINDOW[2], 2, **SETTINGS)
    network = Counting(make("unet", 2).train())
    before = copy.deepcopy(network)
    first, second = ours.beside(image, other, network)
    assert max(network.batches[False]) == 2
    expected_second = ours(other, before)
    assert torch.equal(second, expected_second)
    assert torch.equal(first, ours(image, before))
    plain = make("unet", 2)
    for found, at in zip(ours.beside(image, other, plain.forward), (image, other), strict=True):
        assert torch.equal(found, ours(at, plain))
    with pytest.raises(ValueError, match=r"other: expected the shape of inputs"):
        ours.beside(image, other[:1], plain)


class Noisy(nn.Module):
    """Draws in every mode, so that two predictions of one image differ."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.network = make("softmax", rank)
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.network(image + torch.rand_like(image)), 0.5, training=True)


@pytest.mark.parametrize("rank", [2, 3])
def test_the_second_pass_draws_what_the_first_drew(rank: int) -> None:
    image, other, network = picture(rank), picture(rank).detach().flip(2), Noisy(rank)
    ours = GradientSlidingWindowInferer(WINDOW[rank], 2, **SETTINGS)
    torch.manual_seed(3)
    prediction = ours(image, network)
    after = torch.get_rng_state()
    torch.rand(5)
    state = torch.get_rng_state()
    (found,) = torch.autograd.grad(prediction.square().sum(), image)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    expected = exact(image, network, torch.ones(()), sw_batch_size=2, **SETTINGS)
    assert torch.equal(torch.get_rng_state(), after)
    assert error(found, expected) < 1e-10
    # twin and iterate in one batch: the draws of that batch
    torch.manual_seed(3)
    first, _ = ours.beside(image, other, network)
    (found,) = torch.autograd.grad(first.square().sum(), image)

    def both(windows: torch.Tensor) -> torch.Tensor:
        return torch.cat(network(torch.cat(windows.chunk(2, 1))).chunk(2), 1)

    torch.manual_seed(3)
    pair = SlidingWindowInferer(WINDOW[rank], 2, **SETTINGS)(torch.cat((image, other), 1), both)
    (expected,) = torch.autograd.grad(pair[:, :2].square().sum(), image)
    assert torch.equal(first, pair[:, :2])
    assert error(found, expected) < 1e-10


@pytest.mark.parametrize("rank", [2, 3])
def test_whole_volume_training_in_training_mode(rank: int) -> None:
    """Weights, statistics and random state after three steps are those of training through MONAI's inferer."""
    image = picture(rank).detach()
    trained, states = [], []
    for kind, arguments in ((GradientSlidingWindowInferer, {"parameters": True}), (SlidingWindowInferer, {})):
        torch.manual_seed(5)
        network = UNet(rank, 1, 2, (4, 8), (2,), num_res_units=1, norm="batch", dropout=0.3).double().train()
        inferer = kind(WINDOW[rank], 2, **SETTINGS, **arguments)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            inferer(image, network).square().mean().backward()
            optimizer.step()
        trained.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        states.append(torch.get_rng_state())
    for name, tensor in trained[1].items():
        torch.testing.assert_close(trained[0][name], tensor, rtol=1e-8, atol=1e-10)
    assert torch.equal(*states)


def test_modes_between_the_passes_do_not_matter() -> None:
    image, network = picture(2), make("unet", 2)
    expected = exact(image, network, torch.ones(()), **SETTINGS)
    prediction = GradientSlidingWindowInferer(WINDOW[2], **SETTINGS)(image, network)
    network.train()
    with contract.unchanged(network):
        (found,) = torch.autograd.grad(prediction.square().sum(), image)
    assert error(found, expected) < 1e-10


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("at", [2, 9, 16])
def test_an_interrupt_leaves_the_network(at: int, training: bool) -> None:
    image = picture(2, batch=1)
    total = len(laid(image, **SETTINGS))
    assert at < 2 * total
    network = networks.Failing(make("unet", 2).train(training), at=at)
    broken = GradientSlidingWindowInferer(WINDOW[2], parameters=True, **SETTINGS)
    first = copy.deepcopy(network)
    with contract.unchanged(network) if not training else nullcontext():
        state = torch.get_rng_state()
        with pytest.raises(KeyboardInterrupt, match="planted"):
            broken(image, network).sum().backward()
        assert torch.equal(torch.get_rng_state(), state)
    assert all(
        module.training == other.training for module, other in zip(network.modules(), first.modules(), strict=True)
    )
    assert all(parameter.grad is None for parameter in network.parameters())
    network.left = -1
    prediction = broken(image, network.eval())
    assert (
        error(
            torch.autograd.grad(value(prediction), image)[0],
            torch.autograd.grad(value(SlidingWindowInferer(WINDOW[2], **SETTINGS)(image, network)), image)[0],
        )
        < 1e-10
    )


def test_a_network_that_hands_its_input_back_does_not_change_it() -> None:
    image = picture(3)
    kept = image.detach().clone()
    found = GradientSlidingWindowInferer(WINDOW[3], overlap=0.5, mode="gaussian")(image, nn.Identity())
    assert torch.equal(image.detach(), kept)
    torch.testing.assert_close(found, image)
    (gradient,) = torch.autograd.grad(found.sum(), image)
    torch.testing.assert_close(gradient, torch.ones_like(gradient))


def test_the_prediction_keeps_no_graph_of_the_network() -> None:
    prediction = GradientSlidingWindowInferer(WINDOW[2])(picture(2), make("unet", 2))
    names, step = [], prediction.grad_fn
    while step is not None:
        names.append(type(step).__name__)
        step = next((parent for parent, _ in step.next_functions if parent is not None), None)
    assert names == ["WindowsBackward", "AccumulateGrad"]
    with torch.no_grad():
        assert not GradientSlidingWindowInferer(WINDOW[2])(picture(2), make("unet", 2)).requires_grad
    assert not GradientSlidingWindowInferer(WINDOW[2])(picture(2).detach(), make("unet", 2)).requires_grad


def test_what_has_no_gradient_says_so() -> None:
    image, ours = picture(2), GradientSlidingWindowInferer(WINDOW[2], **SETTINGS)
    for network in (lambda x: x.argmax(1, keepdim=True).double(), lambda x: x.detach() * 2):
        with pytest.raises(RuntimeError, match="network: expected a prediction that depends"):
            torch.autograd.grad(ours(image, network).sum(), image)
    (first,) = torch.autograd.grad(ours(image, make("unet", 2)).square().sum(), image, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiat"):
        torch.autograd.grad(first.sum(), image)
    changed = image * 1.0
    prediction = ours(changed, make("unet", 2))
    changed += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(prediction.sum(), image)


def test_what_is_not_supported_is_named() -> None:
    image, network = picture(2), make("unet", 2)
    with pytest.raises(ValueError, match="roi_weight_map: expected a constant"):
        GradientSlidingWindowInferer(WINDOW[2], roi_weight_map=torch.ones(8, 8, requires_grad=True))
    with pytest.raises(TypeError, match="network: parameters=True needs the nn.Module itself.*function"):
        GradientSlidingWindowInferer(WINDOW[2], parameters=True)(image, lambda x: x)
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(wrapped)
    with pytest.raises(TypeError, match="network: parameters=True needs.*DistributedDataParallel"):
        GradientSlidingWindowInferer(WINDOW[2], parameters=True)(image, wrapped)
    with pytest.raises(ValueError, match="scale: an argument of the network that requires a gradient"):
        GradientSlidingWindowInferer(WINDOW[2])(image, network, scale=torch.ones(1, requires_grad=True))
    with pytest.raises(ValueError, match="condition: expected the shape of inputs"):
        GradientSlidingWindowInferer(WINDOW[2])(image, network, condition=image[:1])
    with pytest.raises(ValueError, match=r"inputs: expected a batch, a channel and 3 spatial axes"):
        GradientSlidingWindowInferer((8, 8, 8))(image, network)
    with pytest.raises(ValueError, match=r"mask: expected 4 axes"):
        GradientSlidingWindowInferer(WINDOW[2]).within(torch.ones(8, 8, dtype=torch.bool))(image, network)


def test_progress_counts_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Bar:
        def __init__(self, **arguments: Any) -> None:
            self.arguments, self.count = arguments, 0
            bars.append(self)

        def update(self, step: int) -> None:
            self.count += step

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: Any) -> None:
            return None

    monkeypatch.setattr("monai_smia.inferers.sweep.tqdm", Bar)
    for size in ((23, 18), (7, 19), (8, 8)):
        image = picture(2, size=size)
        prediction = GradientSlidingWindowInferer(WINDOW[2], 3, progress=True, **SETTINGS)(image, make("unet", 2))
        torch.autograd.grad(prediction.sum(), image)
        total = len(laid(image, **SETTINGS))
        assert [(bar.arguments["desc"], bar.arguments["total"], bar.count) for bar in bars] == [
            ("windows", total, total),
            ("gradient", total, total),
        ]
        assert not any(bar.arguments["disable"] for bar in bars)
        bars.clear()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
def test_an_image_of_one_batch_is_predicted_once(rank: int, masked: bool) -> None:
    """Windows that fit one batch keep their graph, unless parameters would get gradients that nobody asked for."""
    image, other = picture(rank, size=WINDOW[rank]), picture(rank, size=WINDOW[rank]).detach().flip(2)
    mask = torch.ones_like(image, dtype=torch.bool)
    if masked:
        mask[:, :, :3] = False
    network = Counting(make("softmax", rank).requires_grad_(False))
    ours = GradientSlidingWindowInferer(WINDOW[rank], 2, **SETTINGS).within(mask if masked else None)
    prediction = ours(image, network)
    (found,) = torch.autograd.grad(value(prediction), image)
    assert network.seen == {False: 0, True: 2}
    plain = SlidingWindowInferer(WINDOW[rank], 2, **SETTINGS)(image, lambda x: network.network(x).clone())
    assert torch.equal(prediction, plain)
    assert error(found, torch.autograd.grad(value(plain), image)[0] * mask) < 1e-10
    first, second = ours.beside(image, other, network)
    assert network.seen == {False: 2, True: 4}
    assert torch.equal(first, prediction)
    assert torch.equal(second, ours(other, network))
    trainable = make("softmax", rank)
    (same,) = torch.autograd.grad(value(ours(image, trainable)), image)
    assert error(same, found) < 1e-10
    value(ours(image, trainable)).backward()
    assert all(parameter.grad is None for parameter in trainable.parameters())
    value(GradientSlidingWindowInferer(WINDOW[rank], 2, parameters=True)(image, trainable)).backward()
    assert all(parameter.grad is not None for parameter in trainable.parameters())


def test_inference_mode() -> None:
    image, network, ours = picture(2).detach(), make("unet", 2), GradientSlidingWindowInferer(WINDOW[2], **SETTINGS)
    with torch.inference_mode():
        found = ours(image.clone(), network)
    assert torch.equal(found, SlidingWindowInferer(WINDOW[2], **SETTINGS)(image, network).detach())
