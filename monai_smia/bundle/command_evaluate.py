# SPDX-License-Identifier: Apache-2.0
"""``monai-smia evaluate``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from monai_smia.bundle.attack_options import read_attack_options
from monai_smia.bundle.command_note import say_that_it_runs
from monai_smia.bundle.grid import known_attacks
from monai_smia.bundle.honoured import refuse_ignored
from monai_smia.bundle.opening import OpenBundle, open_bundle
from monai_smia.bundle.provenance import file_checksum
from monai_smia.bundle.shard_call import write_call
from monai_smia.bundle.torchrun import shard_of_process, take_own_device
from monai_smia.bundle.under_attack import ATTACKS, Outcome, attack_names, evaluate_under_attack
from monai_smia.engines.shards import Shard

OWN_ATTACKS = "the attacks are those of the bundle's configs/attack.json; expected --attacks or --eps as well"


def evaluate(
    bundle: str,
    attacks: Any = None,
    eps: Any = None,
    steps: int | None = None,
    cases: Any = None,
    dataset_dir: str | None = None,
    weights: str | None = None,
    out: str | None = None,
    resume: bool = False,
    retry_failed: bool = False,
    shard: Any = None,
    configs: Any = None,
    device: str | None = None,
    bounds: Any = None,
    tolerance: float | None = None,
    seed: int = 0,
    certify: Any = None,
    certify_samples: int | None = None,
    views: int = 4,
    no_doctor: bool = False,
    options: Any = None,
    **more: Any,
) -> int:
    """Evaluate a MONAI bundle clean and under attack, and write a report.

    The bundle is used as it is: its data, network, inferer, postprocessing and metrics. Nothing is written into it.
    Without --attacks and --eps a bundle that has its own configs/attack.json is attacked as that says; any other by
    SMIA, PGD and noise at budgets that suit its intensities. Started by torchrun, every process takes a shard.

    Examples:
        monai-smia evaluate bundles/lung_ct_segmentation
        monai-smia evaluate spleen_ct_segmentation --dataset_dir Task09_Spleen --attacks SMIA,PGD --eps 2HU,5HU
        monai-smia evaluate my_bundle --eps 4/255 --cases 20 --resume
        monai-smia evaluate my_bundle --eps 1% --steps 20 --validate#inferer#overlap 0.5
        monai-smia evaluate my_bundle --eps 2HU --cases 5 --certify 50HU
        monai-smia evaluate my_bundle --eps 2HU --out report --resume --shard 2/8

    Args:
        bundle: folder of the bundle.
        attacks: names, such as SMIA,PGD; `monai-smia attacks` lists them.
        eps: budgets, such as 2HU,5HU or 4/255 or 1% or 8grey or 0.1SD; `monai-smia inspect` says which units there are.
        steps: of iterated attacks; 10 where nothing else is said.
        cases: how many cases, the first ones; or file names, separated by commas.
        dataset_dir: where the data are, if not where the bundle says.
        weights: file of the weights, if not models/model.pt.
        out: folder of the report; robustness/NAME here where nothing else is said.
        resume: go on with an evaluation that was interrupted.
        retry_failed: go on, and try the cases again that failed.
        shard: i/n, the i-th of n shares of the cases, from 1; all have the same --out, and the last makes the report.
        configs: names of configuration files, if others than the bundle's usual ones.
        device: such as cpu or cuda:0.
        bounds: lowest and highest value of the network's input, such as 0,1, where they cannot be read.
        tolerance: error of a regression from which on an attack succeeded.
        seed: of the attacks' randomness, and of the certificates'.
        certify: noise's standard deviation, such as 20HU, to certify the clean images under; none where not said.
        certify_samples: noisy copies of each image, each a pass through the network, and a tenth as many before; 1000.
        views: how many cases the report shows pictures of.
        no_doctor: do not look for reasons to distrust the numbers.
        options: JSON or YAML file of arguments that some attacks have to themselves, such as a clinical goal:
            {"PGD": {"goal": {"_target_": "monai_smia.attacks.ShiftVolume", "structure": 1, "by": 0.3}}}.
        more: arguments of attacks (--norm 2) and ids of the bundle's configuration (--validate#inferer#overlap 0.5).
    """
    call = {
        name: value
        for name, value in locals().items()
        if name not in ("out", "resume", "retry_failed", "shard", "more")
    }
    fields = {field for fields in known_attacks().values() for field in fields}
    shared = {name: value for name, value in more.items() if name in fields}
    overrides = {name: value for name, value in more.items() if name not in fields}
    given = read_attack_options(options)
    if certify is None:
        refuse_ignored("nothing is certified without --certify", certify_samples=certify_samples)
    if shard is None and (shard := shard_of_process()) is not None:
        take_own_device()
    shard = None if shard is None else Shard.of(shard)
    asked = attacks is not None or eps is not None or shared or given
    own = not asked and (Path(bundle) / "configs" / "attack.json").is_file()
    if own and steps is not None:
        with open_bundle(bundle, configs=configs, overrides=overrides, dataset_dir=dataset_dir) as looked_at:
            own = looked_at.attack_config is not None
        overrides |= {"steps": steps} if own else {}
    place = Path(out) if out is not None else Path("robustness") / Path(bundle).resolve().name
    place = place.absolute()  # an open bundle is the working folder
    if shard is not None:
        write_call(place, {**call, **more})
    say_that_it_runs(bundle)
    with open_bundle(
        bundle,
        configs=configs,
        overrides=overrides,
        dataset_dir=dataset_dir,
        weights=weights,
        cases=cases,
        device=device,
    ) as opened:
        opened.require()
        common: dict[str, Any] = {
            "out": place,
            "resume": resume,
            "retry_failed": retry_failed,
            "shard": shard,
            "seed": seed,
            "certify": None if certify is None else _certify(certify, certify_samples),
            "views": views,
            "diagnose": not no_doctor,
            "label_names": opened.label_names(),
            "postprocessing": opened.postprocessing(),
            "about": about(opened, sys.argv),
            "title": f"{opened.root.name} under attack",
        }
        if own and opened.attack_config is not None:
            refuse_ignored(OWN_ATTACKS, bounds=bounds, tolerance=tolerance)
            outcome = evaluate_under_attack(
                opened.evaluator(),
                opened.attacks(),
                intensity=opened.intensity(),
                loss_function=opened.loss(),
                **common,
            )
        else:
            image, names = opened.image_format(), attack_names(attacks or list(given) or ATTACKS)
            outcome = evaluate_under_attack(
                opened.evaluator(),
                names,
                eps,
                options={**opened.attack_options(names), **given},
                steps=steps,
                loss_function=opened.loss(),
                criterion=opened.criterion(),
                tolerance=tolerance,
                preprocessing=opened.preprocessing(),
                bounds=bounds,
                modality=image.get("modality"),
                value_range=image.get("value_range"),
                **common,
                **shared,
            )
    return _told(outcome)


def about(opened: OpenBundle, command: list[str]) -> dict[str, str]:
    """What a report says of a bundle."""
    version = opened.metadata.get("version")
    words = {"bundle": opened.root.name + (f" {version}" if version else "")}
    if opened.weights_file is not None:
        words["weights"] = f"{opened.weights_file.name}, SHA-256 {file_checksum(opened.weights_file)}"
    shown = ["monai-smia", *command[1:]]
    return words | {"command": " ".join(map(shlex.quote, shown))}


def _certify(sigma: Any, samples: int | None) -> dict[str, Any]:
    samples = 1000 if samples is None else samples
    return {"sigma": sigma, "samples": samples, "first_samples": max(1, samples // 10)}


def _told(outcome: Outcome) -> int:
    """Print what a person wants to know; the exit status."""
    if outcome.page is None:
        print(f"This shard is done; the others of {outcome.folder}: {', '.join(outcome.missing)}")
        print("The last one makes the report; if it could not, `monai-smia merge` does.")
        return _failed(outcome)
    print(outcome.report.to_markdown())
    if outcome.report.findings == ():
        print("\nThe checks of the attacks' strength found nothing to object to.")
    print(f"\nReport: {outcome.page}")
    return _failed(outcome)


def _failed(outcome: Outcome) -> int:
    """Print what failed; the exit status."""
    for failure in outcome.failures:
        print(f"failed: {failure.case} ({failure.stage}): {failure.error}", file=sys.stderr)
    return 1 if outcome.failures else 0
