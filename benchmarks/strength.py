# SPDX-License-Identifier: Apache-2.0
"""How strong the attacks are beside those of the same name in torchattacks, foolbox and ART, on a bundle's network."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import nn
from tqdm import tqdm

from benchmarks._kept import kept
from benchmarks._measure import data_folder, installed
from benchmarks._paired import Difference, difference, mean, median
from benchmarks._strength_attacks import CONTESTS, OURS, PEERS, Contest
from benchmarks._units import ROOT, environment, sha256
from benchmarks.robustness_table import markdown, positive, replace_region
from monai_smia.reports.files import write_whole

BEGIN, END = "<!-- strength: begin -->", "<!-- strength: end -->"
OUT = Path("runs") / "strength"
BUNDLE = ROOT / "bundles" / "fundus_dr_classification"
WEIGHTS = {"standard": ("model.pt", 1.5), "robust": ("model_robust.pt", 8.0)}
"""File, and the budget in grey levels that leaves between 20 and 80 % of the cases robust."""
CASES, BATCH, SEED, GREY = 40, 8, 0, 255.0
ROUNDING = 1e-6  # of an intensity in [0, 1]
HEADER = ("attack", "library", "robust, %", "ours - theirs [95 %]", "verdict", "forward + backward", "seconds")
NORM_HEADER = ("attack", "library", "median norm", "ours - theirs [95 %]", "verdict", "forward + backward", "seconds")


@dataclass(frozen=True)
class Problem:
    """A network and the first validation cases that it gets right."""

    network: nn.Module
    image: torch.Tensor
    label: torch.Tensor
    classes: int


class Counting(nn.Module):
    """Counts the samples that a network is asked for: forward, and gradients that come back."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.forwards = 0
        self.backwards = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.forwards += len(image)
        if image.requires_grad:
            image.register_hook(self._count)
        return self.network(image)

    def _count(self, gradient: torch.Tensor) -> None:
        self.backwards += len(gradient)


