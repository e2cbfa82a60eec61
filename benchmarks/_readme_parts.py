# SPDX-License-Identifier: Apache-2.0
"""Parts of README and of the lung bundle's page, from the numbers of `benchmarks.readme_numbers`."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from monai_smia.reports import CLEAN, Reading, RobustnessReport
from monai_smia.reports.readout import read_report
from monai_smia.reports.summary_text import summary_sentences

README, PAGE = Path("README.md"), Path("bundles") / "lung_ct_segmentation" / "docs" / "README.md"
CURVE = Path("docs") / "images" / "lung_ct_curve.svg"
ALL = ("SMIA", "BIM", "PGD", "MIFGSM", "SegPGD", "CosPGD", "GaussianNoise")
LARGE = ("SMIA", "BIM", "PGD", "CosPGD", "GaussianNoise")
SHORT = ("SMIA", "PGD", "GaussianNoise")
_ALIKE = 0.005  # a difference of Dice that is none

Numbers = dict[str, Any]


def run_of(numbers: Numbers, name: str, eps: int, seed: int = 0) -> dict[str, float]:
    """What one run gave; `KeyError` where it is not measured."""
    return dict(numbers["runs"][f"{name}_{eps}HU_seed{seed}"])


def span(numbers: Numbers, name: str, eps: int) -> str:
    """The mean Dice over the lungs: of seed 0, and its range over the seeds where there are several that differ."""
    values = [run_of(numbers, name, eps, seed)["mean"] for seed in range(_seeds(numbers, name, eps))]
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return f"{values[0]:.3f}" if low == high else f"{values[0]:.3f} ({low} to {high} over {len(values)} seeds)"


def quickstart_table(numbers: Numbers) -> str:
    """The table of README."""
    head = "| attack | mean Dice | left lung | right lung | largest change | forward, backward passes |"
    lines = [head, "|:--|--:|--:|--:|--:|--:|"]
    clean = numbers["clean"]
    lines.append(f"| clean | {clean['mean']:.3f} | {clean['left']:.3f} | {clean['right']:.3f} |  |  |")
    for name in SHORT:
        for eps in (5, 20, 50):
            own = run_of(numbers, name, eps)
            cells = [span(numbers, name, eps), f"{own['left']:.3f}", f"{own['right']:.3f}", f"{eps} HU", _passes(own)]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quickstart_words(numbers: Numbers) -> str:
    """What the table shows, by rule: what noise does, what is left, and which of SMIA and PGD does more."""
    clean = numbers["clean"]["mean"]
    noise = min(run_of(numbers, "GaussianNoise", eps)["mean"] for eps in (5, 20, 50))
    first = (
        "Noise of the same size does nothing."
        if clean - noise <= _ALIKE
        else f"Noise of the same size leaves {noise:.3f}."
    )
    left = [min(run_of(numbers, name, eps)["mean"] for name in SHORT) for eps in (20, 50)]
    return (
        f"{first} At 20 HU the stronger attack leaves a mean Dice of {left[0]:.2f} of {clean:.2f}, at 50 HU "
        f"{left[1]:.2f}. " + _compared(numbers, "SMIA", "PGD", (5, 20, 50)) + " Each number is of one patient."
    )


def curve_alt(numbers: Numbers) -> str:
    """The figure, with what it shows in words."""
    clean = f"{numbers['clean']['mean']:.2f}"
    ends = [f"{run_of(numbers, name, 50)['mean']:.2f}" for name in ("SMIA", "PGD", "GaussianNoise")]
    words = (
        f"Mean Dice of the lungs over the largest change in HU: SMIA and PGD bring it from {clean} to {ends[0]} and "
        f"{ends[1]} at 50 HU, noise to {ends[2]}"
    )
    return f"![{words}]({CURVE.as_posix()})"


def summary(numbers: Numbers) -> str:
    """The summary of the report of these runs, as `monai-smia evaluate` writes it."""
    return "> " + summary_sentences(read_report(report_of(numbers), Reading()))


def table(names: Sequence[str], sizes: Sequence[int], passes: bool) -> Callable[[Numbers], str]:
    """A table of the bundle's page."""

    def made(numbers: Numbers) -> str:
        head = ["attack", *(["passes forward, backward"] if passes else []), *(f"{eps} HU" for eps in sizes)]
        lines = ["| " + " | ".join(head) + " |", "|:--" + "|--:" * (len(head) - 1) + "|"]
        for name in names:
            own = [run_of(numbers, name, eps) for eps in sizes]
            cells = [name, *([_passes(own[0])] if passes else [])]
            for eps, run in zip(sizes, own, strict=True):
                cells.append(f"{span(numbers, name, eps)}; {run['left']:.3f}, {run['right']:.3f}")
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    return made


