# SPDX-License-Identifier: Apache-2.0
"""Memory and time of a whole volume's gradient through a sliding window: ours, checkpointed, and plain autograd."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from torch import nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from benchmarks._measure import hardware, race, resident, spread, table
from monai_smia.inferers import GradientSlidingWindowInferer

SEED = 0
WINDOW = (64, 64, 64)
SETTINGS: dict[str, Any] = {"roi_size": WINDOW, "sw_batch_size": 1, "overlap": 0.25, "mode": "gaussian"}
MEBIBYTE = 2**20
ALLOCATORS: dict[str, dict[str, str]] = {
    "freed memory handed back": {"MALLOC_MMAP_THRESHOLD_": "131072"},
    "glibc's allocator as it is": {},
}
"""With glibc's defaults freed memory stays with the process, in pieces: the peak is then that of the allocator."""


def make_network() -> nn.Module:
    """The model zoo's spleen UNet with one output: prediction and gradients are then one volume each."""
    torch.manual_seed(SEED)
    network = UNet(3, 1, 1, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2, norm="batch")
    return network.eval().requires_grad_(False)


def make_volume(size: int) -> torch.Tensor:
    return torch.rand((1, 1, size, size, size), generator=torch.Generator().manual_seed(SEED)).requires_grad_()


def one_window(network: nn.Module, volume: torch.Tensor) -> torch.Tensor:
    """The network's own peak: forward and backward on a single window, twelve times over, whatever the volume."""
    for _ in range(12):  # the allocator's own peak is reached after some of them
        window = volume.detach()[..., :64, :64, :64].clone().requires_grad_()
        prediction = network(window)
        gradient = torch.autograd.grad(prediction, window, torch.ones_like(prediction))[0]
    return gradient


def through(inferer: Any, wrap: Callable[[nn.Module], Callable[..., Any]] = lambda network: network) -> Any:
    def gradient(network: nn.Module, volume: torch.Tensor) -> torch.Tensor:
        prediction = inferer(volume, wrap(network))
        return torch.autograd.grad(prediction, volume, torch.ones_like(prediction))[0]

    return gradient


def checkpointed(network: nn.Module) -> Callable[..., Any]:
    return lambda windows: checkpoint(network, windows, use_reentrant=False)


METHODS: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "one window": one_window,
    "monai_smia": through(GradientSlidingWindowInferer(**SETTINGS)),
    "checkpoint": through(SlidingWindowInferer(**SETTINGS), checkpointed),
    "autograd": through(SlidingWindowInferer(**SETTINGS)),
}


def measure(method: str, size: int) -> dict[str, float]:
    """In a process of its own: the peak over what was there before, and a checksum of the gradient."""
    network, volume = make_network(), make_volume(size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident("VmRSS")
    gradient = METHODS[method](network, volume)
    peak = resident("VmHWM") - before
    return {"peak": peak, "checksum": float(gradient.double().abs().sum())}


def memory(sizes: list[int], limit: float, allocator: str) -> None:
    """Peak memory by size, until a method passes the limit."""
    peaks: dict[str, dict[int, float]] = {method: {} for method in METHODS}
    for method in METHODS:
        for size in tqdm(sizes, desc=f"{allocator}: {method}", file=sys.stderr):
            if any(peak > limit * 2**30 for peak in peaks[method].values()):
                continue
            command = [sys.executable, "-m", "benchmarks.sliding_window", "--measure", method, str(size)]
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, env={**os.environ, **ALLOCATORS[allocator]}
            )
            peaks[method][size] = json.loads(done.stdout)["peak"]
    print(f"### Peak memory of one gradient, over what was there before, MiB, {allocator}\n")
    print("Aim: at most 1.3 times one window and four copies of the volume; the lowest of the three.\n")
    rows = []
    for size in sizes:
        copies = 4 * size**3 * 4
        aim = 1.3 * peaks["one window"][size] + copies
        found = [peaks[method].get(size) for method in METHODS]
        cells = ["over the limit" if peak is None else f"{peak / MEBIBYTE:.0f}" for peak in found]
        ours = peaks["monai_smia"][size]
        rows.append([f"{size}³", *cells, f"{copies / MEBIBYTE:.0f}", f"{aim / MEBIBYTE:.0f}", f"{ours / aim:.2f}"])
    table(["volume", *METHODS, "four copies", "aim", "monai_smia / aim"], rows)


