# SPDX-License-Identifier: Apache-2.0
"""`OverlaySaver`: pictures of what each attack did."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from monai.utils import CommonKeys

from monai_smia.handlers.attack_events import AttackEvents
from monai_smia.handlers.batch import CLEAN_SUFFIX, case_files
from monai_smia.intensity import IntensityScale
from monai_smia.reports.case_views import geometry
from monai_smia.reports.figures import overlay
from monai_smia.reports.files import write_whole

SUFFIXES = re.compile(r"(\.[A-Za-z]\w*){1,2}$")  # .png, .nii.gz; not the last number of a DICOM UID


class OverlaySaver:
    """Writes one PNG per case and attack: clean, adversarial, difference, both predictions.

    Volumes with an affine are shown as radiologists do: the patient's left on the viewer's right.

    For an `AttackEvaluator` whose batches are dictionaries and whose postprocessing leaves one-hot or single-channel
    predictions; needs matplotlib (the extra ``report``).

    Args:
        folder: where the files ``<case>_<attack>.png`` go; existing ones of these names are replaced.
        image_key, pred_key, label_key: keys of batch and output.
        intensity: shows images in its physical unit; ``None`` shows network units.
        max_cases: how many cases are drawn, the first ones; ``None`` for all.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        image_key: str = CommonKeys.IMAGE,
        pred_key: str = CommonKeys.PRED,
        label_key: str = CommonKeys.LABEL,
        intensity: IntensityScale | None = None,
        max_cases: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.image_key = image_key
        self.pred_key = pred_key
        self.label_key = label_key
        self.intensity = intensity
        self.max_cases = max_cases
        self._owners: dict[str, tuple[str, int]] = {}  # name to the file and the number of the case that has it

    def attach(self, engine: Any) -> None:
        """Draw after each attack.

        Args:
            engine: an `AttackEvaluator`.
        """
        engine.add_event_handler(AttackEvents.ATTACK_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Draw the cases of this batch."""
        state = engine.state
        cases = zip(state.batch, state.output, state.clean_output, strict=True)
        for number, (item, output, clean) in enumerate(cases, start=state.first_case):
            if self.max_cases is not None and number >= self.max_cases:
                return
            name = self._name(case_files([item], self.image_key, start=number)[0], number)
            picture = overlay(
                self._physical(item[self.image_key + CLEAN_SUFFIX]),
                self._physical(item[self.image_key]),
                clean[self.pred_key],
                output[self.pred_key],
                output.get(self.label_key),
                title=f"{name}: {state.attack_name}",
                unit="" if self.intensity is None else self.intensity.unit,
                orientation=geometry(item[self.image_key])[1] or geometry(item[self.image_key + CLEAN_SUFFIX])[1],
            )
            write_whole(self.folder / f"{name}_{state.attack_name}.png", picture, overwrite=True)

    def _name(self, file: str, number: int) -> str:
        """The case's file name without its ending; with its folder's where another case has that name already.

        Several cases may be of one file, such as slices of a volume: from the second on they have their number, too.
        """
        name = SUFFIXES.sub("", Path(file).name)
        if self._owners.setdefault(name, (file, number))[0] != file:
            name = f"{Path(file).parent.name}_{name}"
        if self._owners.setdefault(name, (file, number)) != (file, number):
            name = f"{name}_{number}"
        return name

    def _physical(self, image: torch.Tensor) -> torch.Tensor:
        image = torch.as_tensor(image).cpu()
        return image if self.intensity is None else self.intensity.value_to_physical(image)
