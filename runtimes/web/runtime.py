"""onnxruntime-web in a headless browser as a Runtime: WebAssembly and WebGPU.

What is needed is a Chromium and the npm package onnxruntime-web; neither is a dependency of graphopt. WebGPU computes on the
processor here: its answers are checked, its times mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
from graphopt.errors import MissingError
from graphopt.runtimes.onnxruntime_profile import node_times
from graphopt.targets import Target
from graphopt.timing import profiled

from . import engine, package
from .browser import PageError
from .engine import Engine, WebSession

_UNTIMED = "a processor stands in for the GPU: answers are checked here, and nothing is timed"


class WebRuntime(Runtime):
    """onnxruntime-web with the provider that the target names: ``wasm`` or ``webgpu``."""

    name = "web"
    summary = "onnxruntime-web in a headless Chromium: WebAssembly, WebGPU"

    def find(self, target: Target) -> Availability:
        """onnxruntime-web's version; the browser is started.

        Raises:
            MissingError: The browser, the npm package, or an adapter for WebGPU is not here.
        """
        version = _engine(target, target.threads).version
        if target.provider == "webgpu":
            return Availability(ok=True, version=version, why=_UNTIMED, timed=False)
        return Availability(ok=True, version=version)

    def load(self, model: Path, target: Target, options: SessionOptions) -> Session:
        """Load the file in the browser.

        Raises:
            ModelError: onnxruntime-web cannot load it, or it does not fit into the page's memory (4 GB).
            MissingError: The browser, which was here, is gone.
        """
        return WebSession(_engine(target, options.threads), model, options.optimize)

    def profile(self, model: Path, target: Target, feed: Feed, rounds: int = 10) -> Sequence[NodeTime]:
        """Median milliseconds of each node of the optimized graph, as the runtime onnxruntime gives it.

        Raises:
            ModelError, MissingError, DataError: As ``open`` and ``Session.run``.
        """
        self.require(target)
        with WebSession(_engine(target, target.threads), model, optimize=True, profile=True) as session:
            assert isinstance(session, WebSession)
            counted = sum(1 for _ in profiled(session, feed, rounds))
            return node_times(session.end_profiling(), counted)

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
        return engine.engine(target.provider, threads, target.provider_options.get("library"))
    except PageError as error:
        raise MissingError(f"onnxruntime-web does not load: {error}", where=f"target {target.name}") from error
