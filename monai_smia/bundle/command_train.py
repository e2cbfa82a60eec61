# SPDX-License-Identifier: Apache-2.0
"""``monai-smia train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_smia.bundle.command_note import say_that_it_runs
from monai_smia.bundle.training import AdversarialTraining


def train(
    bundle: str,
    method: str | None = None,
    eps: Any = None,
    steps: int | None = None,
    dataset_dir: str | None = None,
    epochs: int | None = None,
    out: str | None = None,
    resume: bool = False,
    initial_weights: str | None = None,
    device: str | None = None,
    bounds: Any = None,
    seed: int | None = None,
    **overrides: Any,
) -> int:
    """Train a MONAI bundle adversarially, without a change to it.

    Checkpoints and weights go to --out; `monai-smia evaluate BUNDLE --weights OUT/model.pt` puts them to the test.

    Examples:
        monai-smia train bundles/hippocampus_mri_segmentation --dataset_dir Task04_Hippocampus
        monai-smia train my_bundle --method pgd --eps 4grey --steps 7 --epochs 20 --dataset_dir data
        monai-smia train my_bundle --method trades --eps 1% --train#dataloader#batch_size 8 --resume

    Args:
        bundle: folder of the bundle.
        method: pgd, smia, fast, free, trades or mart; left out, the bundle's own adversarial_train.json.
        eps: budget, such as 4grey or 10HU or 2/255; `monai-smia inspect` says which units there are.
        steps: of the attack; replays for free.
        dataset_dir: where the data are, if not where the bundle says.
        epochs: how many; left out, as many as the bundle trains (divided by the replays for free).
        out: folder of checkpoints and weights; adversarial_training/NAME here where nothing else is said.
        resume: go on with a training that was interrupted.
        initial_weights: file of weights to start from.
        device: such as cpu or cuda:0.
        bounds: lowest and highest value of the network's input, such as 0,1, where they cannot be read.
        seed: of the attacks' randomness.
        overrides: ids of the bundle's configuration (--train#dataloader#batch_size 8).
    """
    place = Path(out) if out is not None else Path("adversarial_training") / Path(bundle).resolve().name
    say_that_it_runs(bundle)
    with AdversarialTraining(
        bundle,
        method,
        eps,
        out=place.absolute(),
        steps=steps,
        resume=resume,
        epochs=epochs,
        dataset_dir=dataset_dir,
        initial_weights=initial_weights,
        device=device,
        bounds=bounds,
        seed=seed,
        overrides=overrides,
    ) as training:
        print(training.run())
    return 0
