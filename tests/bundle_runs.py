"""Running the bundles of `bundle_rows` on `tiny_data`, as users run them but in this process."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_rows import Row
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism


def own_scripts(patch: pytest.MonkeyPatch, row: Row) -> None:
    """Let `scripts` be this bundle's, whatever another test imported under that name."""
    patch.syspath_prepend(str(row.root))
    for name in [name for name in sys.modules if name == "scripts" or name.startswith("scripts.")]:
        patch.delitem(sys.modules, name)


def workflow(row: Row, *names: str, kind: str = "train", **override: Any) -> ConfigWorkflow:
    """The bundle's configs as a workflow, ready to run: what `flow.parser` gives is what will run."""
    flow = ConfigWorkflow(
        config_file=[str(row.root / "configs" / name) for name in names],
        meta_file=str(row.root / "configs" / "metadata.json"),
        logging_file=str(row.root / "configs" / "logging.conf"),
        workflow_type=kind,
        bundle_root=str(row.root),
        **override,
    )
    flow.initialize()
    return flow


def finished(flow: ConfigWorkflow) -> ConfigParser:
    """Run a workflow, and give the parser that holds what it made."""
    flow.run()
    flow.finalize()
    return flow.parser


@dataclass(frozen=True)
class Trained:
    """What two iterations of a bundle's training left.

    Attributes:
        row: the bundle.
        data: its tiny data set.
        models: where its checkpoints are.
        start: the weights that it started from.
        parser: what ran; None while it has not.
    """

    row: Row
    data: Path
    models: Path
    start: dict[str, torch.Tensor]
    parser: ConfigParser | None = None

    def workflow(self, *names: str, **override: Any) -> ConfigWorkflow:
        """Configs that begin with train.json, on the tiny data; ready to run."""
        output = self.models.parent / "eval"
        where = {"dataset_dir": str(self.data), "ckpt_dir": str(self.models), "output_dir": str(output)}
        return workflow(self.row, *names, **{**where, **self.row.small, **override})

    def run(self, *names: str, **override: Any) -> ConfigParser:
        """The same, run."""
        return finished(self.workflow(*names, **override))

    def infer(self, output: Path, **override: Any) -> list[Path]:
        """Run inference.json on the images of the tiny data: the files that it wrote, and that were read."""
        where = {"dataset_dir": str(self.data / self.row.images), "ckpt_dir": str(self.models)}
        override = {**where, "output_dir": str(output), **self.row.infer, **override}
        finished(workflow(self.row, "inference.json", kind="infer", **override))
        return sorted(output.iterdir())


def train_tiny(row: Row, folder: Path) -> Trained:
    """Write the data, and train for two iterations from weights that are kept."""
    row.data(folder / "data")
    (folder / "models").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        own_scripts(patch, row)
        torch.manual_seed(1)
        start = ConfigParser(row.config("train.json")).get_parsed_content("network_def").state_dict()
        torch.save(start, folder / "start.pt")
        trained = Trained(row, folder / "data", folder / "models", start)
        more = {"initial_weights": str(folder / "start.pt"), "epochs": 1, "save_every": 1}
        parser = trained.run("train.json", **more)
    set_determinism(None)
    return Trained(row, folder / "data", folder / "models", start, parser)
