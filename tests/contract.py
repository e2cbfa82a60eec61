"""The contract: what every attack must do, whatever it is and whatever it attacks.

A third party's attack takes part by one more row: a callable that builds it from a loss function and common arguments.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import networks
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.losses import DiceCELoss, DiceLoss
from torch import nn

import monai_smia.attacks
from monai_smia.attacks import Attack, AttackResult

Make = Callable[..., Attack]
BOUNDS = (-1.0, 2.0)
EPS = 0.1


@dataclass(frozen=True)
class Case:
    """One row of the contract: an attack, a rank and a task."""

    make: Make
    rank: int
    task: str
    batch: int = 3
    channels: int = 1

    @property
    def dense(self) -> bool:
        return self.task in ("segmentation", "indices of sigmoids")

    def loss(self) -> nn.Module:
        if self.task == "classification":
            return nn.CrossEntropyLoss()
        if self.task == "indices of sigmoids":
            return DiceLoss(sigmoid=True, to_onehot_y=True)
        return nn.BCEWithLogitsLoss() if self.task == "multilabel" else DiceCELoss(to_onehot_y=True, softmax=True)

    def network(self) -> nn.Sequential:
        return networks.tiny_network(self.rank, self.dense, self.channels)

    def image(self, seed: int = 1) -> torch.Tensor:
        size = (self.batch, self.channels, *(9, 7, 5)[: self.rank])
        return torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 2.9 - 0.95

    def target(self, seed: int = 2) -> torch.Tensor:
        source = torch.Generator().manual_seed(seed)
        if self.task == "classification":
            return torch.randint(networks.CLASSES, (self.batch,), generator=source)
        if self.task == "multilabel":
            return torch.randint(2, (self.batch, networks.CLASSES), generator=source).float()
        return torch.randint(networks.CLASSES, (self.batch, 1, *(9, 7, 5)[: self.rank]), generator=source)

    def attack(self, **arguments: Any) -> Attack:
        return self.make(self.loss(), **{"eps": EPS, "bounds": BOUNDS, **arguments})

    def run(self, network: Any = None, attack: Attack | None = None, **arguments: Any) -> AttackResult:
        network = self.network() if network is None else network
        image = arguments.pop("image", self.image())
        target = arguments.pop("target", self.target())
        return (attack or self.attack())(network, image, target, **arguments)


def check_keeps_type(case: Case) -> None:
    """Type, shape, dtype, device and metadata of the image; one value per sample of everything else."""
    image = MetaTensor(case.image(), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])), meta={"patient": "phantom"})
    result = case.run(image=image, target=MetaTensor(case.target()))
    assert type(result.adversarial) is MetaTensor
    assert result.adversarial.meta["patient"] == "phantom"
    assert torch.equal(result.adversarial.affine, image.affine)
    plain = case.run()
    assert type(plain.adversarial) is torch.Tensor
    for adversarial in (result.adversarial, plain.adversarial):
        assert (adversarial.shape, adversarial.dtype, adversarial.device) == (image.shape, image.dtype, image.device)
    assert torch.equal(result.adversarial.as_tensor(), plain.adversarial)
    double = case.run(network=case.network().double(), image=case.image().double())
    assert double.adversarial.dtype == torch.float64
    for name in ("clean_loss", "loss", "success", "clean_success", "forward_passes", "backward_passes"):
        assert getattr(plain, name).shape == (case.batch,)


def check_budget_and_bounds(case: Case) -> None:
    """Inside the ball in every norm, per-channel and per-sample radii included, and inside the bounds."""
    image = case.image()
    for norm, eps in (("inf", EPS), (2, 0.5), (1, 2.0)):
        delta = (case.run(attack=case.attack(eps=eps, norm=norm)).adversarial - image).flatten(1)
        size = torch.linalg.vector_norm(delta.double(), ord=float(norm), dim=1)
        assert bool((size <= eps * (1 + 1e-5) + 1e-6).all()), (norm, size)
        assert bool((size > 0).all())
    radii = torch.linspace(0.05, 0.15, case.batch)[:, None]
    result = case.run(attack=case.attack(eps=radii))
    size = (result.adversarial - image).flatten(1).abs().amax(1)
    assert bool((size <= radii[:, 0] + 1e-6).all())
    assert bool((result.adversarial >= BOUNDS[0]).all() and (result.adversarial <= BOUNDS[1]).all())


def check_mask(case: Case) -> None:
    """Not one bit changes outside the mask; something does inside, also where the norm couples voxels."""
    mask = torch.zeros(case.batch, 1, *case.image().shape[2:], dtype=torch.bool)
    mask[:, :, 2:6, 1:4] = True
    for norm, eps in (("inf", EPS), (2, 0.5)):
        network, image, seen = case.network().eval(), case.image(), []

        def watched(x: torch.Tensor) -> Any:
            outside = (x.detach() != image) & ~mask  # noqa: B023
            seen.append(bool(outside.any()))  # noqa: B023
            return network(x)  # noqa: B023

        attack = case.attack(eps=eps, norm=norm)
        delta = case.run(watched, attack, mask=mask).adversarial - image
        if not hasattr(attack, "resize_rate") and getattr(attack, "transform", None) is None:  # these move everything
            assert not any(seen)
        assert bool((delta[~mask.expand_as(delta)] == 0).all())
        assert bool((delta.flatten(1) != 0).any(1).all())


def check_samples_are_independent(case: Case) -> None:
    """Other batch mates, same outcome; for an attack without randomness also alone."""
    network, image, target = case.network().double(), case.image().double(), case.target()
    together = case.run(network, image=image, target=target)
    mates, labels = case.image(seed=11).double(), case.target(seed=12)
    mates[1], labels[1] = image[1], target[1]
    among_others = case.run(network, image=mates, target=labels)
    torch.testing.assert_close(among_others.adversarial[1], together.adversarial[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(among_others.loss[1], together.loss[1], rtol=1e-10, atol=1e-12)
    if (
        not case.attack().is_random
        and not hasattr(case.attack(), "neighbours")
        and not hasattr(case.attack(), "resize_rate")
    ):
        alone = case.run(network, image=image[1:2], target=target[1:2])
        torch.testing.assert_close(alone.adversarial[0], together.adversarial[1], rtol=0, atol=1e-12)


def check_randomness(case: Case) -> None:
    """Same seed, same bits; a second call equals the first; no global generator moves."""
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    attack, network = case.attack(), case.network()
    runs = [case.run(network, attack, generator=torch.Generator().manual_seed(7)).adversarial for _ in range(2)]
    assert torch.equal(*runs)
    defaults = [case.run(network, attack).adversarial for _ in range(2)]
    assert torch.equal(*defaults)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    if attack.is_random:
        other = case.run(network, attack, generator=torch.Generator().manual_seed(8)).adversarial
        assert not torch.equal(runs[0], other)


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Modes, flags, gradients and state are afterwards what they were, to the bit."""
    modes = [module.training for module in network.modules()]
    flags = [parameter.requires_grad for parameter in network.parameters()]
    gradients = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    state = copy.deepcopy(network.state_dict())
    yield
    assert modes == [module.training for module in network.modules()]
    assert flags == [parameter.requires_grad for parameter in network.parameters()]
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


