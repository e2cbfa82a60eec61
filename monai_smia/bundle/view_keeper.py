# SPDX-License-Identifier: Apache-2.0
"""`ViewKeeper`: pictures of the few cases that suffered most, on disk, for the report's viewer."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.utils import CommonKeys

from monai_smia.attacks import AttackResult
from monai_smia.engines.records import CaseRecorder
from monai_smia.intensity import IntensityScale
from monai_smia.reports import CaseView
from monai_smia.reports.case_views import case_view
from monai_smia.reports.files import write_whole
from monai_smia.reports.schema import ViewIndexFile, file_in, validated
from monai_smia.reports.view_files import load_view, save_view


class ViewKeeper:
    """Keeps the views of the cases whose loss an attack raised most, with every run: which of them is the worst depends
    on the metric that one looks at, and is known when all cases are done.

    A watcher of `monai_smia.engines.CaseByCase`. Views are files, so that a run of any number of cases holds one batch
    in memory and a killed run finds them again. A view gives way to a worse one only once the batch of that one is in
    the log, so that a kill between the two loses none.

    Args:
        folder: where the files go.
        keep: how many cases.
        activation: of the head, see `case_view`.
        intensity, label_names, detections: see `case_view`.
        image_key, label_key: of the batch.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 4,
        activation: str = "softmax",
        intensity: IntensityScale | None = None,
        label_names: Sequence[str] | Mapping[Any, str] = (),
        detections: bool = False,
        image_key: str = CommonKeys.IMAGE,
        label_key: str = CommonKeys.LABEL,
    ) -> None:
        self.folder = Path(folder)
        self.count = keep
        self.detections = detections
        self.image_key, self.label_key = image_key, label_key
        self._arguments: dict[str, Any] = {
            "activation": activation,
            "intensity": intensity,
            "label_names": label_names,
            "detections": detections,
        }
        self._index = self.folder / "index.json"
        self._kept = _read_index(self._index)
        self.drop()

    def known(self, done: Sequence[str]) -> None:
        """Go on with the views of these cases alone: others are of a batch that a kill came before the log of."""
        cases = set(done)
        self._kept = {name: entry for name, entry in self._kept.items() if name in cases}

    def drop(self) -> None:
        """Forget the batch."""
        self._clean: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        self._worst: dict[str, list[tuple[float, str, Any, Any]]] = {}

    def saw(self, run: str, batch: Any, output: Any, forward: Any, result: AttackResult | None) -> None:
        """A run of the batch."""
        if self.count == 0:
            return
        shown = _of(output, CommonKeys.PRED) if self.detections or forward is None else forward
        if result is None:
            images = [_kept(image) for image in _of(batch, self.image_key)]
            labels = [_kept(label) for label in _of(batch, self.label_key)] or [None] * len(images)
            self._clean = images, labels, [_kept(item) for item in _samples(shown, len(images))]
            return
        at = self._worst.setdefault(run, [])
        outputs = _samples(shown, len(result.loss))
        for i, rise in enumerate((result.loss - result.clean_loss).abs().tolist()):
            if len(at) <= i:
                at.append((-1.0, "", None, None))
            if rise > at[i][0]:
                at[i] = rise, run, _kept(result.adversarial[i]), _kept(outputs[i])

    def keep(self, names: Sequence[str], recorder: CaseRecorder) -> None:
        """Every run of the batch is done: its cases are kept if they suffered enough."""
        for i, name in enumerate(names if self._clean[0] else ()):
            score = max((at[i][0] for at in self._worst.values()), default=0.0)
            worse = sum(entry["score"] >= score for other, entry in self._kept.items() if other != name)
            if worse < self.count:
                self._write(name, i, score)
        self.drop()

    def noted(self) -> None:
        """The batch kept last is in the log: those that are no longer among the worst go."""
        order = sorted(self._kept, key=lambda case: -self._kept[case]["score"])  # of equally bad ones the first stays
        gone = [self._kept.pop(case)["file"] for case in order[self.count :]]
        if gone:
            write_whole(self._index, json.dumps(self._kept), overwrite=True)
        for file in gone:
            (self.folder / file).unlink(missing_ok=True)

    def views(self, cases: Mapping[str, str], others: Sequence[str | Path] = ()) -> list[CaseView]:
        """The views kept, the worst first; of equally bad ones the first in `cases`.

        Args:
            cases: a case's file to its name in the report; what is not in there is left out.
            others: folders of other keepers, of the other shards of the same evaluation.
        """
        found = {case: (entry["score"], self.folder / entry["file"]) for case, entry in self._kept.items()}
        for folder in map(Path, others):
            kept = _read_index(folder / "index.json")
            found |= {case: (entry["score"], folder / entry["file"]) for case, entry in kept.items()}
        order = sorted((case for case in cases if case in found), key=lambda case: -found[case][0])
        return [dataclasses.replace(load_view(found[case][1]), case=cases[case]) for case in order[: self.count]]

    def _write(self, name: str, i: int, score: float) -> None:
        images, labels, outputs = self._clean
        worst = {at[i][1]: at[i] for at in self._worst.values() if at[i][1]}
        view = case_view(
            Path(name).name,
            images[i],
            {run: entry[2] for run, entry in worst.items()},
            clean_output=outputs[i],
            outputs={run: entry[3] for run, entry in worst.items()},
            label=labels[i],
            **self._arguments,
        )
        number = next(number for number in itertools.count() if not (self.folder / f"{number}.npz").exists())
        file = save_view(view, self.folder / f"{number}.npz").name
        old = self._kept.pop(name, None)  # of a case that is done anew
        self._kept[name] = {"file": file, "score": score}
        content = {"version": ViewIndexFile.VERSION, "cases": self._kept}
        write_whole(self._index, json.dumps(content), overwrite=True)
        if old is not None:
            (self.folder / old["file"]).unlink(missing_ok=True)


