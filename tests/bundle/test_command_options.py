"""`monai-smia evaluate`: an option that the chosen attacks cannot follow is refused, not passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monai_smia.bundle import command_evaluate
from monai_smia.bundle.honoured import refuse_ignored, refuse_unused


class Opened:
    """A bundle with attacks of its own, of which nothing is built."""

    attack_config: Path | None = Path("configs/attack.json")
    root = Path("bundle")

    def __init__(self, called: list[dict[str, Any]], **arguments: Any) -> None:
        called.append(arguments)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: {} if name in ("image_format", "attack_options") else None


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[dict[str, Any]], list[Any]]:
    """Its folder, the arguments that it was opened with, and what was evaluated."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "attack.json").write_text("{}")
    opened, evaluated = list[dict[str, Any]](), list[Any]()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_evaluate, "open_bundle", lambda folder, **given: Opened(opened, **given))
    monkeypatch.setattr(command_evaluate, "about", lambda *_: {})
    monkeypatch.setattr(command_evaluate, "_told", lambda outcome: 0)
    monkeypatch.setattr(
        command_evaluate, "evaluate_under_attack", lambda *args, **given: evaluated.append((args[1:], given))
    )
    return str(tmp_path), opened, evaluated


@pytest.mark.parametrize("given", [{"bounds": (0, 1)}, {"tolerance": 2.0}], ids=str)
def test_beside_the_bundles_own_attacks(bundle: Any, given: dict[str, Any]) -> None:
    folder, _, evaluated = bundle
    (name,) = given
    with pytest.raises(ValueError, match=f"{name}: would have no effect: the attacks are those of the bundle"):
        command_evaluate.evaluate(folder, **given)
    assert evaluated == []


@pytest.mark.parametrize("asked", [{"eps": "2net"}, {"attacks": "PGD"}], ids=str)
def test_with_attacks_or_budgets_they_are_handed_on(bundle: Any, asked: dict[str, Any]) -> None:
    folder, _, evaluated = bundle
    command_evaluate.evaluate(folder, bounds=(0, 1), tolerance=2.0, steps=4, **asked)
    ((_, given),) = evaluated
    assert (given["bounds"], given["tolerance"], given["steps"]) == ((0, 1), 2.0, 4)


def test_steps_go_into_the_configuration_that_has_the_attacks(bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, opened, evaluated = bundle
    command_evaluate.evaluate(folder, steps=4)
    assert opened[-1]["overrides"] == {"steps": 4}
    assert "steps" not in evaluated[0][1]
    monkeypatch.setattr(Opened, "attack_config", None)  # as for a workflow class
    command_evaluate.evaluate(folder, steps=4)
    assert opened[-1]["overrides"] == {}
    assert evaluated[1][1]["steps"] == 4


def test_samples_of_no_certificate(bundle: Any) -> None:
    folder, _, evaluated = bundle
    with pytest.raises(ValueError, match="certify_samples: would have no effect: nothing is certified"):
        command_evaluate.evaluate(folder, certify_samples=10)
    command_evaluate.evaluate(folder, certify="2HU")
    assert evaluated[0][1]["certify"] == {"sigma": "2HU", "samples": 1000, "first_samples": 100}


def test_what_is_refused() -> None:
    refuse_ignored("reason", one=None, two={}, three="", four=())
    with pytest.raises(ValueError, match="one, three: would have no effect: reason"):
        refuse_ignored("reason", one=0, two=None, three=False)
    known = {"A": {"steps", "norm"}, "B": {"norm"}}
    refuse_unused({"steps": 3, "norm": 2, "more": None}, ["A", "B"], known)
    refuse_unused({"steps": 3}, ["C"], known)  # an unknown name is for others to say
    with pytest.raises(TypeError, match="steps: would have no effect: expected an attack that has it; got B"):
        refuse_unused({"steps": 0}, ["B"], known)
