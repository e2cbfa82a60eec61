# SPDX-License-Identifier: Apache-2.0
"""`CaseRecorder`: what happened to every case, from the attacks' results and the metrics' details."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from monai_smia.attacks import Attack, AttackResult, GoalResult
from monai_smia.handlers.batch import case_files
from monai_smia.intensity import IntensityScale
from monai_smia.metrics import compute_perturbation_norm
from monai_smia.reports import CLEAN, RobustnessReport


def as_named(attacks: Mapping[str, Attack] | Sequence[Attack]) -> dict[str, Attack]:
    """Attacks by name; a sequence is named by class, numbered where a class comes twice.

    Raises:
        TypeError, ValueError: when there is none, when something else is among them, or when one is called "clean".
    """
    if isinstance(attacks, Attack) or not isinstance(attacks, (Mapping, Sequence)) or not attacks:
        raise ValueError(f"attacks: expected at least one, by name or in a sequence; got {attacks!r}")
    if not isinstance(attacks, Mapping):
        kinds = [type(attack).__name__ for attack in attacks]
        names = [
            f"{kind}_{kinds[:i].count(kind) + 1}" if kinds.count(kind) > 1 else kind for i, kind in enumerate(kinds)
        ]
        attacks = dict(zip(names, attacks, strict=True))
    for name, attack in attacks.items():
        if not isinstance(attack, Attack):
            raise TypeError(f"attacks: expected an Attack under {name!r}; got {type(attack).__name__}")
        if name == CLEAN:
            raise ValueError(f"attacks: {CLEAN!r} names the run without an attack; expected another name")
    return dict(attacks)


SIZES: dict[str, float | str] = {"largest_change": "inf", "l2_change": 2, "l1_change": 1, "changed_voxels": 0}
"""Column to norm of the perturbation, in the report's unit; the last is a count."""


class CaseRecorder:
    """Collects rows while an evaluation runs.

    Args:
        image_key: key of the image, for the case's file name.
        intensity: physical unit of the network's input, or ``None``.
    """

    def __init__(self, image_key: str, intensity: IntensityScale | None) -> None:
        self.image_key = image_key
        self.intensity = intensity
        self.names: list[str] = []
        self.checksums: list[bytes] = []
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.certificates: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}

    def reset(self) -> None:
        """Forget the last evaluation."""
        self.names, self.checksums, self.rows, self.certificates = [], [], {}, []
        self._numbers.clear()

    def begin_batch(self, batch: Any, checksums: Sequence[bytes] = ()) -> None:
        """Note the cases of the next batch, and the checksums of their clean images where runs are to be paired."""
        files = case_files(batch, self.image_key, start=len(self.names))
        self.names += [_numbered(file, self._numbers) for file in files]
        self.checksums += checksums

    def check_batch(self, attack: str, checksums: Sequence[bytes]) -> None:
        """The next batch of this attack begins with the clean images that the clean run had there.

        Names would not tell: those of images that have no file are running numbers, and a disk cache forgets files.

        Raises:
            ValueError: when it does not, so that rows would pair different cases.
        """
        start = len(self.rows.get(attack, ()))
        if start + len(checksums) > len(self.names):
            raise ValueError(
                f"evaluator: its loader gave {len(self.names)} cases in the clean run and more under {attack!r}; "
                "expected the same at every run, and no handler that ends it"
            )
        for i, checksum in enumerate(checksums, start):
            if checksum == self.checksums[i]:
                continue
            if checksum in self.checksums:
                wrong = "its loader gives the cases in another order at every run; expected shuffle=False"
                found = f"got {self.names[self.checksums.index(checksum)]} where {self.names[i]} was"
            else:
                wrong = (
                    "its loader gives other images at every run; expected shuffle=False and transforms without "
                    "randomness"
                )
                found = f"the image of {self.names[i]} is not the one of the clean run"
            raise ValueError(f"evaluator: {wrong}, so that clean and adversarial rows are of the same case; {found}")

    def check_run(self, attack: str) -> None:
        """The run of this attack, now over, had as many cases as the clean one.

        Raises:
            ValueError: when it had fewer.
        """
        if len(self.rows.get(attack, ())) < len(self.names):
            raise ValueError(
                f"evaluator: its loader gave {len(self.names)} cases in the clean run and "
                f"{len(self.rows.get(attack, ()))} under {attack!r}; expected a loader that can be read again"
            )

    def add(self, attack: str, image: torch.Tensor, result: AttackResult) -> None:
        """Note what an attack did to the batch begun last."""
        columns = {
            "clean_loss": result.clean_loss,
            "loss": result.loss,
            "clean_success": result.clean_success,
            "success": result.success,
            **{
                name: compute_perturbation_norm(image, result.adversarial, norm, self.intensity)
                for name, norm in SIZES.items()
            },
            "forward_passes": result.forward_passes,
            "backward_passes": result.backward_passes,
            "nonfinite_gradients": result.nonfinite_gradients,
        }
        if isinstance(result, GoalResult):
            unit = result.unit
            columns |= {f"clean_measured [{unit}]": result.clean_measured, f"measured [{unit}]": result.measured}
        lists = {name: value.tolist() for name, value in columns.items()}
        rows = self.rows.setdefault(attack, [])
        rows += [{name: values[i] for name, values in lists.items()} for i in range(len(result.loss))]

    def report(
        self, metrics: dict[str, dict[str, Any]], details: dict[str, dict[str, Any]], attacks: Mapping[str, Attack]
    ) -> RobustnessReport:
        """The report, from the aggregated metrics of every run and their details per case."""
        cases, names = [], short_names(self.names)
        for run in metrics:
            rows = self.rows.get(run, [{} for _ in self.names])
            for i, (name, row) in enumerate(zip(names, rows, strict=True)):
                cases.append({"attack": run, "case": name, **_of_case(details[run], i, len(self.names)), **row})
        unit = "network units" if self.intensity is None else self.intensity.unit
        described = {name: repr(attack) for name, attack in attacks.items()}
        short = dict(zip(self.names, names, strict=True))
        certificates = tuple({**row, "case": short[row["case"]]} for row in self.certificates)
        return RobustnessReport(metrics, tuple(cases), described, unit, certificates)


