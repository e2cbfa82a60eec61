"""Every bundle, trained for two iterations on its tiny data: what the tests of bundles start from."""

from __future__ import annotations

import pytest
from bundle_rows import ROWS
from bundle_runs import Trained, own_scripts, train_tiny


@pytest.fixture(scope="session", params=ROWS, ids=lambda row: row.name)
def trained_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Each bundle in turn, trained once for all tests."""
    return train_tiny(request.param, tmp_path_factory.mktemp(request.param.name))


@pytest.fixture
def trained(trained_once: Trained, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Each trained bundle in turn, whose `scripts` can be imported."""
    own_scripts(monkeypatch, trained_once.row)
    return trained_once
