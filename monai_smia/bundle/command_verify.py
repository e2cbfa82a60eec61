# SPDX-License-Identifier: Apache-2.0
"""``monai-smia verify``: what is left of a cohort's damage, once its files were elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from monai_smia.bundle.command_note import say_that_it_runs
from monai_smia.bundle.exporting import verify_cohort
from monai_smia.bundle.opening import open_bundle
from monai_smia.export.survival import survival_markdown


def verify(
    bundle: str,
    cohort: str,
    files: str | None = None,
    dataset_dir: str | None = None,
    weights: str | None = None,
    configs: Any = None,
    device: str | None = None,
    **overrides: Any,
) -> int:
    """Run a bundle on the files of an adversarial cohort, and compare with what its manifest says.

    Examples:
        monai-smia verify lung_ct_segmentation adversarial --files from_pacs

    Args:
        bundle: folder of the bundle.
        cohort: folder that monai-smia export wrote, or its manifest.json.
        files: another folder with the images under the same names, such as what an archive gave back.
        dataset_dir: folder of the data, where the bundle's configuration asks for one.
        weights: file of the weights, if not models/model.pt.
        configs: names of configuration files, if others than the bundle's usual ones.
        device: such as cpu or cuda:0.
        overrides: ids of the bundle's configuration (--validate#inferer#overlap 0.5).
    """
    manifest = Path(cohort).absolute()  # an open bundle is the working folder
    place = None if files is None else Path(files).absolute()
    say_that_it_runs(bundle)
    with open_bundle(
        bundle, configs=configs, overrides=overrides, dataset_dir=dataset_dir, weights=weights, device=device
    ) as opened:
        opened.require()
        found = verify_cohort(opened.evaluator(), manifest, loss_function=opened.loss(), files=place)
    print(survival_markdown(found.survival))
    for path in found.changed:
        print(f"changed: {path}")
    for failure in found.failures:
        print(f"failed: {failure.case} ({failure.stage}): {failure.error}", file=sys.stderr)
    return 1 if found.failures else 0
