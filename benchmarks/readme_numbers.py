# SPDX-License-Identifier: Apache-2.0
"""The quickstart's numbers: measured, kept in a file, and written into README, figure and the lung bundle's page.

``make readme`` measures what is not in the file, or is of other weights, data or attacks, and writes the parts between
markers. ``tests/test_readme_numbers.py`` notices when the file or a part is stale.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks._readme_parts import write_parts
from monai_smia.bundle import open_bundle
from monai_smia.bundle.grid import attack_grid
from monai_smia.engines import CaseByCase
from monai_smia.reports import CLEAN

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "lung_ct_segmentation"
NUMBERS = BUNDLE / "docs" / "robustness.json"

QUICKSTART = {"names": ("SMIA", "PGD", "GaussianNoise"), "eps": (5, 20, 50)}
LARGE = {"names": ("SMIA", "BIM", "PGD", "CosPGD", "GaussianNoise"), "eps": (50, 100)}
SMALL = {"names": ("SMIA", "BIM", "PGD", "MIFGSM", "SegPGD", "CosPGD", "GaussianNoise"), "eps": (2, 5, 10, 20)}
CHAOTIC = 50
"""HU from which on a number depends on the last bits, so that its range over seeds stands beside it."""

SEEDS = (0, 1, 2)
STEPS = 10
PROBE = {"names": ("SMIA", "BIM", "PGD", "SegPGD", "CosPGD", "MIFGSM"), "eps": (20,), "steps": 2}
"""Two steps on a crop, which a test can run again in seconds: another default of an attack gives another loss."""

PROBE_TOLERANCE = 1e-3  # relative; other machines add in another order

Key = tuple[str, int, int]  # attack, eps in HU, seed


def wanted() -> Iterator[Key]:
    """Every run, what README needs first."""
    for part in (QUICKSTART, LARGE, SMALL):
        seeds = [(eps, seed) for eps in part["eps"] for seed in (SEEDS if int(eps) >= CHAOTIC else SEEDS[:1])]
        yield from ((str(name), int(eps), seed) for eps, seed in seeds for name in part["names"])


def made_of() -> dict[str, Any]:
    """What the numbers depend on: digests of the bundle's files, and every attack with its arguments."""
    files = ["models/model.pt", "sample/lung1_image.nii.gz", "sample/lung1_lungs.nii.gz"]
    files += [f"configs/{name}.json" for name in ("train", "evaluate", "attack")]
    digests = {name: hashlib.sha256(_evaluated(BUNDLE / name)).hexdigest() for name in files}
    with open_bundle(BUNDLE) as opened:
        attacks = _attacks(opened, sorted({name for name, _, _ in wanted()}), [5], STEPS)
    return {"files": digests, "attacks": {name: repr(attack) for name, attack in attacks.items()}}


def _evaluated(file: Path) -> bytes:
    """The content of a file, of a configuration without how a training is kept, which no evaluation reads."""
    if file.suffix != ".json":
        return file.read_bytes()
    content = json.loads(file.read_text(encoding="utf-8"))
    for name in ("resume_state", "resume_saver"):
        content.get("train", {}).pop(name, None)
    return json.dumps(content, sort_keys=True).encode()


def probe() -> dict[str, float]:
    """Attack to the loss after two steps at 20 HU on a crop of the sample."""
    with open_bundle(BUNDLE) as opened:
        network, item = opened.network(), opened.evaluator().data_loader.dataset[0]
        image = torch.as_tensor(item["image"])[None, :, 32:64, 32:64, 16:32].float()
        label = torch.as_tensor(item["label"])[None, :, 32:64, 32:64, 16:32]
        attacks = _attacks(opened, PROBE["names"], PROBE["eps"], int(PROBE["steps"]))
        network.eval()
        return {
            name.split("_")[0]: float(attack(network, image, label, generator=torch.Generator().manual_seed(0)).loss)
            for name, attack in attacks.items()
        }


def differences(numbers: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What the kept numbers are of that is not what there is now."""
    kept, found = numbers.get("made_of", {}), []
    for kind in ("files", "attacks"):
        old, new = kept.get(kind, {}), now["made_of"][kind]
        found += [f"{kind}: {name}" for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    before = numbers.get("probe", {})
    for name, value in now["probe"].items():
        if abs(before.get(name, float("inf")) - value) > PROBE_TOLERANCE * abs(value):
            found.append(f"two steps of {name}: {before.get(name)}, now {value}")
    return found


def measure(numbers: dict[str, Any], save: Any) -> None:
    """Run what is not there yet, one seed and budget at a time."""
    todo = [key for key in dict.fromkeys(wanted()) if _name(key) not in numbers["runs"]]
    groups: dict[tuple[int, int], list[str]] = {}
    for name, eps, seed in todo:
        groups.setdefault((eps, seed), []).append(name)
    for (eps, seed), names in groups.items():
        with open_bundle(BUNDLE) as opened:
            run = CaseByCase(
                opened.evaluator(),
                _attacks(opened, names, [eps], STEPS),
                intensity=opened.intensity(),
                seed=seed,
                diagnose=False,
                progress=False,
            )
            rows = {row["attack"]: row for row in run.run().cases}
        for name in names:
            numbers["runs"][_name((name, eps, seed))] = _numbers(rows[f"{name}_{eps}HU"])
        numbers["clean"] = _numbers(rows[CLEAN])
        save()
        print(f"{eps} HU, seed {seed}: {', '.join(names)}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    """Measure and write; ``--write-only`` measures nothing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks readme_numbers", description=__doc__)
    parser.add_argument("--write-only", action="store_true", help="write the parts from the numbers that are there")
    parser.add_argument("--numbers", type=Path, default=NUMBERS, help="file of the numbers")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # another number of threads adds in another order, which tells from 50 HU on
    numbers: dict[str, Any] = json.loads(given.numbers.read_text()) if given.numbers.is_file() else {}
    if not given.write_only:
        now = {"made_of": made_of(), "probe": probe()}
        if differences(numbers, now):
            numbers = {"version": 1, **now, "clean": {}, "runs": {}}
        measure(numbers, lambda: given.numbers.write_text(json.dumps(numbers, indent=1) + "\n"))
    for part in write_parts(numbers, ROOT):
        print(f"left as it was: {part}", file=sys.stderr)


def _attacks(opened: Any, names: Any, eps: Any, steps: int) -> dict[str, Any]:
    return attack_grid(names, eps, opened.loss(), intensity=opened.intensity(), steps=steps)


def _name(key: Key) -> str:
    return f"{key[0]}_{key[1]}HU_seed{key[2]}"


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    names = {"val_mean_dice": "mean", "val_dice_left": "left", "val_dice_right": "right"}
    names |= {"forward_passes": "forward", "backward_passes": "backward"}
    return {short: round(float(row[name]), 6) for name, short in names.items() if name in row}
