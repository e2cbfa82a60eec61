# SPDX-License-Identifier: Apache-2.0
"""SMIA on a whole chest CT of 512 x 512 x 61 voxels at its own resolution, exactly, on a small machine."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks._lung_ct import HOUNSFIELD, LOSS, dice, load_case, load_network
from benchmarks._measure import hardware, resident, table
from monai_smia.attacks import BIM, SMIA, GradientAttack, Trial
from monai_smia.inferers import GradientSlidingWindowInferer


def main(options: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks whole_volume", description=__doc__)
    parser.add_argument("--case", default="lung2", help="lung1 (48 slices) or lung2 (61 slices)")
    parser.add_argument("--window", type=int, nargs=3, default=[128, 128, 64], help="voxels")
    parser.add_argument("--eps", type=float, default=10, help="HU (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--attacks", nargs="+", default=["SMIA"], choices=["SMIA", "BIM"])
    parser.add_argument("--small", action="store_true", help="a part of the volume, two steps; no numbers to quote")
    arguments = parser.parse_args(options)
    network, (image, label) = load_network(), load_case(arguments.case, None)
    if arguments.small:
        image, label, arguments.steps = image[..., 150:350, 150:350, :32], label[..., 150:350, 150:350, :32], 2
        arguments.window = [96, 96, 32]
    inferer = GradientSlidingWindowInferer(arguments.window, 1, overlap=0.25, mode="gaussian", progress=True)
    hardware()
    print(f"- {arguments.case}, {' x '.join(map(str, image.shape[2:]))} voxels, Linf {arguments.eps:g} HU")
    print(
        f"- windows of {' x '.join(map(str, arguments.window))}, overlap 0.25, Gaussian blending; float32\n", flush=True
    )
    kinds: dict[str, type[GradientAttack]] = {"SMIA": SMIA, "BIM": BIM}
    rows = []
    for name in arguments.attacks:
        attack = kinds[name](
            LOSS, eps=HOUNSFIELD.to_network(arguments.eps), steps=arguments.steps, bounds=HOUNSFIELD.bounds
        )
        before, begin = resident("VmRSS"), time.perf_counter()
        Path("/proc/self/clear_refs").write_text("5")
        with tqdm(total=arguments.steps, desc=name, file=sys.stderr) as bar:

            def show(trial: Trial, prediction: torch.Tensor, bar: tqdm = bar) -> None:
                bar.update()

            result = attack(network, image, label, inferer=inferer, callback=show)
        seconds, peak = time.perf_counter() - begin, resident("VmHWM") - before
        with torch.no_grad():
            clean, attacked = (dice(inferer(x, network), label) for x in (image, result.adversarial))
        size = HOUNSFIELD.to_physical(float((result.adversarial - image).abs().max()))
        rows.append(
            [
                f"{name}-{arguments.steps}",
                f"{seconds / 60:.1f} min",
                f"{peak / 2**30:.2f} GiB",
                f"{int(result.forward_passes[0])}, {int(result.backward_passes[0])}",
                f"{size:.2f} HU",
                f"{float(result.clean_loss[0]):.4f} to {float(result.loss[0]):.4f}",
                f"{clean[0]:.3f}, {clean[1]:.3f}",
                f"{attacked[0]:.3f}, {attacked[1]:.3f}",
            ]
        )
    header = ["attack", "time", "peak memory", "passes", "largest change", "loss", "clean Dice", "Dice under attack"]
    table(header, rows)
