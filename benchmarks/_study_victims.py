# SPDX-License-Identifier: Apache-2.0
"""Networks and cases of the SMIA study: a bundle's own network or the second one, its cases, and their scores."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data.box_utils import box_iou
from monai.metrics import compute_dice
from monai.networks import one_hot

from benchmarks._measure import data_folder
from benchmarks._second_networks import SECOND
from benchmarks._units import ROOT, sha256
from monai_smia.attacks.detection import DetectionDivergence
from monai_smia.bundle import open_bundle
from monai_smia.inferers import gradient_inferer

SEED = 0
FIRST, SECOND_NETWORK = "first", "second"


@dataclass(frozen=True)
class Subject:
    """A bundle in the study.

    Args:
        task: ``"classification"``, ``"segmentation"`` or ``"detection"``.
        data: sub-folder of the shared images; ``None`` for the sample that the bundle ships.
        eps: budget, in the unit of the bundle's `IntensityScale`.
        unit: as in the tables.
    """

    task: str
    data: str | None
    eps: float
    unit: str


SUBJECTS = {
    "chest_xray_classification": Subject("classification", "chest_xray", 1, "grey level"),
    "chest_xray_segmentation": Subject("segmentation", "chest_xray", 4, "grey levels"),
    "endoscopy_detection": Subject("detection", "endoscopy_polyp", 0.5, "grey level"),
    "endoscopy_polyp_segmentation": Subject("segmentation", "endoscopy_polyp", 1, "grey level"),
    "fundus_dr_classification": Subject("classification", "fundus_dr", 1, "grey level"),
    "hippocampus_mri_segmentation": Subject("segmentation", "hippocampus_mri", 1, "% of the range"),
    "lung_ct_segmentation": Subject("segmentation", None, 20, "HU"),
}


@dataclass(frozen=True)
class Victim:
    """A network with what attacking it takes.

    Attributes:
        name: of the bundle.
        model: ``"first"`` or ``"second"``.
        weights: digest of the file of weights.
        network, loss, criterion, inferer: as the bundle's evaluator has them, windows with their exact gradient.
        eps, bounds: in network units.
    """

    name: str
    model: str
    weights: str
    evaluator: Any
    network: Any
    loss: Any
    criterion: Any
    inferer: Any
    eps: float
    bounds: tuple[float, float]

    @property
    def subject(self) -> Subject:
        """What the study knows of the bundle."""
        return SUBJECTS[self.name]

    def boxes_divergence(self) -> Any:
        """A detector's divergence; of other networks None."""
        return DetectionDivergence(self.loss) if self.subject.task == "detection" else None

    def count(self) -> int:
        """Number of cases."""
        return len(self.evaluator.data_loader.dataset)

    def case(self, index: int) -> tuple[torch.Tensor, Any]:
        """Image and target of one case, as a batch of one."""
        loader = self.evaluator.data_loader
        batch = loader.collate_fn([loader.dataset[index]])
        image, target = self.evaluator.prepare_batch(batch, torch.device("cpu"), False)[:2]
        return image, target

    @torch.no_grad()
    def predict(self, image: torch.Tensor) -> Any:
        """The network's raw output at a batch of one."""
        return self.inferer(image, self.network)

    def score(self, prediction: Any, target: Any) -> float:
        """How right a prediction is, in [0, 1]: Dice, the true class's probability, or `box_score`."""
        if self.subject.task == "detection":
            return box_score(self.network, prediction, target)
        if self.subject.task == "classification":
            return class_probability(prediction, target)
        return dice(prediction, target)


def dice(prediction: torch.Tensor, target: torch.Tensor) -> float:
    """Mean Dice of the structures, background left out; logits of one channel are a sigmoid's, else a softmax's."""
    channels = prediction.shape[1]
    if channels == 1:
        hard, true = prediction > 0, target > 0.5
    else:
        hard, true = (one_hot(labels, channels) for labels in (prediction.argmax(1, keepdim=True), target))
    return float(compute_dice(hard, true, include_background=channels == 1, ignore_empty=False).mean())


def class_probability(logits: torch.Tensor, target: torch.Tensor) -> float:
    """The probability that a classifier gives the true class."""
    label = int(torch.as_tensor(target).reshape(-1)[0])
    if logits.shape[1] == 1:
        return float(torch.sigmoid(logits[0, 0] if label else -logits[0, 0]))
    return float(torch.softmax(logits[0], 0)[label])


def box_score(heads: Any, prediction: Any, target: Sequence[dict[str, torch.Tensor]], iou: float = 0.5) -> float:
    """Mean over the true boxes of the best score of a box that overlaps it enough; 0 for one that is missed."""
    found = heads.detections(prediction)[0]
    true = target[0][heads.detector.target_box_key]
    scores = found[heads.detector.pred_score_key]
    if len(true) == 0:
        return 1.0 - float(scores.max()) if len(scores) else 1.0
    if len(scores) == 0:
        return 0.0
    overlaps = torch.as_tensor(box_iou(true, found[heads.detector.target_box_key].to(true))) >= iou
    return float(torch.where(overlaps, scores.to(true)[None], 0.0).amax(1).mean())


def chosen_cases(total: int, count: int) -> list[int]:
    """The cases that are measured, drawn once: more of them begin with the same ones."""
    return random.Random(SEED).sample(range(total), total)[:count]


def second_weights(out: Path, name: str) -> Path:
    """Where the trained second network of a bundle lies."""
    return out / "second" / name / "model.pt"


@contextmanager
def opened(name: str, model: str, out: Path, split: str) -> Iterator[Victim]:
    """A bundle's network of the study, with its cases of `split`.

    Raises:
        FileNotFoundError: when the second network has not been trained.
    """
    subject = SUBJECTS[name]
    overrides: dict[str, Any] = {}
    weights = None
    if model == SECOND_NETWORK:
        overrides["network_def"] = SECOND[name].network_def
        weights = second_weights(out, name).resolve()
        if not weights.is_file():
            raise FileNotFoundError(f"{weights}: the second network of {name} is not trained; run the study for it")
    with open_bundle(
        ROOT / "bundles" / name,
        overrides=overrides,
        weights=weights,
        dataset_dir=None if subject.data is None else (data_folder() / subject.data).resolve(),
        split=None if subject.data is None else split,
        device="cpu",
    ) as bundle:
        evaluator = bundle.evaluator()
        intensity = bundle.intensity()
        assert bundle.weights_file is not None
        yield Victim(
            name,
            model,
            sha256([bundle.weights_file]),
            evaluator,
            evaluator.network.eval(),
            bundle.loss(),
            bundle.criterion(),
            gradient_inferer(evaluator.inferer),
            float(intensity.to_network(subject.eps)),
            intensity.bounds,
        )
