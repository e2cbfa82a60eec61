# SPDX-License-Identifier: Apache-2.0
"""The share of the SMIA study's measurements that one process makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks._study_attacks import Spec, shown_once, stability_specs, study, transferred_back
from benchmarks._study_records import Records, key_of
from benchmarks._study_runs import measure
from benchmarks._study_victims import FIRST, SECOND_NETWORK, Victim, chosen_cases, opened

MODELS = (SECOND_NETWORK, FIRST)


@dataclass(frozen=True)
class Job:
    """What a process is told.

    Args:
        bundles: in this order.
        split: ``"validation"`` for everything, ``"test"`` for what is shown once.
        cases: so many of each bundle.
        shard, shards: this process takes every `shards`-th measurement from `shard` on.
        out: folder of the study.
    """

    bundles: tuple[str, ...]
    split: str
    cases: int
    shard: int
    shards: int
    out: str


def plan(task: str, model: str, split: str, cases: list[int]) -> Iterator[tuple[int, Spec]]:
    """Cases and attacks of one network; stability and the way back on the first half of the cases."""
    half = cases[: len(cases) // 2]
    for case in cases:
        if split == "test":
            yield from ((case, spec) for spec in (shown_once(task) if model == FIRST else ()))
        elif model == FIRST:
            yield from ((case, spec) for spec in study(task))
            yield from ((case, spec) for spec in (stability_specs(task) if case in half else ()))
        elif case in half:
            yield from ((case, spec) for spec in transferred_back(task))


def digest(spec: Spec, victim: Victim, other: Victim) -> str:
    """What a measurement depends on; a record of something else is not taken for it."""
    parts: list[Any] = [spec.kind, spec.options, spec.restarts, victim.weights, other.weights, victim.eps]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def read_job(file: Path) -> Job:
    """A job that was written as JSON."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return Job(**{**content, "bundles": tuple(content["bundles"])})


def run(job: Job) -> None:
    """Measure this process's share of what has no record yet."""
    out = Path(job.out).resolve()
    torch.set_num_threads(1)
    for name in job.bundles:
        records = Records(out / job.split / name, job.shard)
        done = {key_of(record): record["of"] for record in records.read().values()}
        with ExitStack() as stack:
            victims = {model: stack.enter_context(opened(name, model, out, job.split)) for model in MODELS}
            todo = []
            for model, victim in victims.items():
                cases = chosen_cases(victim.count(), job.cases)
                rows = enumerate(plan(victim.subject.task, model, job.split, cases))
                todo += [(model, case, spec) for number, (case, spec) in rows if number % job.shards == job.shard]
            bar = tqdm(todo, desc=f"{name} {job.shard + 1}/{job.shards}", position=job.shard, unit="attack")
            for model, case, spec in bar:
                victim, other = victims[model], victims[FIRST if model == SECOND_NETWORK else SECOND_NETWORK]
                of = digest(spec, victim, other)
                if done.get((model, case, spec.name)) != of:
                    row = measure(spec, victim, other, case, records.folder / f"changes-{model}")
                    records.add({**row, "of": of})
