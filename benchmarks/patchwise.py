# SPDX-License-Identifier: Apache-2.0
"""What attacks patch by patch miss: the same budget and steps, against attacks on the volume that is predicted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.utils import ensure_tuple_rep
from torch import nn
from tqdm import tqdm

from benchmarks import _lung_ct, hippocampus
from benchmarks._measure import data_folder, hardware, table
from monai_smia.attacks import PGD, Attack, CosPGD
from monai_smia.inferers import GradientSlidingWindowInferer
from monai_smia.inferers.padding import Padding

Settings = dict[str, Any]
Attacker = Callable[[Attack, nn.Module, torch.Tensor, torch.Tensor, Settings], torch.Tensor]
"""``(attack, network, image, label, windows) -> adversarial``, for one volume ``(1, C, X, Y, Z)``."""


def exact(
    attack: Attack, network: nn.Module, image: torch.Tensor, label: torch.Tensor, settings: Settings
) -> torch.Tensor:
    """The attack on the blended prediction of the whole volume."""
    return attack(network, image, label, inferer=GradientSlidingWindowInferer(**settings)).adversarial


def patchwise(overlapping: bool) -> Attacker:
    """Each window attacked for itself, on its part of the label; perturbations put back by the windows' weights.

    A weighted mean of perturbations inside the ball is inside the ball, and the image inside its bounds.
    """

    def attacker(
        attack: Attack, network: nn.Module, image: torch.Tensor, label: torch.Tensor, settings: Settings
    ) -> torch.Tensor:
        size, overlap = settings["roi_size"], settings["overlap"] if overlapping else 0.0
        steps = [max(int(side * (1 - part)), 1) for side, part in zip(size, ensure_tuple_rep(overlap, 3), strict=True)]
        mode = settings["mode"] if overlapping else "constant"
        weight = compute_importance_map(size, mode=mode, sigma_scale=0.125, device=image.device)[None, None]
        padding = Padding(image.shape[2:], size, "constant", 0.0)  # as the inferer does it
        image, label = padding.put(image), padding.put(label)
        total, count = torch.zeros_like(image), torch.zeros_like(image)
        for place in dense_patch_slices(image.shape[2:], size, steps):
            window = (slice(None), slice(None), *place)
            result = attack(network, image[window], label[window])
            total[window] += weight * (result.adversarial - image[window])
            count[window] += weight
        return padding.take_off(image + total / count)

    return attacker


ATTACKERS: dict[str, Attacker] = {
    "exact": exact,
    "overlapping patches": patchwise(True),
    "disjoint patches": patchwise(False),
}


def compare(
    title: str,
    cases: Sequence[tuple[torch.Tensor, torch.Tensor]],
    network: nn.Module,
    settings: Settings,
    attacks: dict[str, Attack],
    dice: Callable[[torch.Tensor, torch.Tensor], float],
) -> None:
    """A table: Dice of the whole volume, clean and under each attack made in each way."""
    inferer = GradientSlidingWindowInferer(**settings)

    def judged(images: Sequence[torch.Tensor]) -> float:
        with torch.no_grad():
            values = [dice(inferer(x, network), label) for x, (_, label) in zip(images, cases, strict=True)]
        return sum(values) / len(values)

    clean = judged([image for image, _ in cases])
    rows = []
    with tqdm(total=len(attacks) * len(ATTACKERS) * len(cases), desc=title, file=sys.stderr) as bar:
        for name, attack in attacks.items():
            found: dict[str, float] = {}
            for way, attacker in ATTACKERS.items():
                images = []
                for image, label in cases:
                    images.append(attacker(attack, network, image, label, settings))
                    bar.update()
                found[way] = judged(images)
            damage = {way: (clean - value) / max(clean - found["exact"], 1e-6) for way, value in found.items()}
            shares = [f"{value:.3f} ({damage[way]:.0%})" for way, value in found.items()]
            rows.append([name, f"{clean:.3f}", *shares])
    size = " x ".join(map(str, settings["roi_size"]))
    print(f"### {title}: windows of {size}, overlap {settings['overlap']}, {settings['mode']}\n")
    print(f"Mean Dice over {len(cases)} cases; in brackets the damage as a share of the exact attack's.\n")
    table(["attack", "clean", *ATTACKERS], rows)


def lung(arguments: argparse.Namespace) -> None:
    """The shipped lung network on the patient it was not trained on."""
    network, scale = _lung_ct.load_network(), _lung_ct.HOUNSFIELD
    cases = [_lung_ct.load_case("lung1", (2.5, 2.5, 5.0))]
    budgets = [20, 50]
    attacks: dict[str, Attack] = {}
    for hu in budgets:
        words = {"eps": scale.to_network(hu), "steps": arguments.steps, "bounds": scale.bounds}
        attacks[f"PGD-{arguments.steps}, {hu} HU"] = PGD(_lung_ct.LOSS, **words)
        attacks[f"CosPGD-{arguments.steps}, {hu} HU"] = CosPGD(_lung_ct.LOSS, **words)

    def dice(prediction: torch.Tensor, label: torch.Tensor) -> float:
        return sum(_lung_ct.dice(prediction, label)) / 2

    for size, overlap in (((128, 128, 32), 0.25), ((64, 64, 32), 0.5)):
        settings = {"roi_size": size, "sw_batch_size": 2, "overlap": overlap, "mode": "gaussian"}
        compare("lung CT", cases, network, settings, attacks, dice)


def brain(arguments: argparse.Namespace) -> None:
    """The network of standard training that the hippocampus benchmark left, on the test cases."""
    if not (arguments.weights / "standard.pt").is_file():
        sys.exit(f"patchwise: train first, with python -m benchmarks hippocampus; expected {arguments.weights}")
    network, _ = hippocampus.load(arguments.weights, "standard")
    network.requires_grad_(False)
    data = hippocampus.loader(data_folder() / "hippocampus_mri", "test", arguments.cases)
    cases = [
        (batch["image"].as_tensor()[i : i + 1], batch["label"].as_tensor()[i : i + 1])
        for batch in data
        for i in range(len(batch["image"]))
    ]
    attacks: dict[str, Attack] = {
        f"PGD-{arguments.steps}, {name}": PGD(
            hippocampus.LOSS, eps=eps, steps=arguments.steps, bounds=hippocampus.BOUNDS
        )
        for name, eps in hippocampus.BUDGETS.items()
    }

    def dice(prediction: torch.Tensor, label: torch.Tensor) -> float:
        decided = prediction.argmax(1, keepdim=True)
        parts = [
            2 * ((decided == k) & (label == k)).sum() / ((decided == k).sum() + (label == k).sum()) for k in (1, 2)
        ]
        return float(sum(parts)) / 2

    settings = {"roi_size": (24, 32, 24), "sw_batch_size": 8, "overlap": 0.5, "mode": "gaussian"}
    compare("hippocampus MRI", cases, network, settings, attacks, dice)


PARTS = {"lung": lung, "hippocampus": brain}


def main(options: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks patchwise", description=__doc__)
    parser.add_argument("--steps", type=int, default=10, help="of every attack (default: %(default)s)")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this data set (default: both)")
    parser.add_argument("--cases", type=int, help="of the hippocampus (default: all 40 test cases)")
    parser.add_argument("--weights", type=Path, default=Path("runs/hippocampus"), help="of the hippocampus network")
    parser.add_argument("--small", action="store_true", help="two steps, two cases; no numbers to quote")
    arguments = parser.parse_args(options)
    if arguments.small:
        arguments.steps, arguments.cases, arguments.weights = 2, 2, arguments.weights / "small"
    hardware()
    print(f"- Linf, {arguments.steps} steps for every voxel in every way, random start, seed 0\n", flush=True)
    for name in arguments.part or PARTS:
        PARTS[name](arguments)
