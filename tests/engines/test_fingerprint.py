# SPDX-License-Identifier: Apache-2.0
"""What a result depends on: told alike in every process, and differently for everything that changes a number."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.transforms import AsDiscrete, AsDiscreted, Compose, LoadImaged, RandGaussianNoised, ScaleIntensityRanged

from monai_smia.attacks import PGD
from monai_smia.engines import file_digests
from monai_smia.engines.fingerprint import FileDigests, Fingerprint, described, network_digest, structure

SCALE = {"a_min": -1000, "a_max": 400, "b_min": 0, "b_max": 1}


class Window:
    """A transform of a user, which keeps its arguments under other names."""

    def __init__(self, limits: tuple[float, float]) -> None:
        self.low, self.high = limits

    def __call__(self, data: Any) -> Any:
        return data.clamp(self.low, self.high)


def noisy(scale: float) -> Any:
    return lambda data: data * scale


PAIRS: dict[str, tuple[Any, Any]] = {
    "a transform more": (
        Compose([LoadImaged("image")]),
        Compose([LoadImaged("image"), ScaleIntensityRanged("image", **SCALE)]),
    ),
    "a transform's argument": (
        ScaleIntensityRanged("image", **SCALE),
        ScaleIntensityRanged("image", **{**SCALE, "a_max": 500}),
    ),
    "reader": (LoadImaged("image", reader="NibabelReader"), LoadImaged("image", reader="ITKReader")),
    "reader's option": (
        LoadImaged("image", reader="NibabelReader", as_closest_canonical=True),
        LoadImaged("image", reader="NibabelReader", as_closest_canonical=False),
    ),
    "a user's transform": (Window((0, 1)), Window((0, 2))),
    "roi": (SlidingWindowInferer(8), SlidingWindowInferer(16)),
    "overlap": (SlidingWindowInferer(8, overlap=0.25), SlidingWindowInferer(8, overlap=0.5)),
    "threshold": (AsDiscrete(threshold=0.5), AsDiscrete(threshold=0.6)),
    "a random transform's argument": (RandGaussianNoised("image", std=0.1), RandGaussianNoised("image", std=0.2)),
    "loss": (DiceCELoss(sigmoid=True), DiceCELoss(softmax=True)),
    "loss weight": (DiceCELoss(lambda_ce=1.0), DiceCELoss(lambda_ce=2.0)),
    "class weights": (
        torch.nn.CrossEntropyLoss(torch.tensor([1.0, 2.0])),
        torch.nn.CrossEntropyLoss(torch.tensor([1.0, 3.0])),
    ),
    "eps": (PGD(torch.nn.BCEWithLogitsLoss(), eps=0.1), PGD(torch.nn.BCEWithLogitsLoss(), eps=0.2)),
    "an attack's loss": (PGD(torch.nn.BCEWithLogitsLoss(), eps=0.1), PGD(DiceCELoss(sigmoid=True), eps=0.1)),
    "closure": (noisy(1.0), noisy(2.0)),
    "code": (lambda x: x + 1, lambda x: x - 1),
    "partial": (functools.partial(noisy, 1.0), functools.partial(noisy, 2.0)),
    "array": (np.zeros(3), np.array([0, 0, 1e-12])),
    "type of array": (np.zeros(2, np.float32), np.zeros(2, np.float64)),
    "number and text": (1, "1"),
    "order": ([1, 2], [2, 1]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_whatever_changes_a_number_is_told_apart(name: str) -> None:
    one, other = PAIRS[name]
    assert described(one) != described(other)
    assert "0x" not in described(one)


BUILD = """
import sys, random
sys.path.insert(0, {folder!r})
from test_fingerprint import PAIRS, MODEL
from monai_smia.engines.fingerprint import described, network_digest, structure
import json
told = [described(one) for pair in PAIRS.values() for one in pair]
print(json.dumps([told, network_digest(MODEL()), structure(MODEL())]))
"""


def MODEL() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.ReLU())
    for k, tensor in enumerate(model.state_dict().values()):
        tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + k)
    model.register_buffer("unsaved", torch.ones(2), persistent=False)
    return model


def test_two_processes_tell_the_same() -> None:
    code = BUILD.format(folder=str(Path(__file__).parent))
    told = [
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.splitlines()[-1]
        for seed in ("1", "2")
    ]  # fmt: skip
    assert told[0] == told[1]
    assert len(json.loads(told[0])[0]) == 2 * len(PAIRS)


def test_what_changes_while_a_transform_works_does_not_count() -> None:
    transform = Compose([RandGaussianNoised("image", prob=1.0, std=0.1), AsDiscreted("image", threshold=0)])
    before = described(transform)
    transform({"image": torch.zeros(1, 4, 4)})
    assert described(transform) == before


def test_what_holds_itself_is_described() -> None:
    looped: list[Any] = [1]
    looped.append(looped)
    assert described(looped) == "[1, <itself>]"


def test_every_bit_of_a_network_counts_and_the_wrapper_does_not() -> None:
    digest = network_digest(MODEL())
    assert network_digest(MODEL()) == digest
    assert network_digest(torch.nn.DataParallel(MODEL())) == digest
    for name in (*MODEL().state_dict(), "unsaved"):
        other = MODEL()
        tensor = other.unsaved if name == "unsaved" else other.state_dict()[name]
        tensor.view(-1)[:1].add_(1)
        assert network_digest(other) != digest, name
    assert network_digest(MODEL().double()) != digest


def test_a_layer_without_weights_is_a_part_of_the_structure() -> None:
    other = MODEL()
    other[2] = torch.nn.LeakyReLU()
    assert network_digest(other) == network_digest(MODEL())
    assert structure(other) != structure(MODEL())


def test_digests_of_bfloat16_scalars_and_nothing() -> None:
    tensors = [torch.tensor(1.5, dtype=torch.bfloat16), torch.zeros(0), torch.tensor(True), torch.tensor(1 + 2j).conj()]
    assert len({described(tensor) for tensor in tensors}) == 4


def test_a_mismatch_is_refused_by_the_first_part_that_differs() -> None:
    run = Fingerprint({"weights": "a" * 64, "eps": "5HU", "seed": "0"})
    run.refuse_other(dict(run.parts))
    with pytest.raises(ValueError, match="resume: the earlier run had weights = b{12}; expected the same, got a{12}$"):
        run.refuse_other({"weights": "b" * 64, "eps": "10HU", "seed": "0"})
    with pytest.raises(ValueError, match="had more = x; expected the same, got nothing"):
        run.refuse_other({**run.parts, "more": "x"})
    long = "a" * 500
    with pytest.raises(ValueError, match=r"had t = \.\.\.a+b; expected the same, got \.\.\.a+c$"):
        Fingerprint({"t": f"{long}c"}).refuse_other({"t": f"{long}b"})


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are as if they had been there for long."""
    monkeypatch.setattr(file_digests, "_SETTLED", -1)


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)
    file = tmp_path / "image.raw"
    file.write_bytes(b"abc")
    digests = FileDigests(tmp_path / "digests.json")
    assert digests.of(file) == hashlib.sha256(b"abc").hexdigest()
    digests.save()
    again, reads = FileDigests(tmp_path / "digests.json"), []
    monkeypatch.setattr(file_digests, "sha256", lambda: reads.append(1) or hashlib.sha256())
    assert again.of(file) == hashlib.sha256(b"abc").hexdigest()
    assert reads == []
    kept = file.stat()
    file.write_bytes(b"xyz")  # of equal size, and with the old time of change
    os.utime(file, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert again.of(file) == hashlib.sha256(b"xyz").hexdigest()
    assert reads == [1]


def test_a_file_that_changed_just_now_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "image.raw"
    file.write_bytes(b"abc")
    digests = FileDigests(tmp_path / "digests.json")
    digests.of(file)
    digests.save()
    assert not (tmp_path / "digests.json").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 50, b"{", b"[]", b'{"format": "monai-smia file digests 1", "files": {"a": [1]}}', b"\xff"]
)
def test_a_damaged_cache_is_no_cache(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "digests.json").write_bytes(content)
    (tmp_path / "a").write_bytes(b"abc")
    assert FileDigests(tmp_path / "digests.json").of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_a_slice_of_a_series_and_the_voxels_beside_a_header_count(tmp_path: Path) -> None:
    series = tmp_path / "series"
    series.mkdir()
    for name in ("1.dcm", "2.dcm"):
        (series / name).write_bytes(name.encode())
    (tmp_path / "a.mhd").write_text("ElementDataFile = voxels.raw\n")
    (tmp_path / "voxels.raw").write_bytes(b"123")
    (tmp_path / "b.img").write_bytes(b"123")
    (tmp_path / "b.hdr").write_bytes(b"123")
    item = {"image": str(series), "other": [str(tmp_path / "a.mhd"), str(tmp_path / "b.img")], "label": 1}
    before = FileDigests().content(item)
    assert FileDigests().content(item) == before
    for changed in (series / "2.dcm", tmp_path / "voxels.raw", tmp_path / "b.hdr"):
        kept = changed.read_bytes()
        changed.write_bytes(b"x" * len(kept))
        assert FileDigests().content(item) != before, changed
        changed.write_bytes(kept)
    (series / "2.dcm").rename(series / "3.dcm")
    assert FileDigests().content(item) != before


def test_the_same_data_elsewhere_have_the_same_digest(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "image.raw").write_bytes(b"abc")
    one, other = ({"image": str(tmp_path / folder / "image.raw"), "label": 1} for folder in ("a", "b"))
    assert FileDigests().content(one) == FileDigests().content(other)
    assert FileDigests().content({**one, "label": 2}) != FileDigests().content(one)
    assert FileDigests().content({**one, "label": 2}, skip=["label"]) == FileDigests().content(one, skip=["label"])