def bare(network: nn.Module, volume: torch.Tensor) -> Callable[[], None]:
    """Two forward passes and one backward pass of the same windows, and nothing else."""
    windows: list[torch.Tensor] = []
    SlidingWindowInferer(**SETTINGS)(volume.detach(), lambda x: windows.append(x.clone()) or x.clone())

    def run() -> None:
        with torch.no_grad():
            for window in windows:
                network(window)
        for window in windows:
            leaf = window.requires_grad_()
            prediction = network(leaf)
            torch.autograd.grad(prediction, leaf, torch.ones_like(prediction))

    return run


def time(size: int, repeats: int) -> None:
    """Time over that of the passes themselves, interleaved."""
    network, volume = make_network(), make_volume(size)
    own = bare(network, volume)
    methods = [method for method in METHODS if method != "one window"]
    groups = {name: [lambda method=METHODS[name]: method(network, volume), own] for name in methods}
    times = race(groups, repeats, f"time: {size}³")
    print(f"### Time of one gradient, {size}³, over two forward passes and one backward pass of the same windows\n")
    print("Aim: at most 1.05, and no slower than checkpointing.\n")
    rows = [
        [
            name,
            spread([row[0].wall for row in rounds]),
            spread([row[0].wall / row[1].wall for row in rounds]),
            spread([row[0].cpu / row[1].cpu for row in rounds]),
        ]
        for name, rounds in times.items()
    ]
    table(["method", "seconds", "x passes", "x passes, CPU time"], rows)


def sharing(size: int, repeats: int) -> None:
    """SMIA's twin and iterate in one pass, over a pass for each."""
    network, volume = make_network(), make_volume(size)
    other = volume.detach().flip(2)
    rows = []
    for batch in (1, 4):
        inferer = GradientSlidingWindowInferer(**{**SETTINGS, "sw_batch_size": batch})

        def shared(inferer: GradientSlidingWindowInferer = inferer) -> None:
            prediction, _ = inferer.beside(volume, other, network)
            torch.autograd.grad(prediction, volume, torch.ones_like(prediction))

        def separate(inferer: GradientSlidingWindowInferer = inferer) -> None:
            with torch.no_grad():
                inferer(other, network)
            prediction = inferer(volume, network)
            torch.autograd.grad(prediction, volume, torch.ones_like(prediction))

        times = race({"shared": [shared, separate]}, repeats, f"sharing: {batch} windows")["shared"]
        wall, cpu = ([getattr(a, kind) / getattr(b, kind) for a, b in times] for kind in ("wall", "cpu"))
        rows.append([str(batch), spread(wall), spread(cpu)])
    print(f"### One step of SMIA, {size}³: twin and iterate in one pass, over a pass for each\n")
    table(["windows at a time", "time", "CPU time"], rows)


def main(options: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks sliding_window", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128, 192, 256], help="edges of the volumes")
    parser.add_argument("--limit", type=float, default=16, help="GiB after which a method's larger sizes are left out")
    parser.add_argument("--time-size", type=int, default=128, help="edge of the volume of the second table")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="small volumes, to see that it runs; no numbers to quote")
    parser.add_argument("--only", choices=("memory", "time"), help="one of the two tables (default: both)")
    parser.add_argument("--measure", nargs=2, metavar=("METHOD", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(options)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], int(arguments.measure[1]))))
        return
    if arguments.small:
        arguments.sizes, arguments.time_size = [64, 80], 80
    hardware()
    print(f"- MONAI UNet, channels 16 to 256, batch norm, one output, random weights, seed {SEED}")
    print("- windows of 64³, one at a time, overlap 0.25, Gaussian blending; float32\n", flush=True)
    if arguments.only != "time":
        for allocator in ALLOCATORS:
            memory(arguments.sizes, arguments.limit, allocator)
    if arguments.only != "memory":
        time(arguments.time_size, arguments.repeats)
        sharing(arguments.time_size, arguments.repeats)


if __name__ == "__main__":
    main()
