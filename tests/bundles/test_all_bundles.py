"""Every bundle's training, evaluation and resuming, on tiny data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import known_networks
import pytest
import torch
from bundle_runs import Trained, finished
from ignite.engine import Events


class Interruption(Exception):
    """What stops a training."""


def interrupt(engine: Any) -> None:
    raise Interruption("planted")


def test_training_moves_the_weights(trained: Trained) -> None:
    trainer = trained.parser.get_parsed_content("train#trainer")
    assert (trainer.state.epoch, trainer.state.iteration) == (1, 2)
    state = torch.load(trained.models / "model.pt", weights_only=True)
    assert state.keys() == trained.start.keys()
    assert all(torch.isfinite(value).all() for value in state.values())
    network = trained.parser.get_parsed_content("network_def")
    network.load_state_dict(state)
    parameters = [name for name, _ in network.named_parameters()]
    moved = [name for name in parameters if not torch.equal(state[name], trained.start[name])]
    assert len(moved) >= 0.9 * len(parameters)


def evaluated(trained: Trained, output: Path, **override: Any) -> dict[str, float]:
    parser = trained.run("train.json", "evaluate.json", output_dir=str(output), **override)
    return dict(parser.get_parsed_content("validate#evaluator").state.metrics)


def test_evaluation(trained: Trained, tmp_path: Path) -> None:
    metrics = evaluated(trained, tmp_path)
    assert metrics.keys() == trained.row.metrics.keys()
    for name, (low, high) in trained.row.metrics.items():
        assert low <= metrics[name] <= high
    written = dict(line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines())
    assert {name: float(value) for name, value in written.items()} == pytest.approx(metrics)


def test_a_network_that_is_right_is_found_perfect(trained: Trained, tmp_path: Path) -> None:
    """Image and label go through the same geometry, and each metric compares what it should."""
    torch.save(known_networks.Known.weights(), tmp_path / "model.pt")
    metrics = evaluated(trained, tmp_path, ckpt_dir=str(tmp_path), network_def=trained.row.known)
    assert metrics == pytest.approx({name: high for name, (_, high) in trained.row.metrics.items()}, abs=1e-6)


def test_an_interrupted_training_resumes_where_it_stopped(trained: Trained, tmp_path: Path) -> None:
    """Of two epochs the first is run, then the other one: the weights are those of one go, to the bit."""
    more = {"ckpt_dir": str(tmp_path), "epochs": 2, "save_every": 1}
    flow = trained.workflow("train.json", **more)
    flow.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_STARTED(once=3), interrupt)
    with pytest.raises(RuntimeError, match="Failed to evaluate") as raised:
        flow.run()
    assert isinstance(raised.value.__cause__, Interruption)
    (checkpoint,) = tmp_path.glob("model_checkpoint_*.pt")
    saved = torch.load(checkpoint, weights_only=True)

    flow, first = trained.workflow("train.json", "resume.json", **more), []
    trainer = flow.parser.get_parsed_content("train#trainer")
    network, rate = flow.parser.get_parsed_content("network"), flow.parser.get_parsed_content("lr_scheduler")

    def look(engine: Any) -> None:
        first.append((engine.state.epoch, engine.state.iteration, rate.last_epoch))
        for name, value in network.state_dict().items():
            assert torch.equal(value, saved["network"][name])

    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), look)
    finished(flow)
    assert first == [(2, 3, 2)]
    assert (trainer.state.epoch, trainer.state.iteration, rate.last_epoch) == (2, 4, 4)

    flow = trained.workflow("train.json", **{**more, "ckpt_dir": str(tmp_path / "whole")})
    flow.parser.get_parsed_content("train#trainer")  # built in the order of the first one, on which its start depends
    finished(flow)
    found, expected = (torch.load(folder / "model.pt", weights_only=True) for folder in (tmp_path, tmp_path / "whole"))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_the_newest_checkpoint_is_resumed(trained: Trained, tmp_path: Path) -> None:
    """Every resumed training leaves the checkpoint that it started from: there may be several."""
    for epoch in (8, 10):
        (tmp_path / f"model_checkpoint_epoch={epoch}.pt").touch()
        (tmp_path / f"model_robust_checkpoint_epoch={epoch + 1}.pt").touch()
    for more, newest in (
        ((), "model_checkpoint_epoch=10.pt"),
        (("adversarial_train.json",), "model_robust_checkpoint_epoch=11.pt"),
    ):
        flow = trained.workflow("train.json", *more, "resume.json", ckpt_dir=str(tmp_path))
        assert Path(flow.parser.get_parsed_content("resume_file")).name == newest


def test_the_properties_of_a_bundle_are_complete(trained: Trained) -> None:
    for names in (("train.json",), ("train.json", "evaluate.json")):
        flow = trained.workflow(*names)
        assert not flow.check_properties()
