"""An evaluation under attack overwrites nothing, and its rows are of the cases they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evaluators
import nibabel
import numpy as np
import pytest
from evaluators import Task
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.handlers import ConfusionMatrix, EarlyStopHandler, MetricsSaver, from_engine
from monai.transforms import Compose, SaveImaged

from monai_smia import AttackEvaluator, evaluate_robustness
from monai_smia.handlers import OverlaySaver

TASK = Task()


def test_files_and_trackers_see_the_clean_run_only(tmp_path: Path) -> None:
    """The file is to the byte that of an evaluation without attacks, and every handler is back in its place."""
    saver = MetricsSaver(str(tmp_path / "attacked"), metrics="*")
    trainer = Engine(lambda engine, batch: None)
    stop = EarlyStopHandler(1, score_function=lambda engine: -engine.state.metrics["val_dice"], trainer=trainer)
    evaluator = TASK.evaluator(val_handlers=[saver, stop])
    before = {event: list(handlers) for event, handlers in evaluator._event_handlers.items()}
    evaluate_robustness(evaluator, TASK.attacks(), progress=False)
    after = {event: list(handlers) for event, handlers in evaluator._event_handlers.items()}
    assert {event: handlers for event, handlers in after.items() if handlers} == {
        event: handlers for event, handlers in before.items() if handlers
    }
    plain = TASK.evaluator(val_handlers=[MetricsSaver(str(tmp_path / "plain"), metrics="*")])
    plain.run()
    files = [(tmp_path / name / "metrics.csv").read_text() for name in ("attacked", "plain")]
    assert files[0] == files[1]


@pytest.mark.parametrize("one", [True, False], ids=["one pass", "many"])
def test_images_are_not_saved_over(tmp_path: Path, one: bool) -> None:
    """Clean predictions are those of an evaluation without attacks; each attack's are in a folder of their own."""

    def saving(folder: str) -> dict[str, Any]:
        save = SaveImaged("pred", output_dir=str(tmp_path / folder), separate_folder=False, print_log=False)
        return {"postprocessing": Compose([TASK.postprocessing(), save])}

    def files(folder: str) -> dict[str, np.ndarray]:
        return {path.name: nibabel.load(path).get_fdata() for path in (tmp_path / folder).glob("*.nii.gz")}

    TASK.evaluator(**saving("plain")).run()
    if one:
        evaluator = TASK.evaluator(AttackEvaluator, attacks=TASK.attacks(), progress=False, **saving("attacked"))
        evaluator.run()
    else:
        evaluate_robustness(TASK.evaluator(**saving("attacked")), TASK.attacks(), progress=False)
    plain, clean = files("plain"), files("attacked")
    attacked = [files(f"attacked/under_attack/{name}") for name in TASK.attacks()]
    assert plain.keys() == clean.keys() == attacked[0].keys() == attacked[1].keys()
    assert len(plain) == len(TASK.items())
    for name, values in plain.items():
        np.testing.assert_array_equal(clean[name], values)
        assert all((other[name] != values).any() for other in attacked)


def test_a_shuffled_loader_is_refused() -> None:
    task = Task(cases=9)
    loader = DataLoader(Dataset(task.items()), batch_size=1, shuffle=True)
    evaluator = task.evaluator(val_data_loader=loader)
    with pytest.raises(ValueError, match="evaluator: its loader gives the cases in another order"):
        evaluate_robustness(evaluator, task.attacks(), progress=False)
    AttackEvaluator(
        evaluators.CPU, loader, task.network(), task.attacks(), progress=False, postprocessing=task.postprocessing()
    ).run()


def test_counts_behind_a_metric_are_no_column() -> None:
    recall = ConfusionMatrix(metric_name="recall", output_transform=from_engine(["pred", "label"]))
    evaluator = TASK.evaluator(additional_metrics={"val_recall": recall})
    report = evaluate_robustness(evaluator, TASK.attacks(), progress=False)
    assert "val_recall" in report.to_frame()
    assert "val_dice" in report.cases_frame()
    assert not [column for column in report.cases_frame() if column.startswith("val_recall")]


def test_a_report_before_the_first_run() -> None:
    evaluator = TASK.evaluator(AttackEvaluator, attacks=TASK.attacks())
    with pytest.raises(RuntimeError, match="report: expected a finished run"):
        evaluator.report()


def test_cases_of_the_same_file_name_are_told_apart(tmp_path: Path) -> None:
    """One folder per patient, the same file name in each: rows and pictures carry the folder."""
    pytest.importorskip("matplotlib")
    items = TASK.items()
    for i, item in enumerate(items):
        item["image"].meta["filename_or_obj"] = f"/data/patient_{i}/image.nii.gz"
    evaluator = TASK.evaluator(
        AttackEvaluator,
        attacks={"bim": TASK.attacks()["bim"]},
        val_data_loader=DataLoader(Dataset(items), batch_size=2),
        val_handlers=[OverlaySaver(tmp_path)],
        progress=False,
    )
    evaluator.run()
    assert len(list(tmp_path.glob("*.png"))) == len(items)
    cases = evaluator.report().cases_frame().query("attack == 'bim'")["case"].tolist()
    assert cases == [f"patient_{i}/image.nii.gz" for i in range(len(items))]
