# SPDX-License-Identifier: Apache-2.0
"""Passes per second of an attack over those of the bare network on a GPU: float32, AMP, channels last, compiled."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks._measure import hardware, race, spread, table
from benchmarks.overhead import CASES, OURS, SEED, STEPS, Case

AIM = 0.95


@dataclass(frozen=True)
class Variant:
    """One way to run the network, of the attack and of the bare passes alike."""

    name: str
    amp: bool = False
    channels_last: bool = False
    compiled: bool = False


VARIANTS = (
    Variant("float32"),
    Variant("AMP", amp=True),
    Variant("channels last", channels_last=True),
    Variant("AMP, channels last", amp=True, channels_last=True),
    Variant("AMP, channels last, compiled", amp=True, channels_last=True, compiled=True),
)


class Bench:
    """A case on a device, in one variant.

    Args:
        case: network and batch.
        variant: how they are run.
        device: where.
        backend: of `torch.compile`.
    """

    def __init__(self, case: Case, variant: Variant, device: torch.device, backend: str) -> None:
        self.device, self.amp = device, variant.amp
        layout = torch.contiguous_format
        if variant.channels_last:
            layout = torch.channels_last if case.image.ndim == 4 else torch.channels_last_3d
        self.network: Any = copy.deepcopy(case.network).to(device, memory_format=layout)
        self.frozen: Any = copy.deepcopy(self.network).requires_grad_(False)
        if variant.compiled:
            self.network, self.frozen = (torch.compile(net, backend=backend) for net in (self.network, self.frozen))
        self.image = case.image.to(device, memory_format=layout)
        self.target, self.index = case.target.to(device), case.index.to(device)

    def attack(self, attack: Any) -> Any:
        """The attack's result, when the device is done."""
        with self._autocast():
            result = attack(self.network, self.image, self.target)
        self._wait()
        return result

    def bare(self, backwards: int, forwards: int) -> Callable[[], None]:
        """The same passes as a plain loop."""

        def run() -> None:
            with self._autocast():
                for _ in range(backwards):
                    leaf = self.image.clone().requires_grad_()
                    torch.autograd.grad(F.cross_entropy(self.frozen(leaf).float(), self.index), leaf)
                with torch.no_grad():
                    for _ in range(forwards):
                        self.frozen(self.image)
            self._wait()

        return run

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.amp else nullcontext()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(case: Case, arguments: argparse.Namespace, device: torch.device) -> None:
    """One table."""
    rows = []
    for variant in VARIANTS:
        bench = Bench(case, variant, device, arguments.backend)
        runs: dict[str, list[Callable[[], Any]]] = {}
        passes: dict[str, int] = {}
        for name, attack in OURS.items():
            result = bench.attack(attack)  # warm, and compiled
            backwards, forwards = int(result.backward_passes[0]), int(result.forward_passes[0])
            bare = bench.bare(backwards, forwards - backwards)
            bare()
            passes[name] = backwards + forwards
            runs[name] = [lambda attack=attack, bench=bench: bench.attack(attack), bare]
        for name, rounds in race(runs, arguments.repeats, f"{case.title}: {variant.name}").items():
            speed = [passes[name] / own.wall for own, _ in rounds]
            ratio = [plain.wall / own.wall for own, plain in rounds]
            rows.append([variant.name, f"{name}-{STEPS}", spread(speed), spread(ratio)])
    print(f"### {case.title}\n\nAim: at least {AIM} of the bare network's passes per second.\n")
    table(["variant", "attack", "passes per second", "over bare"], rows)


def main(options: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=10, help="rounds (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="small images, to see that it runs; no numbers to quote")
    parser.add_argument("--backend", default="inductor", help="of torch.compile (default: %(default)s)")
    parser.add_argument("--case", choices=CASES, action="append", help="only this network (default: all)")
    arguments = parser.parse_args(options)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured (--device cpu --small shows that it runs)")
        return
    if device.type == "cuda":
        print(f"- {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}")
    hardware()
    print(f"- random weights and images, seed {SEED}; passes are forward and backward passes, one each\n", flush=True)
    for name in arguments.case or CASES:
        measure(CASES[name](arguments.small), arguments, device)
