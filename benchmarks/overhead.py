# SPDX-License-Identifier: Apache-2.0
"""What an attack costs beyond the network's own passes, beside other libraries; and what lower precision saves."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.nets import UNet, resnet18
from torch import nn
from torch.nn import functional as F

from benchmarks._measure import hardware, installed, race, spread, table
from monai_smia.attacks import PGD, SMIA, AttackResult, GradientAttack

SEED = 0
EPS, STEP, STEPS = 8 / 255, 2 / 255, 10
LOSS = nn.CrossEntropyLoss()
PLAIN: dict[str, Any] = {"eps": EPS, "steps": STEPS, "step_size": STEP, "bounds": (0.0, 1.0), "random_start": False}
OURS: dict[str, GradientAttack] = {"PGD": PGD(LOSS, **PLAIN), "SMIA": SMIA(LOSS, **PLAIN)}

Run = Callable[[], torch.Tensor]
"""One attack on the case's batch; returns the adversarial image."""


@dataclass(frozen=True)
class Case:
    """A network and a batch.

    Attributes:
        title: what is attacked.
        network: evaluation mode, its parameters trainable, as a user's network is.
        image: ``BCHW[D]`` in [0, 1].
        target: what `monai_smia` is given: ``(B,)``, or ``(B, 1, H, W, D)`` as MONAI's loaders give it.
        classes: number of classes.
    """

    title: str
    network: nn.Module
    image: torch.Tensor
    target: torch.Tensor
    classes: int

    @property
    def index(self) -> torch.Tensor:
        """The target as torch's cross-entropy wants it, ``(B,)`` or ``(B, H, W, D)``."""
        return self.target if self.target.ndim == 1 else self.target[:, 0].long()

    @torch.no_grad()
    def loss(self, image: torch.Tensor) -> float:
        return float(F.cross_entropy(self.network(image), self.index))


def classification(small: bool) -> Case:
    batch, size = (4, 64) if small else (8, 224)
    torch.manual_seed(SEED)
    network = resnet18(spatial_dims=2, n_input_channels=3, num_classes=10, conv1_t_stride=2).eval()
    image = torch.rand(batch, 3, size, size)
    return Case(f"2-D: ResNet-18, {_shape(image)}", network, image, torch.randint(10, (batch,)), 10)


def segmentation(small: bool) -> Case:
    size = 32 if small else 96
    torch.manual_seed(SEED)
    network = UNet(3, 1, 3, (16, 32, 64, 128), (2, 2, 2), num_res_units=2).eval()
    image = torch.rand(1, 1, size, size, size)
    blocks = torch.randint(3, (1, 1, 8, 8, 8)).float()
    target = F.interpolate(blocks, size=image.shape[2:])
    return Case(f"3-D: UNet, {_shape(image)}, index labels {_shape(target)}", network, image, target, 3)


CASES = {"2d": classification, "3d": segmentation}


