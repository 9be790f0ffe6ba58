"""onnxruntime-web in a headless browser as a Runtime: WebAssembly and WebGPU.

What is needed is a Chromium and the npm package onnxruntime-web; neither is a dependency of graphopt. WebGPU computes on the
processor here: its answers are checked, its times mean nothing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from graphopt.contracts import (
    Availability,
    Example,
    Feed,
    NodeTime,
    Packaged,
    Partition,
    Progress,
    Runtime,
    Session,
    SessionOptions,
)
from graphopt.errors import GraphoptError, MissingError
from graphopt.runtimes.onnxruntime_profile import node_times
from graphopt.targets import Target

from . import engine, package
from .browser import PageError
from .engine import Engine, WebSession

_UNTIMED = "a processor stands in for the GPU: answers are checked here, and nothing is timed"
_PROFILE_WARM_UP = 2  # runs
_PROFILE_SECONDS = 10.0  # after which no further round is begun


class WebRuntime(Runtime):
    """onnxruntime-web with the provider that the target names: ``wasm`` or ``webgpu``."""

    name = "web"
    summary = "onnxruntime-web in a headless Chromium: WebAssembly, WebGPU"

    def __init__(self) -> None:
        self._availability: dict[str, Availability] = {}

    def availability(self, target: Target) -> Availability:
        """Whether a one-node model runs in the browser; asked once per provider."""
        if target.provider not in self._availability:
            self._availability[target.provider] = _probe(target)
        return self._availability[target.provider]

    def open(self, model: Path, target: Target, options: SessionOptions = SessionOptions()) -> Session:  # noqa: B008 - frozen
        """Load the file in the browser.

        Raises:
            ModelError: onnxruntime-web cannot load it, or it does not fit into the page's memory (4 GB).
            MissingError: The browser, the npm package, or an adapter for WebGPU is missing here.
        """
        self.require(target)
        return WebSession(_engine(target, options.threads), model, options.optimize)

    def profile(self, model: Path, target: Target, feed: Feed, rounds: int = 10) -> Sequence[NodeTime]:
        """Median milliseconds of each node of the optimized graph, as the runtime onnxruntime gives it.

        Raises:
            ModelError, MissingError, DataError: As ``open`` and ``Session.run``.
        """
        self.require(target)
        with WebSession(_engine(target, target.threads), model, optimize=True, profile=True) as session:
            runs, start = 0, time.perf_counter()
            while runs < _PROFILE_WARM_UP + rounds and (runs < 2 or time.perf_counter() - start < _PROFILE_SECONDS):
                session.run(feed)
                runs += 1
            assert isinstance(session, WebSession)
            return node_times(session.end_profiling(), max(1, runs - _PROFILE_WARM_UP))

    def partition(self, model: Path, target: Target) -> Partition:
        """Which provider takes how many nodes of the optimized graph, as onnxruntime-web logs it.

        Raises:
            ModelError, MissingError: As ``open``.
        """
        self.require(target)
        found = _engine(target, target.threads)
        with WebSession(found, model, optimize=True, verbose=True) as session:
            assert session.partition is not None
            return session.partition

    def package(self, model: Path, target: Target, folder: Path, example: Example, progress: Progress) -> Packaged:
        """Add a page that runs the model in any browser, and onnxruntime-web; open it here, and read what it computes.

        Raises:
            ModelError: The page fails.
            MissingError: The browser or onnxruntime-web is not there.
        """
        del progress
        self.require(target)
        return package.fill(model, target, folder, example)


def _engine(target: Target, threads: int) -> Engine:
    if target.provider not in engine.LIBRARY:
        known = " and ".join(engine.LIBRARY)
        raise MissingError(f"onnxruntime-web is used with {known}, not with {target.provider}", where=f"target {target.name}")
    try:
        return engine.engine(target.provider, threads)
    except PageError as error:
        raise MissingError(f"onnxruntime-web does not load: {error}", where=f"target {target.name}") from error


def _probe(target: Target) -> Availability:
    """Run Relu on two numbers."""
    try:
        found = _engine(target, target.threads)
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            path = Path(folder) / "probe.onnx"
            path.write_bytes(_one_node())
            with WebSession(found, path, optimize=True) as session:
                result = session.run({"x": np.array([-1, 2], np.float32)})["y"]
    except GraphoptError as error:
        return Availability(ok=False, why=error.what, hint=error.hint or "")
    if result.tolist() != [0, 2]:
        why = f"{target.provider} computes Relu([-1, 2]) = {result.tolist()}"
        return Availability(ok=False, version=found.version, why=why)
    if target.provider == "webgpu":
        return Availability(ok=True, version=found.version, why=_UNTIMED, timed=False)
    return Availability(ok=True, version=found.version)


def _one_node() -> bytes:
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
    opset = onnx.helper.make_opsetid("", 14)
    model: bytes = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    return model
