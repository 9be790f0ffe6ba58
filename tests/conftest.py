"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "zoo: needs the trained models in the folder that GRAPHOPT_ZOO names")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a zoo its tests are not part of the run at all: nothing passes by skipping."""
    if os.environ.get("GRAPHOPT_ZOO"):
        return
    zoo = [item for item in items if item.get_closest_marker("zoo")]
    config.hook.pytest_deselected(items=zoo)
    items[:] = [item for item in items if item not in zoo]


@pytest.fixture
def zoo() -> Path:
    return Path(os.environ["GRAPHOPT_ZOO"])


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is observed in a test is kept for that test alone."""
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path_factory.getbasetemp() / f"cache-{os.urandom(8).hex()}"))