def page_words(numbers: Numbers) -> str:
    """What the page's tables show, by rule."""
    clean = numbers["clean"]["mean"]
    at_20 = {name: run_of(numbers, name, 20)["mean"] for name in ALL}
    least = min(at_20, key=at_20.__getitem__)
    verdict = "no attack halves" if at_20[least] > clean / 2 else f"{least} halves"
    return (
        f"**At 20 HU {verdict} the Dice of this network.** The strongest of the table, {least}, leaves "
        f"{at_20[least]:.3f} of {clean:.3f}. " + _compared(numbers, "SMIA", "BIM", (2, 5, 10, 20, 50))
    )


def report_of(numbers: Numbers) -> RobustnessReport:
    """A report of the quickstart's runs, for its figure and its summary."""
    case, rows = "lung1_image.nii.gz", []
    rows.append({"attack": CLEAN, "case": case, "val_mean_dice": numbers["clean"]["mean"]})
    attacks = {}
    for name in SHORT:
        for eps in (5, 20, 50):
            run = f"{name}_{eps}HU"
            attacks[run] = f"{name}(eps={eps / 1400!r})"
            own = {"val_mean_dice": run_of(numbers, name, eps)["mean"], "largest_change": float(eps)}
            rows.append({"attack": run, "case": case, **own})
    metrics = {row["attack"]: {"val_mean_dice": row["val_mean_dice"]} for row in rows}
    return RobustnessReport(metrics, tuple(rows), attacks, "HU")


def curve_digest(numbers: Numbers) -> str:
    """Of what the figure is drawn from; it stands in the figure."""
    return hashlib.sha256(json.dumps(report_of(numbers).cases, sort_keys=True).encode()).hexdigest()


def curve(numbers: Numbers) -> bytes:
    """The figure as SVG."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "lung_ct_curve"}):
        drawn = report_of(numbers).figure("curve")
        drawn.savefig(buffer, format="svg", metadata={"Date": None, "Description": curve_digest(numbers)})
    return buffer.getvalue()


PARTS: dict[tuple[Path, str], Callable[[Numbers], str]] = {
    (README, "quickstart table"): quickstart_table,
    (README, "quickstart words"): quickstart_words,
    (README, "quickstart curve"): curve_alt,
    (README, "quickstart summary"): summary,
    (PAGE, "table to 20 HU"): table(ALL, (2, 5, 10, 20), passes=True),
    (PAGE, "table from 50 HU"): table(LARGE, (50, 100), passes=False),
    (PAGE, "words"): page_words,
}


def between(text: str, name: str) -> str:
    """What stands between the markers of a part.

    Raises:
        ValueError: when they are not there, once.
    """
    found = _pattern(name).findall(text)
    if len(found) != 1:
        raise ValueError(f"expected the markers of {name!r} once; got them {len(found)} times")
    return str(found[0][1])


def write_parts(numbers: Numbers, root: Path) -> list[str]:
    """Write every part whose runs are there, and the figure; the names of those left out."""
    left = []
    for (file, name), made in PARTS.items():
        try:
            content = made(numbers)
        except KeyError as error:
            left.append(f"{file}: {name}, which needs {error}")
            continue
        text = (root / file).read_text(encoding="utf-8")
        between(text, name)
        new = _pattern(name).sub(lambda found, content=content: found[1] + content + found[3], text)  # type: ignore
        (root / file).write_text(new, encoding="utf-8")
    (root / CURVE).write_bytes(curve(numbers))
    return left


def _pattern(name: str) -> re.Pattern[str]:
    word = re.escape(name)
    return re.compile(rf"(<!-- {word}: made by `make readme` -->\n)(.*?)(\n<!-- end of {word} -->)", re.DOTALL)


def _seeds(numbers: Numbers, name: str, eps: int) -> int:
    count = 0
    while f"{name}_{eps}HU_seed{count}" in numbers["runs"]:
        count += 1
    return max(1, count)


def _passes(run: dict[str, float]) -> str:
    return f"{run['forward']:.0f}, {run['backward']:.0f}"


def _compared(numbers: Numbers, one: str, other: str, sizes: Sequence[int]) -> str:
    """Where one attack does more than another, and where they are alike; ranges over seeds that overlap are alike."""
    said: dict[str, list[str]] = {}
    for eps in sizes:
        ranges = []
        for name in (one, other):
            values = [run_of(numbers, name, eps, seed)["mean"] for seed in range(_seeds(numbers, name, eps))]
            ranges.append((min(values), max(values)))
        (low, high), (other_low, other_high) = ranges
        overlap = low <= other_high + _ALIKE and other_low <= high + _ALIKE
        verdict = "alike" if overlap else "less" if low > other_high else "more"
        said.setdefault(verdict, []).append(str(eps))
    words = {"alike": f"{one} and {other} do the same", "more": f"{one} does more damage than {other}"}
    words["less"] = f"{one} does less damage than {other}"
    return " ".join(f"{words[verdict]} at {_listed(found)} HU." for verdict, found in said.items())


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
