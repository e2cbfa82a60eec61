# SPDX-License-Identifier: Apache-2.0
"""What is attacked beside the peers: 2-D and 3-D classification, an unusual intensity range, 3-D segmentation."""

from __future__ import annotations

import base64
import io
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import ResNet
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks import strength
from benchmarks._kept import kept
from benchmarks._measure import data_folder
from benchmarks._strength_attacks import LOSS, Bounds
from benchmarks._units import sha256
from monai_smia.attacks.criteria import default_criterion

SEED = 0
HIPPOCAMPUS = strength.ROOT / "bundles" / "hippocampus_mri_segmentation"
CROP = 32
TRAINING: dict[str, Any] = {"epochs": 8, "batch": 16, "rate": 2e-3, "crop": CROP, "seed": SEED}
ATTACKS = ("fgsm", "pgd", "pgd-l2", "apgd", "fmn")


@dataclass(frozen=True)
class Task:
    """A network and a batch.

    Attributes:
        network: evaluation mode, its parameters trainable, as a user's network is.
        image: ``BCHW[D]`` in `bounds`.
        label: ``(B,)``, or ``(B, H, W, D)`` as torch's cross-entropy wants it.
        classes: number of classes.
        bounds: range of intensities.
        budgets: norm to eps, in the network's units.
        timed: of so many cases, the first ones, the time is taken; all are judged.
    """

    network: nn.Module
    image: torch.Tensor
    label: torch.Tensor
    classes: int
    bounds: Bounds
    budgets: dict[float, float]
    timed: int

    @torch.no_grad()
    def judge(self, image: torch.Tensor) -> dict[str, list[float]]:
        """Of each case: cross-entropy (mean over voxels), whether an attack succeeded, and what is left: 0 or 1 of a
        classifier, mean Dice of the foreground of a segmentation."""
        output = self.network(image)
        loss = F.cross_entropy(output, self.label, reduction="none").reshape(len(image), -1).mean(1)
        success = default_criterion(LOSS, output, False)(output, self.label)
        left = (output.argmax(1) == self.label).float()
        if self.label.ndim > 1:
            left = dice(output.argmax(1), self.label, self.classes)
        return {"loss": loss.tolist(), "success": success.tolist(), "left": left.tolist()}


def dice(decided: torch.Tensor, label: torch.Tensor, classes: int) -> torch.Tensor:
    """Mean over the classes but 0, ``(B,)``; every class is in every label."""
    scores = []
    for k in range(1, classes):
        ours, true = (decided == k).flatten(1), (label == k).flatten(1)
        scores.append(2 * (ours & true).sum(1) / (ours.sum(1) + true.sum(1)))
    return torch.stack(scores).mean(0)


class Shifted(nn.Module):
    """A network of [0, 1] that is given [-1, 2]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network((image + 1) / 3)


def shifted(task: Task) -> Task:
    """The same task in [-1, 2]: image, budgets and bounds grow by 3, so a right answer does exactly the same damage."""
    budgets = {norm: 3 * eps for norm, eps in task.budgets.items()}
    network, image = Shifted(task.network).eval(), 3 * task.image - 1
    return replace(task, network=network, image=image, bounds=(-1.0, 2.0), budgets=budgets)


def fundus(out: Path) -> Task:
    """Validation photographs that the bundle's network gets right, the first of each grade."""
    found = strength.problem("standard", 10**6)
    chosen = first_of_each(found.label, found.classes, 1)
    budgets = {math.inf: strength.WEIGHTS["standard"][1] / strength.GREY, 2.0: 1.0}
    return Task(found.network, found.image[chosen], found.label[chosen], found.classes, (0.0, 1.0), budgets, 1)


def first_of_each(label: torch.Tensor, classes: int, cases: int) -> torch.Tensor:
    """Indices of the first `cases` of each class, class by class."""
    return torch.cat([(label == k).nonzero()[:cases, 0] for k in range(classes)])


def hippocampi(split: str, cases: int | None = None) -> tuple[ConfigParser, torch.Tensor, torch.Tensor]:
    """The bundle's configuration, and its images ``(B, 1, 48, 64, 48)`` in [0, 1] with labels ``(B, 48, 64, 48)``."""
    parser = ConfigParser()
    parser.read_config(str(HIPPOCAMPUS / "configs" / "train.json"))
    parser["dataset_dir"], parser["device"] = str(data_folder() / "hippocampus_mri"), "$torch.device('cpu')"
    parser["split"] = split
    transform = parser.get_parsed_content("validate#preprocessing")
    images, labels = [], []
    for item in tqdm(parser.get_parsed_content("validate#datalist")[:cases], desc=split, file=sys.stderr):
        ready = transform(item)
        images.append(torch.as_tensor(np.asarray(ready["image"])).float())
        labels.append(torch.as_tensor(np.asarray(ready["label"]))[0].long())
    return parser, torch.stack(images), torch.stack(labels)


def segmentation(out: Path) -> Task:
    """The hippocampus bundle's network and its first two validation cases."""
    parser, image, label = hippocampi("validation", 2)
    network = parser.get_parsed_content("network")
    state = torch.load(HIPPOCAMPUS / "models" / "model.pt", weights_only=True)
    network.load_state_dict(state.get("model", state))
    return Task(network.eval(), image, label, 3, (0.0, 1.0), {math.inf: 0.02, 2.0: 3.0}, 1)


