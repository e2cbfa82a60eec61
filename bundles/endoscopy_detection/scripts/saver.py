# SPDX-License-Identifier: Apache-2.0
"""Found boxes as one JSON file per image, in the pixels of the file that was read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ignite.engine import Events

from monai_smia.reports.files import write_whole


class BoxSaver:
    """Writes ``<image>.json``: the boxes with their scores and classes, best first.

    ``{"image": file, "boxes": [{"box": [x1, y1, x2, y2], "class": name, "score": number}]}``, corners in pixels of the
    file that was read.

    Args:
        output_dir: folder of the files; made when missing. Existing files of these names are replaced.
        classes: names, in the order of the labels.
        min_score: boxes of a lower score, in [0, 1], are left out.
    """

    def __init__(self, output_dir: str | os.PathLike[str], classes: list[str], min_score: float = 0.3) -> None:
        self.output_dir = Path(output_dir)
        self.classes = classes
        self.min_score = min_score

    def attach(self, engine: Any) -> None:
        """Write after each batch."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Write the images of this batch."""
        for image, found in zip(engine.state.batch["image"], engine.state.output["pred"], strict=True):
            file, native = image.meta["filename_or_obj"], image.meta["spatial_shape"]
            scale = [float(n) / s for n, s in zip(native, image.shape[1:], strict=True)] * 2
            columns = (found[key].tolist() for key in ("boxes", "labels", "labels_scores"))
            boxes = [
                {
                    "box": [round(c * s, 1) for c, s in zip(box, scale, strict=True)],
                    "class": self.classes[label],
                    "score": round(score, 4),
                }
                for box, label, score in zip(*columns, strict=True)
                if score >= self.min_score
            ]
            boxes.sort(key=lambda entry: -entry["score"])
            text = json.dumps({"image": Path(file).name, "boxes": boxes}, indent=2)
            write_whole(self.output_dir / f"{Path(file).stem}.json", text, overwrite=True)
