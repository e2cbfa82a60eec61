"""The shared images, and the rule that continuous integration may not skip what it could have run."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from torchvision_shim import load_torchvision

load_torchvision()
# The tests' tensors are small, and the workers share the cores: more threads cost more than they bring.
torch.set_num_threads(1)

MISSING_PEER = re.compile(r"could not import '(adv_lib|art|foolbox|torchattacks)\b")
MISSING_BROWSER = re.compile(r"needs Chromium")


def data_folder() -> Path:
    """Where the shared images are expected: MONAI_SMIA_DATA, else `shared/data` beside the checkout."""
    return Path(os.environ.get("MONAI_SMIA_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared images; skips the test where there is none."""
    folder = data_folder()
    if not folder.is_dir():
        pytest.skip(
            f"needs the project's shared images: {folder} is not there; set MONAI_SMIA_DATA to a folder laid out like "
            "it, one folder a data set with its dataset.json (hippocampus_mri/dataset.json, ...)"
        )
    return folder.resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for the shared images."""
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker("data")


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport, markers: set[str]) -> None:
    """Turn a skip into a failure where the environment had what the test needs."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    in_ci = os.environ.get("CI", "").lower() in {"1", "true"}
    if "data" in markers and in_ci and data_folder().is_dir():
        why = f"CI is set and {data_folder()} is there, so no test that needs it may be skipped"
    elif ("peers" in markers or MISSING_PEER.search(reason)) and os.environ.get("MONAI_SMIA_REQUIRE_PEERS") == "1":
        why = "MONAI_SMIA_REQUIRE_PEERS is 1, so no comparison with a peer may be skipped"
    elif MISSING_BROWSER.search(reason) and os.environ.get("MONAI_SMIA_REQUIRE_BROWSER") == "1":
        why = "MONAI_SMIA_REQUIRE_BROWSER is 1, so no test of the report in a browser may be skipped"
    else:
        return
    report.outcome = "failed"
    report.longrepr = f"{why}. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Apply the rule to a test that skips."""
    report = yield
    _forbid_skip(report, {mark.name for mark in item.iter_markers()})
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Apply the rule to a module that skips as a whole, as `pytest.importorskip` at its top does."""
    report = yield
    _forbid_skip(report, {mark.name for mark in collector.iter_markers()})
    return report
