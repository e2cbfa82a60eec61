# SPDX-License-Identifier: Apache-2.0
"""Whether `AutoAttack` and `WorstOf` are on each case as strong as each of their attacks, and what they cost."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._ensemble_rows import HEADER, by_attack, ensemble_row
from benchmarks._kept import kept
from benchmarks._measure import data_folder
from benchmarks._units import ROOT, environment, sha256
from benchmarks.robustness_table import BUNDLES, budgets, markdown, replace_region
from monai_smia.attacks import APGD, PGD, SMIA, Attack, AutoAttack, WorstOf
from monai_smia.attacks.auto_members import members_for
from monai_smia.bundle import evaluate_under_attack, open_bundle
from monai_smia.reports.files import write_whole

BEGIN, END = "<!-- ensemble: begin -->", "<!-- ensemble: end -->"
OUT = Path("runs") / "ensemble"
PARTS = ("PGD", "SMIA", "APGD")
WORST, AUTO = "WorstOf", "AutoAttack"
REFUSED = "no: its attacks are chosen by classes, which a detector's heads are not read for"


@dataclass(frozen=True)
class Plan:
    """How a bundle is attacked.

    Args:
        classes: of a classifier's decision; ``None`` for a dense output, 0 for a detector.
        cases: the first ones of the validation split.
        steps, queries: of all attacks with gradients, and of `Square`.
    """

    classes: int | None
    cases: int = 8
    steps: int = 5
    queries: int = 20

    def members(self) -> tuple[str, ...]:
        """AutoAttack's, by name; none for a detector."""
        if self.classes == 0:
            return ()
        return members_for("dense", 2, False) if self.classes is None else members_for("standard", self.classes, False)


PLANS = {
    "chest_xray_classification": Plan(2),
    "chest_xray_segmentation": Plan(None),
    "endoscopy_detection": Plan(0),
    "endoscopy_polyp_segmentation": Plan(None),
    "fundus_dr_classification": Plan(3),
    "hippocampus_mri_segmentation": Plan(None),
    "lung_ct_segmentation": Plan(None, cases=1, steps=2, queries=2),
}


def attacks(plan: Plan, loss: Any, eps: float, bounds: Any, criterion: Any, smia: dict[str, Any]) -> dict[str, Attack]:
    """Every member alone, then the two ensembles, by name.

    Args:
        plan: of the bundle.
        loss, criterion: the bundle's.
        eps, bounds: in the network's units.
        smia: the bundle's options of SMIA.
    """
    common: dict[str, Any] = {"eps": eps, "bounds": bounds, "criterion": criterion}

    def parts() -> list[Attack]:
        return [
            PGD(loss, steps=plan.steps, **common),
            SMIA(loss, steps=plan.steps, **common, **smia),
            APGD(loss, steps=plan.steps, **common),
        ]

    found: dict[str, Attack] = dict(zip(PARTS, parts(), strict=True))
    found[WORST] = WorstOf(parts())
    members = plan.members()
    budget: dict[str, Any] = {**common, "steps": plan.steps, "queries": plan.queries}
    for name in members:
        found[name] = AutoAttack(loss, members=[name], **budget)
    if members:
        found[AUTO] = AutoAttack(loss, **budget)
    return found


def measure(name: str, plan: Plan, eps: float, folder: Path) -> dict[str, Any]:
    """The cases of the report; an interrupted one goes on in its folder."""
    data = BUNDLES[name].data
    where = None if data is None else (data_folder() / data).resolve()
    with open_bundle(
        ROOT / "bundles" / name,
        dataset_dir=where,
        cases=plan.cases,
        device="cpu",
        split="validation" if data is not None else None,
        overrides={"validate#dataloader#batch_size": 1},  # a sub-batch rounds otherwise than a batch
    ) as opened:
        intensity = opened.intensity()
        smia = opened.attack_options(["SMIA"]).get("SMIA", {})
        chosen = attacks(plan, opened.loss(), intensity.to_network(eps), intensity.bounds, opened.criterion(), smia)
        outcome = evaluate_under_attack(
            opened.evaluator(),
            chosen,
            intensity=intensity,
            loss_function=opened.loss(),
            postprocessing=opened.postprocessing(),
            views=0,
            out=folder,
            resume=True,
        )
    if outcome.failures:
        raise RuntimeError(f"{name}: {outcome.failures[0].case} failed: {outcome.failures[0].error}")
    columns = ("attack", "case", "success", "loss", "forward_passes", "backward_passes")
    return {"cases": [{key: row.get(key) for key in columns} for row in outcome.report.cases]}


def result_of(name: str, out: Path) -> tuple[float, str, dict[str, Any]]:
    """Budget, its unit and the cases of a bundle; what is kept in `out` is not done again."""
    plan, root = PLANS[name], ROOT / "bundles" / name
    key, sizes = budgets(name)
    eps, unit = sizes[len(sizes) // 2], key.removeprefix("eps_")
    settings = {
        "weights": sha256([root / "models" / "model.pt"]),
        "configs": sha256([root / "configs" / file for file in ("train.json", "evaluate.json", "attack.json")]),
        "eps": eps,
        "cases": plan.cases,
        "steps": plan.steps,
        "queries": plan.queries,
        "attacks": [*PARTS, *plan.members()],
    }
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    folder = (out / f"{name}-{digest}").resolve()
    return eps, unit, kept((out / f"{name}.json").resolve(), settings, lambda: measure(name, plan, eps, folder))


def rows_of(plan: Plan, title: str, cases: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The bundle's lines; that of AutoAttack says so where it is not for this bundle."""
    outcomes = by_attack(cases)
    rows = [ensemble_row(title, WORST, PARTS, outcomes)]
    members = plan.members()
    if not members:
        return [*rows, (title, AUTO, REFUSED, *[""] * (len(HEADER) - 3))]
    return [*rows, ensemble_row(title, AUTO, members, outcomes)]


def parse(options: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks ensemble", description=__doc__)
    parser.add_argument("--bundles", nargs="+", choices=PLANS, default=list(PLANS), help="default: all")
    parser.add_argument("--out", type=Path, default=OUT, help="what is kept (default: %(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the file's two markers")
    return parser.parse_args(options)


def main(options: list[str] | None = None) -> None:
    arguments = parse(options)
    if arguments.write:
        replace_region(arguments.write.read_text(encoding="utf-8"), "", BEGIN, END)
    rows: list[tuple[str, ...]] = []
    for name in PLANS:
        if name in arguments.bundles:
            eps, unit, result = result_of(name, arguments.out)
            plan = PLANS[name]
            title = f"{name}, {eps:g} {unit}, {plan.steps} steps, {plan.queries} queries"
            rows += rows_of(plan, title, result["cases"])
    given = sys.argv[2:] if options is None else options
    command = "`" + shlex.join(["python", "-m", "benchmarks", "ensemble", *given]) + "`"
    text = "\n\n".join([command, "\n".join(environment()), markdown(HEADER, rows)])
    print(text)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        write_whole(arguments.write, replace_region(page, text, BEGIN, END), overwrite=True)
