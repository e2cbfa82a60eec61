# SPDX-License-Identifier: Apache-2.0
"""`CaseMaker`: a case attacked on its file, written, and read again; and beside it the usual way."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.utils import CommonKeys

from monai_smia.attacks import Attack, AttackResult, GaussianNoise
from monai_smia.export.agreement import close
from monai_smia.export.carried_back import carried_back, input_slope
from monai_smia.export.deidentify import Deidentification
from monai_smia.export.fitted_attack import fitted_attack, one_eps
from monai_smia.export.manifest import IMAGES, MADE, Manifest, entry
from monai_smia.export.native import NativeCase, NativeResult, case_from
from monai_smia.export.replay import Approximation
from monai_smia.inferers import gradient_inferer
from monai_smia.reports.own_files import temporary_folder

IN_MEMORY, ON_DISK = "in memory", "on disk"
NAIVE_IN_MEMORY, NAIVE_ON_DISK = "naive, in memory", "naive, on disk"


@dataclasses.dataclass
class CaseMaker:
    """The runs of a case, see `monai_smia.engines.CaseByCase`.

    Args:
        evaluator: whose network, inferer and ``prepare_batch`` are used.
        loader: of the cases.
        attack: its `eps` in physical units of the files.
        relative: its `eps` is a share of each image's range.
        manifest: takes an entry for each copy.
        bpda: see `replay`.
        unit: of the files.
        seed: for the manifest.
        qualities: of JPEG that the files will be compressed with again; the attack is on the mean over them.
        as_png: copies of JPEG files are PNG.
        deidentify: takes what names the patient out of the copies and the manifest.
        label_key: of the data list.
    """

    evaluator: Any
    loader: Any
    attack: Attack
    relative: bool
    manifest: Manifest
    bpda: Mapping[str, Approximation | None]
    unit: str
    seed: int
    qualities: Sequence[int] | None = None
    as_png: bool = False
    deidentify: Deidentification | None = None
    label_key: str = CommonKeys.LABEL

    def __post_init__(self) -> None:
        self._written: tuple[NativeCase, NativeResult, Path, Any] | None = None
        self._naive: tuple[NativeCase, torch.Tensor, AttackResult] | None = None

    def __call__(self, run: str, engine: Any, batch: Any, generator: torch.Generator) -> tuple[Any, AttackResult]:
        """The batch of a run, and the attack's result on it."""
        index = engine.state.indices[0]
        makers: dict[str, Callable[[], tuple[Any, AttackResult]]] = {
            IN_MEMORY: lambda: self._attacked(index, batch, generator),
            ON_DISK: lambda: self._read(index),
            NAIVE_IN_MEMORY: lambda: self._attacked_naively(index, batch, generator),
            NAIVE_ON_DISK: lambda: self._read_naively(index),
        }
        return makers[run]()

    def _attacked(self, index: int, batch: Any, generator: torch.Generator) -> tuple[Any, AttackResult]:
        case = self._case(index)
        done = case.attack(self._fitted(case), generator=generator, qualities=self.qualities)
        with temporary_folder(self.manifest.file.parent / IMAGES) as place:
            made = place / self._name(index, case)
            case.stored.write(done.values, made)
            row = entry(
                self.loader.dataset.data[index],
                self.manifest.image_key,
                case.path,
                made,
                done.attack,
                unit=self.unit,
                seed=self.seed,
                largest_change=float((done.held - case.image[0].as_tensor().cpu()).abs().max()),
                clean_loss=float(done.result.clean_loss),
                loss=float(done.result.loss),
            )
            copy = self.manifest.publish(self._shown(row), made)
        attacked = case.at(done.values)
        self._written = case, done, copy, attacked
        followed = {name: attacked[name] for name in case.loaded.dependent if name in attacked}
        return {**batch, **followed}, dataclasses.replace(done.result, adversarial=attacked[self.manifest.image_key])

    def _read(self, index: int) -> tuple[Any, AttackResult]:
        assert self._written is not None
        case, done, target, attacked = self._written
        batch, result = self._seen(index, target, done.result)
        differ = [
            name
            for name, value in attacked.items()
            if isinstance(value, torch.Tensor) and name in batch and not close(value, batch[name])
        ]
        if differ:
            raise ValueError(
                f"{', '.join(map(str, differ))}: read again from the copy of {case.path.name} it differs from what was "
                "attacked; the preprocessing makes it in a way that was not followed"
            )
        return batch, result

    def _attacked_naively(self, index: int, batch: Any, generator: torch.Generator) -> tuple[Any, AttackResult]:
        """The attack on the network's input, at the same budget."""
        case = self._case(index)
        inputs, target = self._prepared(batch)
        if case.network.feed.key is None:
            raise ValueError(
                f"naive: {', '.join(map(repr, case.loaded.needed))} reach the network, made of one file; expected the "
                "image alone, whose change can be carried back"
            )
        slope = input_slope(case.loaded)
        eps = case.stored.lattice.whole_levels(one_eps(self._fitted(case))) * slope.abs()
        per_channel = eps.reshape(-1, *[1] * (inputs.ndim - 2))
        attack = fitted_attack(
            self.attack,
            float(eps[0]) if bool((eps == eps[0]).all()) else per_channel,
            (float(inputs.min()), float(inputs.max())),
            keep=False,
        )
        through = gradient_inferer(self.evaluator.inferer)
        result = attack(self.evaluator.network, inputs, target, inferer=through, generator=generator)
        change = (result.adversarial - inputs)[0].as_subclass(torch.Tensor)
        self._naive = case, change, result
        return {**batch, self.manifest.image_key: result.adversarial}, result

    def _read_naively(self, index: int) -> tuple[Any, AttackResult]:
        """Its change brought back to the file's grid, rounded, written and read."""
        assert self._naive is not None
        case, change, result = self._naive
        values = case.image[0].as_tensor().cpu() + carried_back(case.loaded, change)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / f"{case.name}{case.stored.suffix}"
            case.stored.write(values, target)
            return self._seen(index, target, result)

    def _seen(self, index: int, file: Path, result: AttackResult) -> tuple[Any, AttackResult]:
        """What the evaluator makes of a file."""
        dataset = self.loader.dataset
        again = dataset.transform({**dataset.data[index], self.manifest.image_key: str(file)})
        batch = self.loader.collate_fn([again])
        inputs, label = self._prepared(batch)
        attack = self.attack
        still = GaussianNoise(attack.loss_function, eps=0.0, criterion=attack.criterion, targeted=attack.targeted)
        seen = still(self.evaluator.network, inputs, label, inferer=self.evaluator.inferer)
        return batch, dataclasses.replace(result, adversarial=inputs, loss=seen.clean_loss, success=seen.clean_success)

    def _prepared(self, batch: Any) -> tuple[Any, Any]:
        inputs, label = self.evaluator.prepare_batch(batch, self.evaluator.state.device, False)[:2]
        return inputs, label

    def _name(self, index: int, case: NativeCase) -> str:
        """Of a copy: its number, and the name of its source unless that is not to be told."""
        name = "" if self.deidentify is not None and not self.deidentify.keep_link else f"_{case.name}"
        return f"{index:0{self._digits()}d}{name}{case.stored.suffix}"

    def _shown(self, row: dict[str, Any]) -> dict[str, Any]:
        """What the manifest tells."""
        if self.deidentify is None:
            return row
        return self.deidentify.row(row, self.manifest.image_key, MADE, self.label_key)

    def _digits(self) -> int:
        """Of the numbers in file names, so that they sort as the data do."""
        return max(4, len(str(len(self.loader.dataset) - 1)))

    def _case(self, index: int) -> NativeCase:
        return case_from(
            self.evaluator, self.loader, index, self.manifest.image_key, self.bpda, self.as_png, self.deidentify
        )

    def _fitted(self, case: NativeCase) -> Attack:
        """The attack with a budget in the file's own units."""
        if not self.relative:
            return self.attack
        values = case.image.as_tensor()
        return dataclasses.replace(self.attack, eps=one_eps(self.attack) * float(values.max() - values.min()))
