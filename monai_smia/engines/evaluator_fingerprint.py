# SPDX-License-Identifier: Apache-2.0
"""`evaluator_parts`: what the numbers of an evaluation under attack depend on, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Subset

from monai_smia.attacks import Attack
from monai_smia.engines.file_digests import FileDigests
from monai_smia.engines.fingerprint import described, network_digest, structure, versions
from monai_smia.engines.guards import loaders, postprocessing_of
from monai_smia.engines.metric_state import metrics_of


def evaluator_parts(evaluator: Any, attacks: Mapping[str, Attack], keys: Mapping[str, Any]) -> dict[str, str]:
    """Name of a part to what it is, for a `Fingerprint`; the cases and their files are not in it.

    Args:
        evaluator: a `SupervisedEvaluator`. If it loads weights when it starts, they are those of that file.
        attacks: name to attack.
        keys: further arguments that change numbers, such as keys of the batch.
    """
    loader = evaluator.data_loader
    dataset = getattr(loader, "dataset", None)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    files = [owner.load_path for owner in loaders(evaluator)]
    weights = ", ".join(FileDigests().of(file) for file in files) if files else network_digest(evaluator.network)
    return {
        "weights": weights,
        "network": structure(evaluator.network),
        "preprocessing": described(getattr(dataset, "transform", None)),
        "inferer": described(getattr(evaluator, "inferer", None)),
        "postprocessing": described(postprocessing_of(evaluator)),
        "metrics": described(metrics_of(evaluator)),
        "evaluator": described(
            [type(evaluator), getattr(evaluator, "amp", None), getattr(evaluator, "prepare_batch", None)]
        ),
        "collation": described([getattr(loader, "collate_fn", None), getattr(loader, "batch_size", None)]),
        **{f"attack {name}": described(attack) for name, attack in attacks.items()},
        **{name: described(value) for name, value in keys.items()},
        "versions": versions(),
    }
