# SPDX-License-Identifier: Apache-2.0
"""The tables of the SMIA study, from its records."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks._study_attacks import WEIGHTS, SmiaReading, authors, readings, shown_once, stability_specs
from benchmarks._study_numbers import Measured, Values, interval, mean, paired, pooled, read
from benchmarks._study_victims import SUBJECTS
from benchmarks._study_views import VIEWS
from benchmarks._units import environment
from benchmarks.robustness_table import markdown

BEGIN, END = "<!-- {} tables: begin -->", "<!-- {} tables: end -->"
NOT_CHOSEN_ON = "lung_ct_segmentation"
"""Its only case is the test patient, so it is shown and has no say in any choice."""
PLAIN = ("GaussianNoise", "FGSM", "BIM-10", "BIM-15", "PGD-15", "MI-15", "TI-15", "APGD-15")
FIRST_DEFAULT = SmiaReading("perturbation", "kl", "loss", 1.0, 1.0)
Row = list[str]


def render(out: Path, names: Sequence[str], split: str, command: str) -> str:
    """Every table of a split, of everything that is measured, with what the numbers depend on."""
    measured = [found for found in (read(out, split, name) for name in names) if found.has("clean")]
    head = [f"`{command}`", "\n".join(environment()), described(measured)]
    if split == "test":
        return "\n\n".join([*head, *damage_section(measured, [spec.name for spec in shown_once("") if spec.kind])])
    best = best_of_all(measured)
    chosen = list(dict.fromkeys([*PLAIN, FIRST_DEFAULT.name, best.name, authors("", WEIGHTS[0]).name]))
    sections = (
        damage_section(measured, chosen),
        readings_section(measured),
        stability_section(measured),
        trace_section(measured, chosen),
        transfer_section(measured, chosen),
        later_section(measured, chosen),
    )
    return "\n\n".join([*head, *(part for section in sections for part in section)])


def described(measured: Sequence[Measured]) -> str:
    """Budget, cases and clean scores of every bundle."""
    rows = []
    for found in measured:
        subject, clean = SUBJECTS[found.name], found.column("clean", "score")
        other = found.column("clean", "transferred")
        budget = f"{subject.eps:g} {subject.unit}"
        rows.append([found.name, subject.task, budget, str(len(clean)), f"{mean(clean):.3f}", f"{mean(other):.3f}"])
    header = ["bundle", "task", "eps (Linf)", "cases", "clean score", "clean score, second network"]
    return markdown(header, rows)


def spelled(attack: str, found: Measured) -> str:
    """The attack's name in a bundle: a detector's divergence is its own."""
    return attack.replace("/ kl /", "/ boxes /") if SUBJECTS[found.name].task == "detection" else attack


def damage_section(measured: Sequence[Measured], attacks: Sequence[str]) -> list[str]:
    """Damage of the attacks, and its difference to BIM at the passes of SMIA."""
    rows, against = [], []
    for attack in attacks:
        values = [found.damage(spelled(attack, found)) for found in measured]
        rows.append([attack, passes(measured, attack), *map(with_interval, values)])
        if attack != "BIM-15":
            rival = [paired(value, found.damage("BIM-15")) for value, found in zip(values, measured, strict=True)]
            against.append([attack, passes(measured, attack), *map(signed, rival), overall(measured, rival)])
    names = [found.name for found in measured]
    return [
        "### Damage",
        "Score taken off, mean over cases [95 % bootstrap interval].",
        markdown(["attack", "passes", *names], rows),
        "The same minus BIM-15's, case by case. Bold: the interval of the difference leaves out 0. *All*: the mean of "
        f"the bundles but {NOT_CHOSEN_ON}, with its interval.",
        markdown(["attack", "passes", *names, "all"], against),
    ]


def ranked(measured: Sequence[Measured]) -> list[tuple[SmiaReading, list[Values]]]:
    """The readings, the one with the largest mean difference to BIM at its own passes first."""
    found = [(reading, versus_rival(measured, reading)) for reading in readings("segmentation")]
    return sorted(found, key=lambda row: -pooled(deciding(measured, row[1]))[0])


def best_of_all(measured: Sequence[Measured]) -> SmiaReading:
    """The first in the ranking that was measured on every bundle; a detector has no hard divergence."""
    return next(reading for reading, values in ranked(measured) if all(deciding(measured, values)))


def versus_rival(measured: Sequence[Measured], reading: SmiaReading) -> list[Values]:
    """Damage of a reading minus that of BIM at the same passes, by bundle."""
    return [paired(found.damage(spelled(reading.name, found)), found.damage(reading.rival)) for found in measured]


def deciding(measured: Sequence[Measured], values: Sequence[Values]) -> list[Values]:
    """Without the bundle whose case is the test patient."""
    return [value for value, found in zip(values, measured, strict=True) if found.name != NOT_CHOSEN_ON]


def readings_section(measured: Sequence[Measured]) -> list[str]:
    """Every reading against BIM at the same number of passes."""
    rows = [
        [reading.name, reading.rival, *map(signed, values), overall(measured, values)]
        for reading, values in ranked(measured)
    ]
    for weight in WEIGHTS:
        name = authors("", weight).name
        values = [paired(found.damage(name), found.damage("BIM-15")) for found in measured]
        rows.append([name, "BIM-15", *map(signed, values), overall(measured, values)])
    return [
        "### Every reading of SMIA against BIM at equal passes",
        "Damage minus the rival's, case by case; best first, the authors' preset last. Ten steps; weight 0 is BIM-10 "
        "itself, bit for bit. A detector has one divergence, its own, and stands under *kl*; *hard* is of the other "
        "bundles.",
        markdown(["reading", "rival", *(found.name for found in measured), "all"], rows),
    ]


def stability_section(measured: Sequence[Measured]) -> list[str]:
    """The three variances of the change, in eps squared."""
    names = [spec.name for spec in stability_specs("segmentation")]
    rows = []
    kinds: dict[str, Callable[[Measured, str], float]] = {
        "iterations": lambda found, attack: mean(found.column(attack, "over_iterations")),
        "restarts": lambda found, attack: mean(found.column(attack, "over_restarts")),
        "images": lambda found, attack: found.over_images(attack),
    }
    for kind, number in kinds.items():
        for attack in ("BIM-10", *names):
            if kind == "restarts" and attack == "BIM-10":
                continue
            values = [number(found, spelled(attack, found)) for found in measured]
            rows.append([kind, attack, *map(plain, values), plain(middle(values))])
    return [
        "### Stability: three variances",
        "Variance of the change over the iterations of a run, over three random starts, and over the images of a "
        "bundle (where they have one shape), averaged over voxels; in eps squared, so that 1 is the most a mean-free "
        "change can have.",
        markdown(["over", "attack", *(found.name for found in measured), "mean"], rows),
    ]


def trace_section(measured: Sequence[Measured], attacks: Sequence[str]) -> list[str]:
    """How far the prediction moves from step to step."""
    rows = []
    for attack in ("BIM-10", "MI-10", *(name for name in attacks if name.startswith("SMIA"))):
        traces = []
        for found in measured:
            cases = [row["kl"] for row in found.rows["first"].get(spelled(attack, found), {}).values()]
            if cases:
                traces.append(np.mean(cases, 0) / max(np.mean(cases, 0)[0], 1e-12))
        if traces:
            values = np.exp(np.mean(np.log(np.maximum(traces, 1e-12)), 0))
            rows.append([attack, *(f"{value:.2f}" for value in values)])
    header = ["attack", *(f"{step}-{step + 1}" for step in range(1, len(rows[0])))]
    return [
        "### The KL trace",
        "KL(f(x_t+1) || f(x_t)) from one iterate to the next over that of the first step; geometric mean over the "
        "bundles.",
        markdown(header, rows),
    ]


def transfer_section(measured: Sequence[Measured], attacks: Sequence[str]) -> list[str]:
    """Damage on the network that the attack has not seen."""
    header = ["made on", "attack", *(found.name for found in measured), "all"]
    rows = []
    for model in ("first", "second"):
        for attack in attacks:
            values = [
                found.damage(spelled(attack, found), model, "transferred") if found.rows[model] else {}
                for found in measured
            ]
            if any(values):
                rows.append([model, attack, *map(with_interval, values), overall(measured, values)])
    return [
        "### Transfer between two architectures",
        "Score taken off the other network, mean over cases [95 % bootstrap interval].",
        markdown(header, rows),
    ]


def later_section(measured: Sequence[Measured], attacks: Sequence[str]) -> list[str]:
    """What is left of the damage after smoothing, JPEG and resampling."""
    rows = []
    for attack in attacks:
        shares = [found.kept_share(spelled(attack, found)) for found in measured if found.name != NOT_CHOSEN_ON]
        for_all = [[share[view] for share in shares] for view in VIEWS]
        if attack != "GaussianNoise":
            rows.append([attack, *(f"{middle(values):.2f}" for values in for_all)])
    return [
        "### What is left after a later change",
        "Damage after the change (against the clean image changed the same way) over the damage before it; mean of the "
        f"bundles but {NOT_CHOSEN_ON}. Smoothing: Gaussian of one voxel; JPEG: quality 75, eight bits (slices of a "
        "volume); resampling: to half the size and back.",
        markdown(["attack", *VIEWS], rows),
    ]


def passes(measured: Sequence[Measured], attack: str) -> str:
    """Forward + backward passes of a case."""
    for found in measured:
        rows = found.rows["first"].get(spelled(attack, found), {})
        for row in rows.values():
            return f"{row['forward']} + {row['backward']}"
    return ""


def overall(measured: Sequence[Measured], values: Sequence[Values]) -> str:
    """Mean of the bundles that decide, with its interval."""
    center, low, high = pooled(deciding(measured, values))
    return "" if math.isnan(center) else marked(f"{center:+.4f}", low, high) + f" [{low:+.4f}..{high:+.4f}]"


def with_interval(values: Values) -> str:
    if not values:
        return ""
    low, high = interval(values)
    return f"{mean(values):.3f}" + ("" if math.isnan(low) else f" [{low:.3f}..{high:.3f}]")


def signed(values: Values) -> str:
    return marked(f"{mean(values):+.4f}", *interval(values)) if values else ""


def marked(text: str, low: float, high: float) -> str:
    """Bold where the interval leaves out 0."""
    return f"**{text}**" if low > 0 or high < 0 else text


def middle(values: Sequence[float]) -> float:
    """Mean of what is known; NaN where nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def plain(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"
