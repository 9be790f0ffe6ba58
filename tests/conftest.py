"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("same")  # every run tries the same examples; --hypothesis-profile=search tries others

ENGINES = {
    "openvino": "needs pip install 'graphopt[openvino]'; run with -m openvino",
    "qnn": "needs pip install 'graphopt[qnn]'; run with -m qnn",
    "torch": "needs pip install 'graphopt[torch]'; run with -m torch",
    "web": "needs Chromium and the npm package onnxruntime-web; run with -m web",
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "zoo: needs the trained models in the folder that GRAPHOPT_ZOO names")
    for name, what in ENGINES.items():
        config.addinivalue_line("markers", f"{name}: {what}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a zoo its tests are not part of the run at all, nor are those of an engine that -m does not name.

    Nothing passes by skipping.
    """
    asked = [name for name in ENGINES if name in config.option.markexpr]
    absent = {*([] if os.environ.get("GRAPHOPT_ZOO") else ["zoo"]), *(name for name in ENGINES if name not in asked)}
    out = [item for item in items if any(item.get_closest_marker(name) for name in absent)]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


@pytest.fixture
def zoo() -> Path:
    return Path(os.environ["GRAPHOPT_ZOO"])


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is observed in a test is kept for that test alone."""
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path_factory.getbasetemp() / f"cache-{os.urandom(8).hex()}"))