def _read_index(file: Path) -> dict[str, dict[str, Any]]:
    """Case to file and score; every file lies beside the index.

    Raises:
        ValueError: when it is no index, or names a file elsewhere.
    """
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of the encoding too
        raise ValueError(f"{file}: expected JSON; {error}") from error
    kept = validated(ViewIndexFile, content, file).cases
    for entry in kept.values():
        file_in(file.parent, entry.file)
    return {case: entry.model_dump() for case, entry in kept.items()}


def _of(batch: Any, key: str) -> list[Any]:
    """What each sample of a batch, decollated or not, has under a key; an empty list where it has nothing."""
    if isinstance(batch, (list, tuple)) and batch and isinstance(batch[0], Mapping):
        return [item[key] for item in batch] if key in batch[0] else []
    if isinstance(batch, Mapping):
        return list(batch[key]) if batch.get(key) is not None else []
    place = {CommonKeys.IMAGE: 0, CommonKeys.LABEL: 1}.get(key)
    return list(batch[place]) if place is not None and isinstance(batch, (list, tuple)) and len(batch) > place else []


def _samples(output: Any, size: int) -> list[Any]:
    """A network's output sample by sample, whatever it is made of."""
    if isinstance(output, torch.Tensor):
        return list(output)
    if isinstance(output, Mapping):
        parts = {key: _samples(value, size) for key, value in output.items()}
        return [{key: values[i] for key, values in parts.items()} for i in range(size)]
    if isinstance(output, (list, tuple)):
        if len(output) == size and not all(isinstance(item, torch.Tensor) and len(item) == size for item in output):
            return list(output)
        parts_of = [_samples(value, size) for value in output]
        return [[values[i] for values in parts_of] for i in range(size)]
    return [None] * size


def _kept(value: Any) -> Any:
    """Detached, on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _kept(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_kept(item) for item in value]
    return value
