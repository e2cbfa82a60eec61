# SPDX-License-Identifier: Apache-2.0
"""Small changes planted into the package, one at a time: the share that the tests which reach them notice."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._mutant_sites import Site, all_sites
from benchmarks._units import ROOT
from benchmarks.robustness_table import markdown
from monai_smia.reports.files import write_whole

OUT = Path("runs") / "mutants"
ALLOWED = Path(__file__).with_name("mutants_allowed.json")
PARTS = ("attacks", "inferers", "engines and handlers", "bundle", "export", "rest")
NOTICED, MISSED, UNREACHED = "noticed", "missed", "not reached"
LEFT_OUT = (".git", ".venv*", "runs", "__pycache__", ".*_cache", "_build", "dist", "build")
TESTS_AT_ONCE = 60
"""The quickest of the tests that reach a line."""
Lines = dict[str, dict[str, Any]]


def part_of(file: str) -> str:
    """The part of the package that a source belongs to."""
    folder = Path(file).parts[1]
    if folder in ("engines", "handlers"):
        return "engines and handlers"
    return folder if folder in PARTS else "rest"


def copied(folder: Path) -> Path:
    """The working tree, without what is made from it."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    return folder


def run_tests(tree: Path, tests: Sequence[str], limit: float | None = None, **environment: str) -> int:
    """pytest's exit code in a copy of the tree; -1 when it did not end in time."""
    options = ["-q", "-x", "-p", "no:cacheprovider"]
    if "MUTANT_TRACE" in environment:
        options = ["-q", "-p", "no:cacheprovider", "-p", "benchmarks._mutant_trace"]
    surroundings = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=tree,
        env=surroundings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return -1


def reached_lines(tree: Path, files: Sequence[str], out: Path) -> Lines:
    """Which lines each test of some files reaches; measured once for each text of a test file."""
    found: Lines = {}
    for number, file in enumerate(files, start=1):
        digest = hashlib.sha256((tree / file).read_bytes()).hexdigest()[:12]
        kept = out / "lines" / f"{file.replace('/', '.')}.{digest}.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            print(f"lines {number}/{len(files)}: {file}", file=sys.stderr, flush=True)
            part = kept.with_suffix(".part")
            run_tests(tree, [file], MUTANT_TRACE=str(part))
            if not part.exists():
                continue
            os.replace(part, kept)
        found |= json.loads(kept.read_text(encoding="utf-8"))
    return found


def tests_for(site: Site, lines: Lines) -> list[str]:
    """The quickest tests that reach a change; of code that runs at import, those that reach its file."""
    wanted = set(range(site.first, site.last + 1))
    direct = [test for test, what in lines.items() if wanted & set(what["lines"].get(site.file, ()))]
    tests = direct or ([test for test, what in lines.items() if site.file in what["lines"]] if not site.place else [])
    return sorted(tests, key=lambda test: float(lines[test]["seconds"]))[:TESTS_AT_ONCE]


def outcome(tree: Path, site: Site, tests: Sequence[str], lines: Lines) -> str:
    """Whether the tests notice a change; the copied tree is as before afterwards."""
    if not tests:
        return UNREACHED
    file = tree / site.file
    text = file.read_text(encoding="utf-8")
    limit = 300 + 10 * sum(float(lines[test]["seconds"]) for test in tests)
    file.write_text(site.applied(text), encoding="utf-8")
    try:
        return MISSED if run_tests(tree, tests, limit) == 0 else NOTICED
    finally:
        file.write_text(text, encoding="utf-8")


def drawn(sites: list[Site], each: int, seed: int, parts: Sequence[str]) -> list[Site]:
    """As many of each part, by the seed."""
    chosen: list[Site] = []
    for part in parts:
        own = [site for site in sites if part_of(site.file) == part]
        chosen += random.Random(f"{part} {seed}").sample(own, min(each, len(own)))
    return chosen


def table(sites: Sequence[Site], verdicts: dict[str, str], allowed: dict[str, str]) -> str:
    """The share noticed of those that matter, by part, with its 95 % interval (Wilson)."""
    from scipy.stats import binomtest

    rows = []
    for part in (*PARTS, "all"):
        own = [site for site in sites if part in (part_of(site.file), "all")]
        if not own:
            continue
        counted = [site for site in own if site.name not in allowed]
        noticed = sum(verdicts[site.name] == NOTICED for site in counted)
        unreached = sum(verdicts[site.name] == UNREACHED for site in counted)
        share = "-"
        if counted:
            low, high = binomtest(noticed, len(counted)).proportion_ci(method="wilson")
            share = f"{100 * noticed / len(counted):.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
        rows.append([part, str(len(own)), str(len(own) - len(counted)), str(noticed), str(unreached), share])
    return markdown(["part", "planted", "do not matter", "noticed", "not reached", "share noticed"], rows)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks mutants", description=__doc__)
    parser.add_argument("--each", type=int, default=25, help="changes in each part of the package")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--tests", nargs="+", help="test files to choose from, as glob patterns; all where not said")
    parser.add_argument("--only-reached", action="store_true", help="draw from the lines that these tests reach")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the verdicts; the next call goes on there")
    options = parser.parse_args(arguments)
    options.out = options.out.absolute()
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    allowed = json.loads(ALLOWED.read_text(encoding="utf-8"))
    file = options.out / "verdicts.json"
    verdicts: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder) / "tree")
        patterns = options.tests or ["tests/**/test_*.py"]
        files = sorted({str(path.relative_to(tree)) for pattern in patterns for path in tree.glob(pattern)})
        lines = reached_lines(tree, files, options.out)
        sites = all_sites(tree)
        if options.only_reached:
            sites = [site for site in sites if tests_for(site, lines)]
        sites = drawn(sites, options.each, options.seed, options.parts)
        for number, site in enumerate(sites, start=1):
            tests = tests_for(site, lines)
            # The text of the tests is part of the key: a sharper test is asked again.
            key = f"{site.name} {hashlib.sha256(' '.join(tests).encode()).hexdigest()[:8]} {_digest(tree, tests)}"
            if key not in verdicts:
                verdicts[key] = outcome(tree, site, tests, lines)
                options.out.mkdir(parents=True, exist_ok=True)
                write_whole(file, json.dumps(verdicts, indent=1) + "\n", overwrite=True)
            verdicts[site.name] = verdicts[key]
            where = f"{site.name} {site.file}:{site.first} {site.place}: {site.old!r} -> {site.new!r}"
            print(f"{number}/{len(sites)} {verdicts[key]}: {where}", file=sys.stderr, flush=True)
    print(table(sites, verdicts, allowed))
    for site in sites:
        if verdicts[site.name] != NOTICED and site.name not in allowed:
            print(f"{verdicts[site.name]}: {site.name} {site.file}:{site.first} {site.old!r} -> {site.new!r}")


def _digest(tree: Path, tests: Sequence[str]) -> str:
    content = b"".join((tree / name).read_bytes() for name in sorted({test.partition("::")[0] for test in tests}))
    return hashlib.sha256(content).hexdigest()[:8]
