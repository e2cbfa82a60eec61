"""Planted changes: each is valid Python, one change, and the tests that reach it notice it where they should."""

from __future__ import annotations

import ast
import json
import textwrap
from pathlib import Path

import pytest

from benchmarks import mutants
from benchmarks._mutant_sites import Site, all_sites, sites_of

SOURCE = textwrap.dedent('''\
    """Text with 1 number."""
    def inside(x: int, low: int = 0) -> bool:
        """All of 1, 2."""
        if x is None:
            raise ValueError("x: expected a number > 0")
        return low <= x and not x > 3
    ''')


def test_the_changes_to_a_function_are_these() -> None:
    found = {(site.old, site.new) for site in sites_of(SOURCE, "monai_smia/a.py")}
    assert found == {
        ("0", "(1)"),
        ("x is None", "(x is not None)"),
        ("low <= x and not x > 3", "(low <= x or not x > 3)"),
        ("low <= x and not x > 3", "(low <= x)"),
        ("low <= x and not x > 3", "(not x > 3)"),
        ("low <= x", "(low < x)"),
        ("not x > 3", "(x > 3)"),
        ("x > 3", "(x >= 3)"),
        ("3", "(4)"),
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("all(x)", "(any(x))"),
        ("x.argmax(1)", "(x.argmin(1))"),
        ("a + b", "(a - b)"),
        ("f(a, b, c)", "(f(b, a, c))"),
        ("a if b else c", "(c if b else a)"),
        ("True", "(False)"),
        ("0.5", "(1.0)"),
        ("-a", "(a)"),
    ],
)
def test_kinds_of_changes(old: str, new: str) -> None:
    assert (old, new) in {(site.old, site.new) for site in sites_of(f"x = {old}\n", "monai_smia/a.py")}


def test_a_change_is_one_change_and_leaves_the_lines() -> None:
    text = SOURCE.replace("low <= x", "'ä' == x")  # columns of a syntax tree count bytes
    for site in sites_of(text, "monai_smia/a.py"):
        changed = site.applied(text)
        assert changed.count("\n") == text.count("\n")
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))
        with pytest.raises(ValueError, match="monai_smia/a.py: expected"):
            site.applied(f"#{text}")


def test_every_change_to_the_package_has_a_name_of_its_own_that_outlasts_a_move() -> None:
    sites = all_sites(mutants.ROOT)
    assert len({site.name for site in sites}) == len(sites)
    moved = sites_of(f"import os\n\n\n{SOURCE}", "monai_smia/a.py")
    assert [site.name for site in moved] == [site.name for site in sites_of(SOURCE, "monai_smia/a.py")]


def test_a_noticed_and_a_missed_change(tmp_path: Path) -> None:
    """A package of one function, a test that holds its upper end and none that holds the lower one."""
    (tmp_path / "monai_smia").mkdir()
    (tmp_path / "monai_smia" / "__init__.py").touch()
    (tmp_path / "monai_smia" / "a.py").write_text(SOURCE)
    (tmp_path / "test_a.py").write_text(
        "from monai_smia.a import inside\n\ndef test_upper():\n    assert inside(3) and not inside(4)\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    lines: mutants.Lines = {"test_a.py::test_upper": {"seconds": 0.1, "lines": {"monai_smia/a.py": [4, 6]}}}
    verdicts = {}
    for site in sites_of(SOURCE, "monai_smia/a.py"):
        if (site.old, site.new) in (("low <= x", "(low < x)"), ("x > 3", "(x >= 3)")):
            tests = mutants.tests_for(site, lines)
            assert tests == ["test_a.py::test_upper"]
            verdicts[site.old] = mutants.outcome(tmp_path, site, tests, lines)
    assert verdicts == {"low <= x": "missed", "x > 3": "noticed"}
    assert (tmp_path / "monai_smia" / "a.py").read_text() == SOURCE


def test_the_table_leaves_out_what_does_not_matter() -> None:
    sites = [Site(f"monai_smia/attacks/{name}.py", "f", 1, 1, (0, 1), "1", "2") for name in "abcd"]
    verdicts = dict(zip((site.name for site in sites), ("noticed", "noticed", "missed", "not reached"), strict=True))
    lines = mutants.table(sites, verdicts, {sites[2].name: "the last digit of a message"}).splitlines()
    # Wilson's interval of 2 in 3, by its formula: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    p, n, z = 2 / 3, 3, 1.959964
    low, high = (
        (p + z * z / 2 / n + sign * z * (p * (1 - p) / n + z * z / 4 / n / n) ** 0.5) / (1 + z * z / n)
        for sign in (-1, 1)
    )
    row = f"4 | 1 | 2 | 1 | 67 % [{100 * low:.0f}, {100 * high:.0f}] |"
    assert lines[2:] == [f"| attacks | {row}", f"| all | {row}"]


def test_what_is_allowed_has_a_reason() -> None:
    allowed = json.loads(mutants.ALLOWED.read_text(encoding="utf-8"))
    assert all(isinstance(reason, str) and reason for reason in allowed.values())
