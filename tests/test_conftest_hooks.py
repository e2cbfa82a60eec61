"""The rule of conftest.py: what could have run must not be skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import INSTALL

pytest_plugins = ["pytester"]

INI = """
[pytest]
addopts = --strict-markers
markers =
    data: needs the shared images
    peers: compares with another library
"""
MARKED = "import pytest\n@pytest.mark.{marker}\ndef test_it():\n    pytest.skip('not today')\n"
FIXTURE = "def test_it(shared_data):\n    assert shared_data.is_dir()\n"
FIXTURE_THEN_SKIP = "import pytest\ndef test_it(shared_data):\n    pytest.skip('one file is missing')\n"
XFAIL = "import pytest\n@pytest.mark.data\n@pytest.mark.xfail\ndef test_it():\n    assert False\n"
# `foolbox` stands for any peer; None in sys.modules makes its import fail, installed or not.
NO_PEER = "import sys\nimport pytest\nsys.modules['foolbox'] = None\n"
MODULE_SKIP = NO_PEER + "pytest.importorskip('foolbox')\ndef test_it(): pass\n"
INNER_SKIP = NO_PEER + "def test_it():\n    pytest.importorskip('foolbox')\n"
NO_BROWSER = f"import pytest\npytestmark = [pytest.mark.skipif(True, reason={INSTALL!r})]\ndef test_it(): pass\n"
OTHER_SKIP = "import pytest\ndef test_it():\n    pytest.skip('needs a GPU')\n"


@pytest.fixture
def outcomes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Run one test file under this suite's conftest.py and return its outcomes."""

    def run(source: str, *, data: bool, ci: bool = False, peers: bool = False, browser: bool = False) -> dict[str, int]:
        folder = pytester.path / "images"
        if data:
            folder.mkdir()
        monkeypatch.setenv("MONAI_SMIA_DATA", str(folder))
        monkeypatch.setenv("CI", "true" if ci else "")
        monkeypatch.setenv("MONAI_SMIA_REQUIRE_PEERS", "1" if peers else "")
        monkeypatch.setenv("MONAI_SMIA_REQUIRE_BROWSER", "1" if browser else "")
        pytester.makeini(INI)
        pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text(encoding="utf-8"))
        pytester.makepyfile(source)
        return pytester.runpytest_inprocess().parseoutcomes()

    return run


@pytest.mark.parametrize("source", [MARKED.format(marker="data"), FIXTURE_THEN_SKIP], ids=["marker", "fixture"])
def test_skipped_data_test_fails_in_ci_while_the_folder_is_there(outcomes, source) -> None:
    assert outcomes(source, data=True, ci=True) == {"failed": 1}


@pytest.mark.parametrize("source", [MARKED.format(marker="data"), FIXTURE], ids=["marker", "fixture"])
def test_skipped_data_test_stays_a_skip_without_the_folder(outcomes, source) -> None:
    assert outcomes(source, data=False, ci=True) == {"skipped": 1}


def test_skipped_data_test_stays_a_skip_outside_ci(outcomes) -> None:
    assert outcomes(MARKED.format(marker="data"), data=True) == {"skipped": 1}


def test_shared_data_is_the_named_folder(outcomes) -> None:
    assert outcomes(FIXTURE, data=True, ci=True) == {"passed": 1}


def test_expected_failure_is_no_skip(outcomes) -> None:
    assert outcomes(XFAIL, data=True, ci=True) == {"xfailed": 1}


@pytest.mark.parametrize(
    ("source", "failed"),
    [
        (MARKED.format(marker="peers"), {"failed": 1}),
        (INNER_SKIP, {"failed": 1}),
        (MODULE_SKIP, {"errors": 1}),
    ],
    ids=["marker", "importorskip in the test", "importorskip in the module"],
)
def test_skipped_peer_test_fails_only_where_peers_are_required(outcomes, source, failed) -> None:
    assert outcomes(source, data=False, ci=True, peers=True) == failed
    assert outcomes(source, data=False, ci=True) == {"skipped": 1}


def test_skipped_browser_test_fails_only_where_a_browser_is_required(outcomes) -> None:
    assert outcomes(NO_BROWSER, data=False, browser=True) == {"errors": 1}
    assert outcomes(NO_BROWSER, data=False, ci=True) == {"skipped": 1}


def test_other_skips_are_left_alone(outcomes) -> None:
    assert outcomes(OTHER_SKIP, data=True, ci=True, peers=True) == {"skipped": 1}
