"""The runtime: sessions that run a model in torch on the CPU, and networks that have gradients.

With one thread torch computes in the calling thread alone, so that its CPU time is a run's cost. The number of threads is the
process's; a session sets it before it runs.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array, Availability, Feed, Network, NodeTime, Partition, Runtime, Session, SessionOptions
from graphopt.errors import MissingError, ModelError
from graphopt.graphs import operator, site
from graphopt.model import count_nodes, input_specs, load, nodes, output_specs
from graphopt.runtimes.feeds import FeedCheck
from graphopt.targets import Target
from graphopt.timing import profiled

from .network import TorchNetwork, runs
from .tensors import to_array, torch

_PROVIDER = "CPU"


class TorchRuntime(Runtime):
    """Torch on the CPU, node by node."""

    name = "torch"
    summary = "torch, node by node, with gradients"

    def find(self, target: Target) -> Availability:
        """Torch's version.

        Raises:
            MissingError: It is not installed, or the target is no CPU.
        """
        if target.provider != _PROVIDER:
            why = f"torch runs models on {_PROVIDER} only, not on {target.provider}"
            raise MissingError(why, hint="Choose another target ('graphopt targets').")
        return Availability(ok=True, version=torch.__version__)

    def network(self, model: ir.Model) -> Network:
        """The model with gradients; see ``TorchNetwork``.

        Raises:
            ModelError: It has operators that torch has no function for: all of them are named.
            MissingError: Torch is not installed.
        """
        return TorchNetwork(model)

    def load(self, model: Path, target: Target, options: SessionOptions) -> Session:
        """Read the file; its graph is executed as it is (``options.optimize`` says nothing here).

        Raises:
            ModelError: The file cannot be read, or has operators that torch has no function for.
        """
        del target
        return _TorchSession(model, options.threads)

    def profile(self, model: Path, target: Target, feed: Feed, rounds: int = 10) -> Sequence[NodeTime]:
        """Median milliseconds of each node of the main graph, wall time; what is in its graphs is counted with it.

        Raises:
            ModelError, MissingError: As ``open``.
            DataError: The feed does not fit the model.
        """
        self.require(target)
        times: defaultdict[ir.Node, list[float]] = defaultdict(list)
        session = _TorchSession(model, target.threads, counts=True)
        with session:
            for _ in profiled(session, feed, rounds):
                for node, milliseconds in session.laps.items():
                    times[node].append(milliseconds)
        return [NodeTime(site(node), node.op_type, _PROVIDER, median(found), site(node)) for node, found in times.items()]

    def partition(self, model: Path, target: Target) -> Partition:
        """Which nodes torch has a function for; with one left behind, ``open`` fails.

        Raises:
            ModelError: The file cannot be read.
            MissingError: Torch is not installed.
        """
        self.require(target)
        loaded = load(model)
        left = [(site(node), operator(node), "none") for node in nodes(loaded) if not runs(loaded, node)]
        return Partition({_PROVIDER: count_nodes(loaded) - len(left)}, left, None if left else 1)


class _TorchSession(Session):
    """A graph in torch."""

    provider = _PROVIDER

    def __init__(self, path: Path, threads: int, counts: bool = False) -> None:
        start = time.perf_counter()
        self._where = str(path)
        model = load(path)
        self._outputs = [*model.graph.outputs]
        try:
            self._network: TorchNetwork | None = TorchNetwork(model)
        except ModelError as error:
            raise ModelError(error.what, where=self._where, hint=error.hint) from error
        self.threads, self.clock = threads, "cpu" if threads == 1 else "wall"
        self.inputs, self.outputs = input_specs(model), output_specs(model)
        self.partition = Partition({_PROVIDER: count_nodes(model)}, parts=1)
        self.load_seconds = time.perf_counter() - start
        self._check = FeedCheck(self.inputs)
        self._counts = counts
        self.laps: dict[ir.Node, float] = {}
        """Milliseconds of each node in the last run, where they are counted."""

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; outputs by name, in the model's order.

        Raises:
            ModelError: A node failed.
            DataError: The feed does not fit the model.
        """
        assert self._network is not None, "the session is closed"
        self._check(feed)
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        self._since = time.perf_counter()
        with torch.no_grad():
            given = {name: np.asarray(array) for name, array in feed.items()}
            found = self._network.run(given, clock=self._lap if self._counts else None)
        pairs = zip(self.outputs, self._outputs, strict=True)
        return {spec.name: to_array(found[value], spec.dtype) for spec, value in pairs}

    def _lap(self, node: ir.Node) -> None:
        now = time.perf_counter()
        if node.op_type != "Constant":
            self.laps[node] = 1000 * (now - self._since)
        self._since = now

    def close(self) -> None:
        """Free the weights; the session cannot run afterwards."""
        self._network = None
