"""What the README shows runs as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_first_example_runs() -> None:
    names: dict = {}
    exec(blocks("python")[0], names)
    result = names["result"]
    assert (result.loss > result.clean_loss).all()
    assert float((result.adversarial - names["image"]).abs().max()) <= 10 / 255 + 1e-6
    assert torch.equal(result.forward_passes, torch.tensor([20, 20]))


def test_the_other_examples_parse() -> None:
    for code in blocks("python"):
        compile(code, "README.md", "exec")
    for text in blocks("json"):
        assert "validate#evaluator#_target_" in json.loads(text)
