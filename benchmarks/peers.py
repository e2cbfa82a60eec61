# SPDX-License-Identifier: Apache-2.0
"""Speed and strength beside torchattacks, foolbox, ART and adversarial-library on the same work, in one run."""

from __future__ import annotations

import argparse
import gc
import os
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._kept import kept
from benchmarks._measure import installed, race, spread
from benchmarks._peers_attacks import PEERS, contests
from benchmarks._peers_tasks import PLANS, SEED, Plan, Task, classifier
from benchmarks._strength_attacks import OURS, Contest
from benchmarks._units import environment
from benchmarks.robustness_table import markdown, positive, replace_region
from benchmarks.strength import Counting
from monai_smia.reports.files import write_whole

BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
OUT = Path("runs") / "peers"
ROUNDS = 3
LIBRARIES = (OURS, *PEERS)
ROUNDING = 1e-4  # of eps and of the range, for budgets and bounds that hold up to float32
HEADER = ("attack", "library", "passes", "CPU time / ours", "time / ours", "gain / ours", "{}, %", "budget and bounds")


def judged(task: Task, contest: Contest, library: str) -> tuple[dict[str, Any], Callable[[], Any] | None]:
    """What the library's image does by our own measure, and the attack again to be timed; or the error and ``None``."""
    if library not in contest.build:
        return {"error": "has no such attack"}, None
    eps = task.budgets[contest.ball]
    torch.manual_seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002
    counting = Counting(task.network).eval()
    try:
        adversarial = contest.build[library](counting, eps, task.classes)(task.image.clone(), task.label.clone(), SEED)
        adversarial = torch.as_tensor(adversarial).detach()
        if adversarial.shape != task.image.shape or not bool(adversarial.isfinite().all()):
            raise RuntimeError("it returned no finite image of the same shape")
    except Exception as error:  # what a peer cannot do is a row of the table
        if library == OURS:
            raise
        return {"error": first_line(error)}, None
    finally:
        task.network.eval()
    norm = torch.linalg.vector_norm((adversarial - task.image).flatten(1), ord=contest.norm or contest.ball, dim=1)
    low, high = task.bounds
    outside = max(low - float(adversarial.min()), float(adversarial.max()) - high, 0.0)
    passes = {"forward": counting.forwards / len(norm), "backward": counting.backwards / len(norm)}
    run = contest.build[library](task.network, eps, task.classes)
    found = {**task.judge(adversarial), "norm": norm.tolist(), "outside": outside, **passes}
    image, label = task.image[: task.timed], task.label[: task.timed]
    return found, lambda: run(image.clone(), label.clone(), SEED)


def first_line(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0].replace("|", "/")[:110]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def measure(task: Task, contest: Contest, rounds: int, title: str) -> dict[str, Any]:
    """Every library's result, with the times of `rounds` interleaved rounds where there is somebody to compare with."""
    results: dict[str, Any] = {}
    runs: dict[str, Callable[[], Any]] = {}
    for library in LIBRARIES:
        results[library], run = judged(task, contest, library)
        if run is not None:
            runs[library] = run
    loads = [os.getloadavg()[0]] if hasattr(os, "getloadavg") else []
    gc.freeze()  # the libraries' modules, through which every timed run would search for garbage first
    try:
        rounds = rounds if len(runs) > 1 else 0
        times = race({contest.name: list(runs.values())}, rounds, title)[contest.name]
    finally:
        gc.unfreeze()
    loads += [os.getloadavg()[0]] if loads else []
    task.network.eval()
    for i, library in enumerate(runs):
        results[library]["wall"] = [row[i].wall for row in times]
        results[library]["cpu"] = [row[i].cpu for row in times]
    return {
        "clean": task.judge(task.image),
        "cases": len(task.image),
        "timed": task.timed,
        "eps": task.budgets[contest.ball],
        "range": task.bounds[1] - task.bounds[0],
        "load": loads,
        "libraries": results,
    }


def kept_promises(found: dict[str, Any], eps: float | None, width: float) -> str:
    """Whether the image stays in its budget and in the intensities' range, and if not, how far it is out."""
    faults = []
    if eps is not None and max(found["norm"]) > eps * (1 + ROUNDING):
        faults.append(f"changes by {max(found['norm']) / eps:.4g} eps")
    if found["outside"] > width * ROUNDING:
        faults.append(f"leaves the range by {found['outside']:.3g}")
    return f"**{', '.join(faults)}**" if faults else "kept"


def median_norm(found: dict[str, Any]) -> float:
    """Infinite where half of the cases stand or more."""
    return statistics.median(
        norm if success else float("inf") for norm, success in zip(found["norm"], found["success"], strict=True)
    )


def strength(contest: Contest, found: dict[str, Any], ours: dict[str, Any], clean: dict[str, Any]) -> str:
    """Gain in mean loss, or the median norm of a search, over ours; of ours the value itself."""
    if contest.norm is not None:
        value, own, mark = median_norm(found), median_norm(ours), "norm "
        if value == float("inf"):
            return f"finds {sum(found['success'])} of {len(found['success'])}"
    else:
        before = statistics.mean(clean["loss"])
        value, own = (statistics.mean(of["loss"]) - before for of in (found, ours))
        mark = ""
    if found is ours:
        return f"{mark}1 ({value:.4g})"
    return f"{mark}{value / own:.3f}" if 0 < own < float("inf") else f"{mark}({value:.4g})"