def problem(weights: str, cases: int) -> Problem:
    """The bundle's network, and images in [0, 1] through its own preprocessing."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    parser["dataset_dir"], parser["device"] = str(data_folder() / "fundus_dr"), "$torch.device('cpu')"
    transform, network = parser.get_parsed_content("validate#preprocessing"), parser.get_parsed_content("network")
    state = torch.load(BUNDLE / "models" / WEIGHTS[weights][0], weights_only=True)
    network.load_state_dict(state.get("model", state))
    network.eval()
    images, labels = [], []
    for item in tqdm(parser.get_parsed_content("validate#datalist"), desc="images", file=sys.stderr):
        ready = transform(item)
        image, label = torch.as_tensor(np.asarray(ready["image"])).unsqueeze(0), int(ready["label"])
        with torch.no_grad():
            right = int(network(image).argmax(1)) == label
        if right and len(images) < cases:
            images.append(image)
            labels.append(label)
    return Problem(network, torch.cat(images), torch.tensor(labels), int(parser.get_parsed_content("num_classes")))


def measure(what: Problem, contest: Contest, library: str, eps: float, title: str) -> dict[str, Any]:
    """Success and norm of each case, passes per case and seconds; or the error that stopped the library."""
    if library not in contest.build:
        return {"error": "has no such attack"}
    counting, wrong, norms, begin = Counting(what.network).eval(), [], [], time.perf_counter()
    torch.manual_seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002
    try:
        run = contest.build[library](counting, eps, what.classes)
        for i in tqdm(range(0, len(what.image), BATCH), desc=title, unit="batch", file=sys.stderr):
            image, label = what.image[i : i + BATCH], what.label[i : i + BATCH]
            adversarial = run(image.clone(), label.clone(), SEED + i).detach()
            change = (adversarial - image).flatten(1)
            if contest.norm is None and float(change.abs().max()) > eps + ROUNDING:
                raise RuntimeError(f"the change is {float(change.abs().max()) * GREY:.3f} grey levels, over the budget")
            if float(adversarial.min()) < -ROUNDING or float(adversarial.max()) > 1 + ROUNDING:
                raise RuntimeError("the image leaves [0, 1]")
            with torch.no_grad():
                wrong += (what.network(adversarial).argmax(1) != label).tolist()
            norms += torch.linalg.vector_norm(change, ord=contest.norm or math.inf, dim=1).tolist()
    except Exception as error:  # what a peer cannot do is a row of the table
        if library == OURS:
            raise
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split()).replace('|', '/')[:110]}"}
    return {
        "wrong": wrong,
        "norm": norms,
        "forward": counting.forwards / len(wrong),
        "backward": counting.backwards / len(wrong),
        "seconds": time.perf_counter() - begin,
    }


def values(result: dict[str, Any], norm: float | None, largest: float) -> list[float]:
    """What a stronger attack makes smaller: whether a case stands; or its norm, the largest one where it stands."""
    if norm is None:
        return [float(not wrong) for wrong in result["wrong"]]
    return [size if wrong else largest for wrong, size in zip(result["wrong"], result["norm"], strict=True)]


def compare(ours: dict[str, Any], theirs: dict[str, Any], norm: float | None, largest: float) -> Difference:
    statistic = mean if norm is None else median
    return difference(values(ours, norm, largest), values(theirs, norm, largest), statistic)


def row(
    contest: Contest, library: str, result: dict[str, Any], ours: dict[str, Any], largest: float
) -> tuple[str, ...]:
    """One line of a table, in percent, or in grey levels for a norm."""
    name = f"**{library}**" if library == OURS else library
    if "error" in result:
        return (contest.name, name, result["error"], "", "", "", "")
    unit = 100.0 if contest.norm is None else GREY
    digits = 1 if contest.norm is None else 3
    own = values(result, contest.norm, largest)
    reached = float((mean if contest.norm is None else median)(np.array(own))) * unit
    between, verdict = "", ""
    if library != OURS:
        found = compare(ours, result, contest.norm, largest)
        between = f"{found.value * unit:+.{digits}f} [{found.low * unit:+.{digits}f}, {found.high * unit:+.{digits}f}]"
        verdict = found.verdict
    passes = f"{result['forward']:.0f} + {result['backward']:.0f}"
    return (contest.name, name, f"{reached:.{digits}f}", between, verdict, passes, f"{result['seconds']:.0f}")


def tables(results: dict[str, dict[str, dict[str, Any]]], pixels: int) -> list[str]:
    """Attacks at a fixed budget, then searches for the smallest norm.

    Args:
        results: contest to library to result.
        pixels: values of an image, for the largest norm that a change in [0, 1] can have.
    """
    parts = []
    for header, searches in ((HEADER, False), (NORM_HEADER, True)):
        rows = []
        for key, of in results.items():
            contest = CONTESTS[key]
            if (contest.norm is not None) is searches:
                largest = 1.0 if contest.norm in (None, math.inf) else float(pixels) ** (1 / float(contest.norm or 1))
                rows += [row(contest, library, result, of[OURS], largest) for library, result in of.items()]
        if rows:
            parts.append(markdown(header, rows))
    return parts


def contest_results(weights: str, cases: int, keys: Sequence[str], out: Path) -> tuple[str, list[str]]:
    """Heading and tables of one of the weights; what is kept in `out` is not done again."""
    file, grey = WEIGHTS[weights]
    what: list[Problem] = []

    def load() -> Problem:
        if not what:
            what.append(problem(weights, cases))
        return what[0]

    common = {
        "weights": sha256([BUNDLE / "models" / file]),
        "config": sha256([BUNDLE / "configs" / "train.json"]),
        "data": sha256([data_folder() / "fundus_dr" / "dataset.json"]),
        "cases": cases,
        "grey": grey,
        "seed": SEED,
    }
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for key in keys:
        contest = CONTESTS[key]
        for library in dict.fromkeys((*contest.build, *PEERS)):
            peer = PEERS.get(library.split()[0])
            settings = {**common, "settings": contest.settings, "version": installed(peer) if peer else OURS}

            def run(contest: Contest = contest, library: str = library) -> dict[str, Any]:
                if library not in contest.build:
                    return {"error": "has no such attack"}
                return measure(load(), contest, library, grey / GREY, f"{weights}: {contest.name}, {library}")

            place = out / weights / f"{key}_{library.replace(' ', '-')}.json"
            results.setdefault(key, {})[library] = kept(place, settings, run)
    size = 3 * 320 * 320
    counts = [len(result["wrong"]) for of in results.values() for result in of.values() if "wrong" in result]
    heading = f"### `{file}`, eps {grey:g} grey levels, the first {max(counts)} cases that it gets right"
    return heading, tables(results, size)


def parse(options: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks strength", description=__doc__)
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=["standard"], help="default: standard")
    parser.add_argument("--attacks", nargs="+", choices=CONTESTS, default=list(CONTESTS), help="default: all")
    parser.add_argument("--cases", type=positive, default=CASES, help="at most (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="what is kept (default: %(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the file's two markers")
    arguments = parser.parse_args(options)
    if arguments.write and (arguments.cases != CASES or len(arguments.attacks) < len(CONTESTS)):
        parser.error("--write takes results only, neither --cases nor --attacks")
    return arguments


def main(options: list[str] | None = None) -> None:
    arguments = parse(options)
    if arguments.write:
        replace_region(arguments.write.read_text(encoding="utf-8"), "", BEGIN, END)
    given = sys.argv[2:] if options is None else options
    parts = ["`" + shlex.join(["python", "-m", "benchmarks", "strength", *given]) + "`", "\n".join(about())]
    out = arguments.out if arguments.cases == CASES else arguments.out / f"cases-{arguments.cases}"
    keys = [key for key in CONTESTS if key in arguments.attacks]
    for weights in arguments.weights:
        heading, found = contest_results(weights, arguments.cases, keys, out)
        parts += [heading, *found]
    text = "\n\n".join(parts)
    print(text)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        write_whole(arguments.write, replace_region(page, text, BEGIN, END), overwrite=True)


def about() -> list[str]:
    """What the numbers depend on."""
    versions = ", ".join(f"{name} {installed(distribution)}" for name, distribution in PEERS.items())
    budgets = "; ".join(f"{contest.name}: {contest.settings}" for contest in CONTESTS.values())
    return [*environment(), f"- {versions}", f"- seed {SEED}, batches of {BATCH}", f"- {budgets}"]