class Counting(nn.Module):
    """Counts what an attack asks of a network: forward passes, and gradients that come back to the image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.forwards = 0
        self.backwards = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.forwards += 1
        if image.requires_grad:
            image.register_hook(self._count)
        return self.network(image)

    def _count(self, gradient: torch.Tensor) -> None:
        self.backwards += 1


def torchattacks_pgd(network: nn.Module, case: Case) -> Run:
    import torchattacks

    attack = torchattacks.PGD(network, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)
    return lambda: attack(case.image, case.index)


def foolbox_pgd(network: nn.Module, case: Case) -> Run:
    import foolbox

    model = foolbox.PyTorchModel(network, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False)
    return lambda: attack(model, case.image, case.index, epsilons=EPS)[0]


def art_pgd(network: nn.Module, case: Case) -> Run:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    model = PyTorchClassifier(
        network,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(case.image.shape[1:]),
        nb_classes=case.classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = ProjectedGradientDescent(model, eps=EPS, eps_step=STEP, max_iter=STEPS, verbose=False)
    return lambda: torch.from_numpy(attack.generate(case.image.numpy(), case.index.numpy()))


PEERS: dict[str, tuple[str, Callable[[nn.Module, Case], Run]]] = {
    "torchattacks": ("torchattacks", torchattacks_pgd),
    "foolbox": ("foolbox", foolbox_pgd),
    "ART": ("adversarial-robustness-toolbox", art_pgd),
}
"""Name in the table to distribution and maker of the call."""


def bare(network: nn.Module, case: Case, passes: int, forwards: int) -> Callable[[], None]:
    """An attack's passes as a plain loop: `passes` forwards with the image's gradient, then `forwards` alone."""
    index = case.index

    def run() -> None:
        for _ in range(passes):
            leaf = case.image.clone().requires_grad_()
            torch.autograd.grad(F.cross_entropy(network(leaf), index), leaf)
        with torch.no_grad():
            for _ in range(forwards):
                network(case.image)

    return run


def overhead(case: Case, repeats: int) -> None:
    """The first table: every attack over the passes that it makes."""
    network = copy.deepcopy(case.network).requires_grad_(False)
    runs: dict[str, Run] = {}
    counts: dict[str, tuple[int, int]] = {}
    reached: dict[str, float] = {}
    failures: dict[str, str] = {}
    for name, attack in OURS.items():
        counting = Counting(case.network).eval()
        result = attack(counting, case.image, case.target)
        backwards, forwards = int(result.backward_passes[0]), int(result.forward_passes[0])
        if (backwards, forwards) != (counting.backwards, counting.forwards):
            raise RuntimeError(
                f"{name} reports {forwards} forward and {backwards} backward passes; "
                f"the network saw {counting.forwards} and {counting.backwards}"
            )
        label = f"**monai_smia {name}-{STEPS}**"
        counts[label], reached[label] = (backwards, forwards - backwards), case.loss(result.adversarial)
        runs[label] = lambda attack=attack: attack(case.network, case.image, case.target).adversarial
    for name, (distribution, build) in PEERS.items():
        label, counting = f"{name} {installed(distribution)} PGD-{STEPS}", Counting(case.network).eval()
        try:
            adversarial = build(counting, case)()
        except Exception as error:  # what a peer cannot do is a row of the table
            failures[label] = (
                f"does not run: {type(error).__name__}: {' '.join(str(error).split()).replace('|', '/')[:100]}"
            )
            continue
        counts[label] = counting.backwards, counting.forwards - counting.backwards
        reached[label] = case.loss(adversarial)
        runs[label] = build(case.network, case)

    reference = f"{STEPS} bare passes"
    groups = {name: [run, bare(network, case, *counts[name])] for name, run in runs.items()}
    times = race({reference: [bare(network, case, STEPS, 0)], **groups}, repeats, f"{case.title}: overhead")
    plain = [row[0].wall for row in times[reference]]
    rows = [[reference, f"{STEPS} + 0", spread(plain), "", "", "1", f"clean {case.loss(case.image):.4f}"]]
    for name in runs:
        backwards, forwards = counts[name]
        rows.append(
            [
                name,
                f"{backwards} + {forwards}",
                spread([attack.wall for attack, _ in times[name]]),
                spread([attack.wall / own.wall for attack, own in times[name]]),
                spread([attack.cpu / own.cpu for attack, own in times[name]]),
                spread([attack.wall / unit for (attack, _), unit in zip(times[name], plain, strict=True)]),
                f"{reached[name]:.4f}",
            ]
        )
    rows += [[name, why, "", "", "", "", ""] for name, why in failures.items()]
    print(f"### {case.title}: overhead\n\nAim: monai_smia at most 1.05 times its own passes.\n")
    header = ["attack", "passes + forwards", "seconds", "x own passes", "x own, CPU time", f"x {reference}", "loss"]
    table(header, rows)


def precision(case: Case, repeats: int) -> None:
    """The second table: PGD in bfloat16 and with the channels last, over PGD in float32."""
    last = torch.channels_last if case.image.ndim == 4 else torch.channels_last_3d
    network, image = copy.deepcopy(case.network).to(memory_format=last), case.image.to(memory_format=last)
    plain, half = OURS["PGD"], PGD(LOSS, **PLAIN, amp=torch.bfloat16)

    def run(attack: GradientAttack, channels_last: bool) -> Callable[[], AttackResult]:
        if channels_last:
            return lambda: attack(network, image, case.target)
        return lambda: attack(case.network, case.image, case.target)

    base = run(plain, False)
    variants = {
        "channels-last": run(plain, True),
        "bfloat16": run(half, False),
        "bfloat16, channels-last": run(half, True),
    }
    exact = base()
    results = {name: variant() for name, variant in variants.items()}
    groups = {name: [variant, base] for name, variant in variants.items()}
    times = race(groups, repeats, f"{case.title}: precision")
    clean, best = float(exact.clean_loss.mean()), float(exact.loss.mean())
    seconds = [row[1].wall for rounds in times.values() for row in rounds]
    rows = [["float32", spread(seconds), "1", "1", f"{best:.4f}", "1", "1"]]
    for name, rounds in times.items():
        loss = float(results[name].loss.mean())
        rows.append(
            [
                name,
                spread([row[0].wall for row in rounds]),
                spread([row[0].wall / row[1].wall for row in rounds]),
                spread([row[0].cpu / row[1].cpu for row in rounds]),
                f"{loss:.4f}",
                f"{loss / best:.4f}",
                f"{(loss - clean) / (best - clean):.4f}",
            ]
        )
    aim = 0.6 if case.image.ndim == 4 else 0.3
    print(f"### {case.title}: PGD-{STEPS} by precision\n")
    print(f"Aim: at most {aim} of float32's time at a loss within 1 % of its. Clean loss {clean:.4f}.\n")
    header = ["precision", "seconds", "x float32", "x float32, CPU time", "loss", "/ float32's", "gain / float32's"]
    table(header, rows)


def environment(arguments: argparse.Namespace) -> None:
    """Everything that the numbers depend on."""
    hardware([distribution for distribution, _ in PEERS.values()])
    print(f"- networks with random weights, images and labels drawn with seed {SEED}; nothing is trained")
    print(f"- Linf, eps {EPS * 255:g}/255, step {STEP * 255:g}/255, {STEPS} steps, no random start, cross-entropy")
    print(
        f"- median [lowest..highest] of {arguments.repeats} rounds{', small' if arguments.small else ''}\n", flush=True
    )


def main(options: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks overhead", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="small images, to see that it runs; no numbers to quote")
    parser.add_argument("--case", choices=CASES, action="append", help="only this network (default: all)")
    arguments = parser.parse_args(options)
    environment(arguments)
    cases = [CASES[name](arguments.small) for name in arguments.case or CASES]
    for measure in (overhead, precision):
        for case in cases:
            measure(case, arguments.repeats)


def _shape(image: torch.Tensor) -> str:
    return " x ".join(map(str, image.shape))