def check_leaves_the_network(case: Case) -> None:
    """Modes, flags, buffers and `.grad` as found, also after an interrupt in any pass; the input too."""
    network, image = case.network(), case.image()
    network[0].weight.grad = torch.ones_like(network[0].weight)
    network[-1].bias.requires_grad_(False)
    kept = image.clone()
    with unchanged(network):
        passes = int(case.run(network, image=image).forward_passes[0])
    assert torch.equal(image, kept)
    for at in {1, passes // 2 + 1, passes}:
        broken = networks.Failing(network, at)
        with unchanged(broken):
            try:
                case.run(broken, image=image)
            except KeyboardInterrupt:
                continue
        raise AssertionError("the interrupt was swallowed")


def check_verdict_can_be_recomputed(case: Case) -> None:
    """`loss`, `clean_loss` and `success` are what the network says of `adversarial` in eval mode."""
    network, image, target = case.network(), case.image(), case.target()
    result = case.run(network)
    network.eval()
    loss = case.loss()
    with torch.no_grad():
        for x, expected in ((image, result.clean_loss), (result.adversarial, result.loss)):
            prediction = network(x)
            values = [loss(prediction[i : i + 1], target[i : i + 1]) for i in range(case.batch)]
            torch.testing.assert_close(expected, torch.stack(values), rtol=1e-5, atol=1e-6)
        prediction = network(result.adversarial)
    if case.task == "classification":
        expected_success = prediction.argmax(1) != target
    elif case.task == "multilabel":
        expected_success = ((prediction > 0).float() != target).any(1)
    elif case.task == "indices of sigmoids":
        found, dice = prediction > 0, []
        for p, y in zip(found, target[:, 0], strict=True):
            sums = [(int(p[k].sum()) + int((y == k).sum()), int((p[k] & (y == k)).sum())) for k in range(len(p))]
            dice.append(torch.tensor([2 * both / size for size, both in sums if size]).mean())
        expected_success = torch.stack(dice) < 0.5
    else:
        hard, dice = prediction.argmax(1, keepdim=True), []
        for p, y in zip(hard, target, strict=True):
            overlaps = [2 * ((p == k) & (y == k)).sum() / ((p == k).sum() + (y == k).sum()) for k in (1, 2)]
            dice.append(torch.stack(overlaps).mean())
        expected_success = torch.stack(dice) < 0.5
    assert torch.equal(result.success, expected_success)


def check_pass_counts(case: Case) -> None:
    """The passes reported are those that a counting network saw."""
    network = networks.Counting(case.network())
    result = case.run(network)
    assert result.forward_passes.tolist() == [network.forwards] * case.batch
    assert result.backward_passes.tolist() == [network.backwards] * case.batch


def check_zero_gradient(case: Case) -> None:
    """A network without slope: finite everything, and no sample moves but by its own random start."""
    network = case.network()
    nn.init.zeros_(network[0].weight)
    for norm in ("inf", 2, 1):
        result = case.run(network, case.attack(norm=norm))
        assert bool(result.adversarial.isfinite().all() and result.loss.isfinite().all())


def check_zero_budget(case: Case) -> None:
    """`eps=0` returns the image, to the bit."""
    for norm in ("inf", 2, 1):
        assert torch.equal(case.run(attack=case.attack(eps=0.0, norm=norm)).adversarial, case.image())


def check_grad_modes(case: Case) -> None:
    """The same bits under `no_grad` and `inference_mode`; autocast works; no graph is kept."""
    network = case.network()
    expected = case.run(network)
    with torch.no_grad():
        without = case.run(network)
    with torch.inference_mode():
        inference = case.run(network, image=case.image() + 0, target=case.target() + 0)
    for result in (expected, without, inference):
        assert torch.equal(result.adversarial, expected.adversarial)
        for value in (value for value in vars(result).values() if isinstance(value, torch.Tensor)):
            assert not value.requires_grad
            assert value.grad_fn is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = case.run(network)
    amp = case.run(network, case.attack(amp=torch.bfloat16))
    for result in (cast, amp):
        assert result.adversarial.dtype == torch.float32
        assert float((result.adversarial - case.image()).abs().max()) <= EPS * (1 + 1e-5)
        torch.testing.assert_close(result.clean_loss, expected.clean_loss, rtol=0.05, atol=0.05)


def check_configuration(case: Case) -> None:
    """Built from JSON by import path; `repr` rebuilds it; arguments cannot be changed afterwards."""
    attack = case.attack()
    names = {**vars(monai_smia.attacks), "torch": torch, "CrossEntropyLoss": nn.CrossEntropyLoss}
    if case.task == "classification":
        again = eval(repr(attack), names)
        assert type(again) is type(attack)
        assert repr(again) == repr(attack)
        assert torch.equal(case.run(attack=again).adversarial, case.run(attack=attack).adversarial)
    config = {
        "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
        "attack": {
            "_target_": f"monai_smia.attacks.{type(attack).__name__}",
            "loss_function": "@loss",
            "eps": EPS,
            "norm": "inf",
            "bounds": list(BOUNDS),
        },
    }
    built = ConfigParser(json.loads(json.dumps(config))).get_parsed_content("attack")
    assert type(built) is type(attack)
    assert (built.eps, built.bounds, built.norm) == (EPS, BOUNDS, float("inf"))
    try:
        attack.eps = 1.0  # type: ignore[misc]
    except AttributeError:
        return
    raise AssertionError("an argument was changed after construction")


def check_bad_sample(case: Case) -> None:
    """A sample whose gradient is NaN stands where it started and is reported; its batch mates do not notice."""
    network, image = case.network(), case.image()

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            gradient = gradient.clone()
            gradient[0] = torch.nan
            return gradient

    healthy, poisoned = case.run(network, image=image), case.run(lambda x: network.eval()(Poison.apply(x)), image=image)
    assert bool(poisoned.adversarial.isfinite().all())
    assert torch.equal(poisoned.adversarial[1:], healthy.adversarial[1:])
    assert healthy.nonfinite_gradients.tolist() == [0] * case.batch
    backward = int(poisoned.backward_passes[0])
    assert poisoned.nonfinite_gradients[1:].tolist() == [0] * (case.batch - 1)
    assert (int(poisoned.nonfinite_gradients[0]) > 0) == (backward > 0)
    if not case.attack().is_random:
        assert torch.equal(poisoned.adversarial[0], image[0])


CHECKS = {name.removeprefix("check_"): value for name, value in globals().items() if name.startswith("check_")}
