"""Which provider a target gets: decided by running something, in installations that are laid out as the registry's packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import graphopt

FAKE = '''
"""An onnxruntime with the surface that is used, whose providers do what the environment says."""
import os
from types import SimpleNamespace

__version__ = "9.9.9"
disable_telemetry_events = lambda: None
ExecutionMode = SimpleNamespace(ORT_SEQUENTIAL=0)
GraphOptimizationLevel = SimpleNamespace(ORT_DISABLE_ALL=0)
MODE = os.environ["FAKE_MODE"]
_registered = {}


def get_available_providers():
    return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def preload_dlls():
    print("noise of the loader")


def register_execution_provider_library(name, path):
    if MODE == "old":
        raise RuntimeError("the library wants another version of the API")
    _registered[name] = path


def get_ep_devices():
    kind = {"npu": "NPU", "simulator": "CPU"}.get(MODE)
    one = lambda name: SimpleNamespace(ep_name=name, ep_metadata={}, device=SimpleNamespace(type=SimpleNamespace(name=kind)))
    return [one(name) for name in _registered] if kind else []


class SessionOptions:
    devices = ()

    def add_session_config_entry(self, key, value):
        pass

    def add_provider_for_devices(self, devices, options):
        self.devices = [device.ep_name for device in devices]
        self.options = options


class InferenceSession:
    def __init__(self, source, options, providers=(), enable_fallback=1):
        assert not enable_fallback
        wanted = [*options.devices, *(name for name, _ in providers)]
        if MODE == "order":
            open(os.environ["FAKE_LOG"], "w").write(repr(providers))
        self.used = wanted if MODE != "no-libraries" else ["CPUExecutionProvider"]

    def disable_fallback(self):
        pass

    def get_providers(self):
        return self.used

    def get_provider_graph_assignment_info(self):
        node = SimpleNamespace(name="r", op_type="Relu")
        return [SimpleNamespace(ep_name=self.used[0], get_nodes=lambda: [node])]

    def get_inputs(self):
        return [SimpleNamespace(name="x", type="tensor(float)", shape=[2])]

    def get_outputs(self):
        return [SimpleNamespace(name="y", type="tensor(float)", shape=[2])]

    def run(self, names, feed):
        return [feed["x"] * 0 if MODE == "garbage" else feed["x"].clip(0)]
'''
PLUGIN = """
from pathlib import Path
get_library_path = lambda: str(Path(__file__).parent / "libprovider.so")
"""
BOARD = """
name: board
summary: an accelerator whose provider is a plugin
runtime: onnxruntime
provider: BoardExecutionProvider
provider_options: {backend: libboard.so, mode: fast}
plugin: board_ep
device: NPU
simulator: CPU
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of packages, as pip would have filled it."""
    folder = tmp_path / "site"
    put(folder, "onnxruntime-gpu", "onnxruntime", FAKE)
    put(folder, "board-ep", "board_ep", PLUGIN)
    (folder / "board_ep" / "libboard.so").touch()
    return folder


def put(folder: Path, distribution: str, module: str, text: str) -> None:
    info = folder / f"{distribution.replace('-', '_')}-9.9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 9.9.9\n", encoding="utf-8")
    (info / "top_level.txt").write_text(f"{module}\n", encoding="utf-8")
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text(text, encoding="utf-8")


def available(site: Path, mode: str, name: str) -> dict[str, Any]:
    code = f"""
        import json
        from graphopt import targets
        found = targets.availability(targets.load({name!r}))
        print(json.dumps([found.ok, found.timed, found.why, found.hint]))
    """
    env = {**os.environ, "PYTHONPATH": str(site), "FAKE_MODE": mode, "FAKE_LOG": str(site / "log")}
    done = subprocess.run([sys.executable, "-c", "if True:" + code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(("ok", "timed", "why", "hint"), json.loads(done.stdout), strict=True))


def test_a_gpu_that_works_is_available_and_what_its_loader_prints_is_dropped(site: Path) -> None:
    found = available(site, "works", "cuda")
    assert (found["ok"], found["timed"]) == (True, True), found["why"]


def test_tensorrt_leaves_what_it_does_not_take_to_cuda_before_the_cpu(site: Path) -> None:
    assert available(site, "order", "tensorrt")["ok"]
    log = (site / "log").read_text()
    assert log.index("TensorrtExecutionProvider") < log.index("'CUDAExecutionProvider', {'use_tf32': '0'}")


def test_a_provider_that_is_listed_without_its_libraries_is_missing_instead_of_replaced(site: Path) -> None:
    found = available(site, "no-libraries", "cuda")
    assert not found["ok"]
    assert "CUDAExecutionProvider was asked for but CPUExecutionProvider would run the model" in found["why"]


def test_a_provider_that_computes_garbage_is_not_available(site: Path) -> None:
    found = available(site, "garbage", "cuda")
    assert not found["ok"]
    assert "computes Relu([-1, 2]) = [-0.0, 0.0]" in found["why"]


@pytest.mark.parametrize(
    ("mode", "ok", "timed", "why"),
    [
        ("npu", True, True, ""),
        ("simulator", True, False, "a simulator runs it here"),
        ("nothing", False, True, "the plugin board_ep 9.9.9 is installed and offers no NPU on this machine"),
        ("old", False, True, "onnxruntime cannot load the plugin libprovider.so: the library wants another version"),
    ],
)
def test_a_plugin_counts_by_the_devices_that_it_offers(site: Path, mode: str, ok: bool, timed: bool, why: str) -> None:
    (site / "board.yaml").write_text(BOARD, encoding="utf-8")
    found = available(site, mode, str(site / "board.yaml"))
    assert (found["ok"], found["timed"]) == (ok, timed), found["why"]
    assert why in found["why"]


def test_a_plugin_that_is_not_installed_is_missing_with_the_line_that_installs_it(site: Path) -> None:
    (site / "board.yaml").write_text(BOARD.replace("board_ep", "abacus_ep"), encoding="utf-8")
    found = available(site, "npu", str(site / "board.yaml"))
    assert not found["ok"]
    assert found["hint"] == "pip install abacus-ep"


def test_doctor_finds_a_plugin_that_needs_a_newer_onnxruntime(tmp_path: Path) -> None:
    info = tmp_path / "onnxruntime_qnn-9.9.9.dist-info"
    info.mkdir()
    text = "Metadata-Version: 2.1\nName: onnxruntime-qnn\nVersion: 9.9.9\nRequires-Dist: onnxruntime>=99.1\n"
    (info / "METADATA").write_text(text, encoding="utf-8")
    done = graphopt("doctor", "--json", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 6
    [found] = [row for row in json.loads(done.stdout) if row["what"] == "onnxruntime-qnn"]
    assert "is too old: 99.1 is needed" in found["found"]
    assert found["mend"] == "pip install -U onnxruntime onnxruntime-qnn"
