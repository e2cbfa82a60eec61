# SPDX-License-Identifier: Apache-2.0
"""A training that was killed and resumed has the weights of one that was not, to the bit; another one is refused."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path
from typing import Any

import bundle_layouts
import numpy as np
import pytest
import torch
from bundle_layouts import LOSS, STATS, TRANSFORMS, save_data
from ignite.engine import Events

from monai_smia.bundle import training_checkpoints
from monai_smia.bundle.training import AdversarialTraining
from monai_smia.engines.folder_lock import FolderInUse

EPS = "5intensity"
LAST = 4  # early stopping ends the training there


def config() -> dict[str, Any]:
    """Everything that draws or counts: dropout, shuffling, random transforms of MONAI, numpy and Python.

    A schedule that is no component of the text, too, and early stopping after three epochs without a better score.
    """
    given = bundle_layouts.train_config()
    given["imports"] += ["$import numpy", "$import random"]
    given["network_def"] = {
        "_target_": "monai.networks.blocks.Convolution",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "norm": "BATCH",
        "dropout": 0.3,
    }
    given["early"] = {
        "_target_": "EarlyStopHandler",
        "patience": 3,
        "score_function": "$lambda engine: float(engine.state.epoch == 1)",
    }
    given["initialize"] = ["$monai.utils.set_determinism(seed=123)", "$@early.set_trainer(@train#trainer)"]
    train = given["train"]
    train["random"] = [
        {"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.5, "spatial_axis": 0},
        {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.7, "std": 0.1},
        {
            "_target_": "Lambdad",
            "keys": "image",
            "func": "$lambda x: x + 0.1 * numpy.random.rand() - 0.1 * random.random()",
        },
        {**TRANSFORMS[2], "a_max": 1, "clip": True},
    ]
    train["dataset"] = {
        "_target_": "DataLoader",
        "dataset": {
            "_target_": "CacheDataset",
            "data": "$[{'image': i, 'label': l} for i, l in zip(@images, @labels)]",
            "transform": {"_target_": "Compose", "transforms": [*TRANSFORMS, *train["random"]]},
            "progress": False,
        },
        "batch_size": 2,
        "shuffle": True,
    }
    schedule = "$torch.optim.lr_scheduler.ExponentialLR(@optimizer, 0.8)"
    train["handlers"] = [STATS, {"_target_": "LrScheduleHandler", "lr_scheduler": schedule}, "@early"]
    train["trainer"]["train_handlers"] = "@train#handlers"
    given["loss"] = LOSS
    return given


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    bundle_layouts.write(tmp_path / "bundle", {"train.json": config()})
    save_data(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def training(place: Path, method: str = "pgd", **arguments: Any) -> AdversarialTraining:
    epochs = 12 if method == "free" else 6  # two replays make half the epochs
    given = {"eps": EPS, "steps": 2, "out": place / "out", "dataset_dir": place / "data", "epochs": epochs, "seed": 3}
    return AdversarialTraining(place / "bundle", method, **{**given, **arguments})


def weights(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)


def killed(place: Path, method: str, iteration: int) -> None:
    """Two iterations make an epoch; nothing of the process is left."""
    with training(place, method) as first:

        def kill(engine: Any) -> None:
            raise KeyboardInterrupt

        first.trainer.add_event_handler(Events.ITERATION_STARTED(once=iteration), kill)
        with pytest.raises(KeyboardInterrupt):
            first.run()
    torch.manual_seed(1234)
    np.random.seed(1234)  # noqa: NPY002
    random.seed(1234)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def in_one_go(place: Path, method: str) -> dict[str, torch.Tensor]:
    with training(place, method, out=place / "whole") as whole:
        expected = weights(whole.run())
        assert whole.trainer.state.epoch == LAST
    return expected


@pytest.mark.parametrize("method", ["pgd", "free", "trades"])
def test_killed_twice_and_resumed_is_one_go(method: str, place: Path) -> None:
    expected = in_one_go(place, method)
    killed(place, method, 2)  # inside the first epoch
    with training(place, method, resume=True) as second:

        def kill(engine: Any) -> None:
            raise KeyboardInterrupt

        second.trainer.add_event_handler(Events.ITERATION_STARTED(once=6), kill)  # inside the third
        with pytest.raises(KeyboardInterrupt):
            second.run()
    torch.manual_seed(4321)
    with training(place, method, resume=True) as third:
        found = weights(third.run())
        assert third.trainer.state.epoch == LAST
    assert_equal(found, expected)


def test_a_checkpoint_that_is_half_is_not_taken(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = in_one_go(place, "pgd")
    killed(place, "pgd", 6)
    old, new = sorted((place / "out" / "checkpoints").glob("*.pt"))
    assert (old.name, new.name) == ("training_epoch=1.pt", "training_epoch=2.pt")
    new.write_bytes(new.read_bytes()[: new.stat().st_size // 2])
    (new.parent / ".monai-smia-half.tmp").write_bytes(b"what a kill left")
    (new.parent / "mine.pt").write_bytes(b"of somebody else")
    with training(place, resume=True) as again:
        assert f"{new} cannot be read" in caplog.text
        assert_equal(weights(again.run()), expected)
    left = sorted(path.name for path in new.parent.iterdir() if path.name != "files.json")
    assert left == ["mine.pt", "training_epoch=3.pt", "training_epoch=4.pt"]


def test_a_full_disk_stops_and_is_gone_on_from(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = in_one_go(place, "pgd")
    whole = training_checkpoints.write_whole

    def full(path: Path, *content: Any, **options: Any) -> None:
        if path.name == "training_epoch=2.pt":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        whole(path, *content, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training_checkpoints, "write_whole", full)
        with training(place) as first, pytest.raises(OSError, match="No space left on device"):
            first.run()
    with training(place, resume=True) as again:
        assert_equal(weights(again.run()), expected)


def test_a_finished_training_is_resumed_to_itself(place: Path) -> None:
    with training(place) as first:
        expected = weights(first.run())
    with training(place, resume=True) as again:
        assert_equal(weights(again.run()), expected)
        assert again.trainer.state.epoch == LAST


def test_two_runs_into_one_folder_are_refused(place: Path) -> None:
    with training(place), pytest.raises(FolderInUse, match="out: .*out is in use by process"):
        training(place)
    with training(place) as after:
        after.run()


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "eps": ({"eps": "6intensity"}, "eps = '5intensity'; expected the same, got '6intensity'"),
    "method": ({"method": "smia"}, "method = 'pgd'; expected the same, got 'smia'"),
    "steps": ({"steps": 3}, "steps = 2; expected the same, got 3"),
    "seed": ({"seed": 4}, "seed = 3; expected the same, got 4"),
    "epochs": ({"epochs": 7}, "configuration train = "),
    "configuration": ({"overrides": {"optimizer#lr": 0.05}}, "configuration optimizer = "),
    "initial weights": ({"initial_weights": "start.pt"}, "initial weights = none given"),
}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted")
    bundle_layouts.write(folder / "bundle", {"train.json": config()})
    save_data(folder / "data")
    killed(folder, "pgd", 4)
    with training(folder, out=folder / "other") as built:
        torch.save(built.network.state_dict(), folder / "start.pt")
    return folder


@pytest.mark.parametrize(("change", "says"), OTHERS.values(), ids=OTHERS)
def test_another_training_is_refused_by_name(
    interrupted: Path, change: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(interrupted)
    before = bundle_layouts.hashes(interrupted / "out" / "checkpoints")
    with pytest.raises(ValueError, match="resume: the earlier run had") as refused:
        training(interrupted, **{"resume": True, **change})
    assert says in str(refused.value)
    after = bundle_layouts.hashes(interrupted / "out" / "checkpoints")
    assert {**after, "files.json": ""} == {**before, "files.json": ""}  # that is a cache


def test_other_data_are_refused(interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same names; where they lie does not matter."""
    (interrupted / "moved").mkdir()
    save_data(interrupted / "moved" / "data")
    with training(interrupted, resume=True, dataset_dir=interrupted / "moved" / "data"):
        pass
    file = interrupted / "moved" / "data" / "labels" / "case_1.nii.gz"
    file.write_bytes((file.parent / "case_0.nii.gz").read_bytes())
    with pytest.raises(ValueError, match="resume: the earlier run had data = "):
        training(interrupted, resume=True, dataset_dir=interrupted / "moved" / "data")


def test_the_text_of_the_configuration_is_what_counts(interrupted: Path) -> None:
    file = interrupted / "bundle" / "configs" / "train.json"
    text = json.loads(file.read_text())
    file.write_text(json.dumps({**text, "loss": {**text["loss"], "lambda_dice": 0.5}}))
    try:
        with pytest.raises(ValueError, match="resume: the earlier run had configuration loss = "):
            training(interrupted, resume=True)
    finally:
        file.write_text(json.dumps(text))


def test_weights_of_somebody_else_are_not_replaced(place: Path) -> None:
    killed(place, "pgd", 6)
    (place / "out" / "model.pt").write_bytes(b"of somebody else")
    (place / "out" / ".monai-smia-half.tmp").write_bytes(b"what a kill left")
    with training(place, resume=True) as again, pytest.raises(FileExistsError, match=r"model\.pt is there and not of"):
        again.run()
    assert (place / "out" / "model.pt").read_bytes() == b"of somebody else"
    assert not (place / "out" / ".monai-smia-half.tmp").exists()
