"""The benchmarks of scale and of a GPU run, and say in words where there is nothing to measure."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from benchmarks import gpu, scale
from benchmarks.overhead import Case


def test_memory_and_time_are_measured_at_three_marks(capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(["--cases", "20", "--only", "2d"])
    rows = re.findall(r"^\| 2d \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", capsys.readouterr().out, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [2, 10, 20]
    assert all(float(value) > 0 for row in rows for value in row)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main([])
    assert capsys.readouterr().out.count("\n") == 1


def tiny(small: bool) -> Case:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return Case("tiny", network.eval(), torch.rand(2, 1, 8, 8), torch.tensor([0, 2]), 3)


def test_every_variant_runs_anywhere(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.CASES, "2d", tiny)
    gpu.main(["--device", "cpu", "--small", "--repeats", "1", "--case", "2d", "--backend", "eager"])
    rows = re.findall(r"^\| ([\w, ]+) \| (PGD|SMIA)-10 \|", capsys.readouterr().out, re.MULTILINE)
    assert rows == [(variant.name, attack) for variant in gpu.VARIANTS for attack in ("PGD", "SMIA")]