def short_names(files: list[str]) -> list[str]:
    """File names, with their folder where two would be the same, and a number where they still are.

    Example:
        >>> short_names(["/a/x/1.nii", "/a/y/1.nii", "/a/2.nii", "/b/z/3.png", "/c/z/3.png"])
        ['x/1.nii', 'y/1.nii', '2.nii', 'z/3.png', 'z/3.png (2)']
    """
    names = [Path(file).name for file in files]
    often = Counter(names)
    numbers: dict[str, int] = {}
    longer = [
        name if often[name] == 1 else "/".join(Path(file).parts[-2:]) for name, file in zip(names, files, strict=True)
    ]
    return [_numbered(name, numbers) for name in longer]


def unique_names(files: Sequence[str]) -> list[str]:
    """The names, numbered from the second of a kind on: several cases may come from one file.

    Example:
        >>> unique_names(["a.nii", "b.nii", "a.nii"])
        ['a.nii', 'b.nii', 'a.nii (2)']
    """
    numbers: dict[str, int] = {}
    return [_numbered(file, numbers) for file in files]


def labelled(files: Sequence[str], places: Sequence[int]) -> list[str]:
    """The files of a batch, numbered by their places where those are known, else within the batch.

    Args:
        files: of the cases.
        places: how many cases of its file come up to each; of no use where it has not one for each file.
    """
    if len(places) != len(files):
        return unique_names(files)
    return [file if place == 1 else f"{file} ({place})" for file, place in zip(files, places, strict=True)]


def _numbered(name: str, numbers: dict[str, int]) -> str:
    """The name, with a number where it was given before; `numbers` remembers."""
    numbers[name] = number = numbers.get(name, 0) + 1
    return name if number == 1 else _numbered(f"{name} ({number})", numbers)


def _of_case(details: dict[str, Any], index: int, cases: int) -> dict[str, float]:
    """The metrics of one case: the mean over its classes that are defined, and each class where there are several."""
    columns: dict[str, float] = {}
    for name, values in details.items():
        if values is None or len(values) != cases:
            continue
        value = torch.as_tensor(values[index]).double()
        if value.ndim > 1:  # counts behind a metric, such as a confusion matrix, not one value per class
            continue
        value = value.flatten()
        columns[name] = float(value[~value.isnan()].mean()) if not bool(value.isnan().all()) else float("nan")
        if len(value) > 1:
            columns.update({f"{name}_{k}": float(v) for k, v in enumerate(value)})
    return columns