def crops(image: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Around the middle of each part: cubes ``(2 B, 1, 32, 32, 32)``, and which part, 0 anterior and 1 posterior."""
    cubes, parts = [], []
    for volume, mask in zip(image, label, strict=True):
        for part in (0, 1):
            middle = (mask == part + 1).nonzero().float().mean(0).round().int().tolist()
            begin = [min(max(m - CROP // 2, 0), size - CROP) for m, size in zip(middle, mask.shape, strict=True)]
            cubes.append(volume[(slice(None), *(slice(b, b + CROP) for b in begin))])
            parts.append(part)
    return torch.stack(cubes), torch.tensor(parts)


def make_classifier() -> ResNet:
    return ResNet(
        "basic", [1, 1, 1, 1], [8, 16, 32, 64], spatial_dims=3, n_input_channels=1, conv1_t_size=3, conv1_t_stride=2,
        no_max_pool=True, num_classes=2,
    )  # fmt: skip


def train() -> dict[str, Any]:
    """The classifier's weights, and how often it is right on the validation crops."""
    cubes, parts = crops(*hippocampi("training")[1:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = make_classifier()
        optimizer = torch.optim.AdamW(network.parameters(), lr=TRAINING["rate"])
        for _ in tqdm(range(TRAINING["epochs"]), desc="training a 3-D classifier", unit="epoch", file=sys.stderr):
            for chosen in torch.randperm(len(cubes)).split(TRAINING["batch"]):
                optimizer.zero_grad()
                LOSS(network(cubes[chosen]), parts[chosen]).backward()
                optimizer.step()
    network.eval()
    cubes, parts = crops(*hippocampi("validation")[1:])
    with torch.no_grad():
        right = int((network(cubes).argmax(1) == parts).sum())
    stream = io.BytesIO()
    torch.save(network.state_dict(), stream)
    return {"weights": base64.b64encode(stream.getvalue()).decode(), "right": right, "of": len(parts)}


def classifier(out: Path) -> dict[str, Any]:
    return kept(out / "classifier.json", {**TRAINING, **hippocampus_facts()}, train)


def parts(out: Path) -> Task:
    """Validation crops that the trained classifier gets right, 16 of them, as many of each part."""
    network = make_classifier()
    network.load_state_dict(
        torch.load(io.BytesIO(base64.b64decode(classifier(out)["weights"])), weights_only=True, map_location="cpu")
    )
    network.eval()
    cubes, label = crops(*hippocampi("validation")[1:])
    with torch.no_grad():
        right = network(cubes).argmax(1) == label
    cubes, label = cubes[right], label[right]
    chosen = first_of_each(label, 2, 8)
    return Task(network, cubes[chosen], label[chosen], 2, (0.0, 1.0), {math.inf: 0.013, 2.0: 1.5}, 4)


def random_task(dims: int, classes: int, dense: bool) -> Task:
    """A small random network on noise: only to see that everything runs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        body = [conv(1, 4, 3, padding=1), nn.Tanh()]
        last: list[nn.Module] = [conv(4, classes, 1)] if dense else [nn.Flatten(), nn.Linear(4 * 6**dims, classes)]
        network, image = nn.Sequential(*body, *last).eval(), torch.rand(3, 1, *[6] * dims)
        with torch.no_grad():
            label = network(image).argmax(1)
    return Task(network, image, label, classes, (0.0, 1.0), {math.inf: 0.02, 2.0: 0.1}, 2)


def hippocampus_facts() -> dict[str, Any]:
    return {
        "config": sha256([HIPPOCAMPUS / "configs" / "train.json"]),
        "data": sha256([data_folder() / "hippocampus_mri" / "dataset.json"]),
    }


def fundus_facts() -> dict[str, Any]:
    return {
        "weights": sha256([strength.BUNDLE / "models" / "model.pt"]),
        "config": sha256([strength.BUNDLE / "configs" / "train.json"]),
        "data": sha256([data_folder() / "fundus_dr" / "dataset.json"]),
    }


def segmentation_facts() -> dict[str, Any]:
    return {**hippocampus_facts(), "weights": sha256([HIPPOCAMPUS / "models" / "model.pt"])}


@dataclass(frozen=True)
class Plan:
    """A task that is loaded when it is needed.

    Attributes:
        title: heading of its table.
        load: gives the task; gets the folder of what is kept.
        facts: the files that its results depend on.
        small: what stands in for it with ``--small``.
        bounds: range of intensities, known before it is loaded.
        attacks: keys of the contests.
    """

    title: str
    load: Callable[[Path], Task]
    facts: Callable[[], dict[str, Any]]
    small: Callable[[], Task]
    bounds: Bounds = (0.0, 1.0)
    attacks: tuple[str, ...] = ATTACKS


PLANS = {
    "2d": Plan("2-D classification", fundus, fundus_facts, lambda: random_task(2, 3, False)),
    "3d": Plan(
        "3-D classification", parts, hippocampus_facts, lambda: random_task(3, 2, False), attacks=(*ATTACKS, "ddn")
    ),
    "range": Plan(
        "3-D classification, intensities in [-1, 2]",
        lambda out: shifted(parts(out)),
        hippocampus_facts,
        lambda: shifted(random_task(3, 2, False)),
        (-1.0, 2.0),
    ),
    "segmentation": Plan(
        "3-D segmentation",
        segmentation,
        segmentation_facts,
        lambda: random_task(3, 3, True),
    ),
}