def rows(contest: Contest, result: dict[str, Any]) -> list[tuple[str, ...]]:
    """One line for each library."""
    ours = result["libraries"][OURS]
    lines: list[tuple[str, ...]] = []
    for library, found in result["libraries"].items():
        if "error" in found:
            lines.append((contest.name, library, found["error"], "", "", "", "", ""))
            continue
        seconds = [f"1 ({statistics.median(ours[clock]):.3g} s)" if ours[clock] else "" for clock in ("cpu", "wall")]
        if library != OURS:
            seconds = [
                spread([a / b for a, b in zip(found[clock], ours[clock], strict=True)]) for clock in ("cpu", "wall")
            ]
        lines.append(
            (
                contest.name,
                f"**{library}**" if library == OURS else library,
                f"{found['forward']:.0f} + {found['backward']:.0f}",
                *seconds,
                strength(contest, found, ours, result["clean"]),
                f"{100 * statistics.mean(found['left']):.0f}",
                kept_promises(found, result["eps"] if contest.norm is None else None, result["range"]),
            )
        )
    return lines


def task_part(key: str, arguments: argparse.Namespace, out: Path) -> tuple[str, list[float]]:
    """Heading, clean numbers and table of one task, and the load that it was measured under."""
    plan: Plan = PLANS[key]
    loaded: list[Task] = []

    def load() -> Task:
        if not loaded:
            loaded.append(plan.small() if arguments.small else plan.load(out))
        return loaded[0]

    versions = {name: installed(name) for name in ("torch", "monai", *PEERS.values())}
    facts = {} if arguments.small else plan.facts()
    lines: list[tuple[str, ...]] = []
    loads: list[float] = []
    budgets = {}
    for name, contest in contests(plan.bounds).items():
        if name not in plan.attacks or name not in arguments.attacks:
            continue
        settings = {**facts, "versions": versions, "settings": contest.settings, "rounds": arguments.rounds}
        title = f"{plan.title}: {contest.name}"

        def run(contest: Contest = contest, title: str = title) -> dict[str, Any]:
            return measure(load(), contest, arguments.rounds, title)

        result = kept(out / key / f"{name}.json", settings, run)
        lines += rows(contest, result)
        loads += result["load"]
        if contest.norm is None:
            budgets[contest.ball] = result["eps"]
    if not lines:
        return "", []
    clean = result["clean"]
    left = "mean Dice" if key == "segmentation" else "right"
    eps = ", ".join(f"{'Linf' if norm == float('inf') else 'L2'} {value:.4g}" for norm, value in budgets.items())
    about = f"{result['cases']} cases, timed on {result['timed']}; clean: {left} "
    about += f"{100 * statistics.mean(clean['left']):.0f} %, loss {statistics.mean(clean['loss']):.4f}"
    about += f"; eps: {eps or 'none'}"
    if key in ("3d", "range") and not arguments.small:
        trained = classifier(out)
        about += f"; the network gets {trained['right']} of {trained['of']} validation crops right"
    header = [name.format(left) for name in HEADER]
    return "\n\n".join((f"### {plan.title}", f"{about}.", markdown(header, lines))), loads


def parse(options: list[str] | None) -> argparse.Namespace:
    keys = list(contests((0.0, 1.0)))
    parser = argparse.ArgumentParser(prog="python -m benchmarks peers", description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=PLANS, default=list(PLANS), help="default: all")
    parser.add_argument("--attacks", nargs="+", choices=keys, default=keys, help="default: all")
    parser.add_argument("--rounds", type=positive, default=ROUNDS, help="of the timing (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="random networks, to see that it runs; nothing to quote")
    parser.add_argument("--out", type=Path, default=OUT, help="what is kept (default: %(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the file's two markers")
    arguments = parser.parse_args(options)
    part = len(arguments.tasks) < len(PLANS) or len(arguments.attacks) < len(keys)
    if arguments.write and (arguments.small or part):
        parser.error("--write takes results only, neither --small nor --tasks nor --attacks")
    return arguments


def about(arguments: argparse.Namespace, loads: list[float]) -> list[str]:
    """What the numbers depend on."""
    versions = ", ".join(f"{name} {installed(distribution)}" for name, distribution in PEERS.items())
    load = f"{min(loads):.1f}..{max(loads):.1f}" if loads else "unknown"
    settings = "; ".join(f"{c.name}: {c.settings}" for c in contests((0.0, 1.0)).values())
    lines = [*environment(), f"- load while it was measured: {load}", f"- {versions}"]
    if installed("visdom").startswith("("):
        lines.append("- adv-lib imports visdom for its plots; it is not installed, so an empty module stands in for it")
    small = "; small: random networks, no numbers to quote" if arguments.small else ""
    return [*lines, f"- {settings}", f"- seed {SEED}, median [lowest..highest] of {arguments.rounds} rounds{small}"]


def main(options: list[str] | None = None) -> None:
    arguments = parse(options)
    if arguments.write:
        replace_region(arguments.write.read_text(encoding="utf-8"), "", BEGIN, END)
    given = sys.argv[2:] if options is None else options
    out = arguments.out / "small" if arguments.small else arguments.out
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [task_part(key, arguments, out) for key in arguments.tasks]
    finally:
        torch.set_num_threads(threads)
    loads = [load for _, of in found for load in of]
    command = "`" + shlex.join(["python", "-m", "benchmarks", "peers", *given]) + "`"
    text = "\n\n".join([command, "\n".join(about(arguments, loads)), *(part for part, _ in found if part)])
    print(text)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        write_whole(arguments.write, replace_region(page, text, BEGIN, END), overwrite=True)
