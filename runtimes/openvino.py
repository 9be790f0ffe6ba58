"""OpenVINO, used directly: a model is compiled for one device as a whole, or refused.

OpenVINO converts quietly what a feed holds and takes fixed dimensions for advice, so that feeds are checked here. Options of
the target are properties of ``compile_model``. With one thread a synchronous request runs in the calling thread alone: its CPU
time, the process's and the wall time were measured to agree to 0.1 %, so that ``clock = "cpu"`` holds on the CPU device.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from graphopt.contracts import (
    Array,
    Availability,
    Feed,
    NodeTime,
    Partition,
    Runtime,
    Session,
    SessionOptions,
    TensorSpec,
)
from graphopt.environment import no_telemetry
from graphopt.errors import MissingError, ModelError
from graphopt.model import count_nodes, input_specs, load, nodes, output_specs
from graphopt.targets import Target
from graphopt.timing import profiled

from .feeds import FeedCheck

_NO_WORK = {"Parameter", "Constant", "Result"}  # operators of OpenVINO's graph that compute nothing
_CONVERT = {"QuantizeLinear", "DequantizeLinear"}
_WEIGHTED = {"FullyConnected", "Convolution", "Deconvolution"}  # of OpenVINO's operators, those that read a weight
_MULTIPLIES = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


class OpenVino(Runtime):
    """OpenVINO with the device that the target's provider names: CPU, GPU, NPU."""

    name = "openvino"
    summary = "OpenVINO, on the device that the target names"

    def find(self, target: Target) -> Availability:
        """OpenVINO's version.

        Raises:
            MissingError: It is not installed, or finds no such device here.
        """
        core = _core()
        version: str = core.get_versions("CPU")["CPU"].build_number.partition("-")[0]
        if target.provider not in {name.partition(".")[0] for name in core.available_devices}:
            others = ", ".join(core.available_devices)
            why = f"OpenVINO {version} finds no {target.provider} on this machine (it finds {others})"
            raise MissingError(why, hint="Choose another target ('graphopt targets').")
        return Availability(ok=True, version=version)

    def load(self, model: Path, target: Target, options: SessionOptions) -> Session:
        """Compile the file for the device; its own optimizations cannot be switched off (``options.optimize``).

        Raises:
            ModelError: The file cannot be read, or has an operator or a type that the device does not take.
        """
        start = time.perf_counter()
        return _OvSession(_compile(model, target, options.threads), model, target, options.threads, start)

    def profile(self, model: Path, target: Target, feed: Feed, rounds: int = 10) -> Sequence[NodeTime]:
        """Median milliseconds of each node of the compiled graph, as OpenVINO's counters say (wall time, resolution 1 us).

        Raises:
            ModelError, MissingError: As ``open``.
            DataError: The feed does not fit the model.
        """
        self.require(target)
        compiled = _compile(model, target, target.threads, {"PERF_COUNT": "YES"})
        origins = _origins(compiled, model)
        times: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
        with _OvSession(compiled, model, target, target.threads, time.perf_counter()) as session:
            assert isinstance(session, _OvSession)
            for _ in profiled(session, feed, rounds):
                for node in session.counters():
                    key = node.node_name, node.node_type, node.exec_type
                    times[key].append(1000 * node.real_time.total_seconds())
        found = []
        for (name, kind, kernel), milliseconds in times.items():
            origin, op_type = origins.get(name, ("", ""))
            integer = op_type in _MULTIPLIES and kernel.lower().endswith(("i8", "u8"))
            found.append(NodeTime(name, kind, target.provider, median(milliseconds), origin, integer))
        return found

    def partition(self, model: Path, target: Target) -> Partition:
        """Which nodes of OpenVINO's graph the device says that it takes; with one left behind, ``open`` fails.

        Raises:
            ModelError, MissingError: As ``open``.
        """
        self.require(target)
        core = _core()
        try:
            graph = core.read_model(str(model))
            taken = core.query_model(graph, target.provider, _properties(target, target.threads))
        except RuntimeError as error:
            raise _load_error(error, model) from error
        ops = [(op.get_friendly_name(), op.get_type_name(), "none") for op in graph.get_ops()]
        left = [node for node in ops if node[1] not in _NO_WORK and node[0] not in taken]
        count = count_nodes(load(model))
        return Partition({target.provider: count - len(left)}, left, None if left else 1)


class _OvSession(Session):
    """A compiled model with one request. Dtypes that numpy lacks travel as ``ml_dtypes`` arrays."""

    def __init__(self, compiled: Any, model: Path, target: Target, threads: int, start: float) -> None:
        self._model = model
        self.provider = compiled.get_property("EXECUTION_DEVICES")[0]
        self.clock = "cpu" if self.provider == "CPU" and threads == 1 else "wall"
        self.threads = threads
        self._request: Any = compiled.create_infer_request()
        self.load_seconds = time.perf_counter() - start
        stat = model.stat()
        self.inputs, self.outputs, count = _facts(model, stat.st_mtime_ns, stat.st_size)
        self.partition = Partition(nodes={target.provider: count}, parts=1)  # what it does not take whole it does not compile
        self._ports = [(spec.name, compiled.output(spec.name), spec.dtype) for spec in self.outputs]
        self._check = FeedCheck(self.inputs)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; outputs by name, in the model's order.

        Raises:
            ModelError: A node failed.
            DataError: The feed does not fit the model.
        """
        assert self._request is not None, "the session is closed"
        self._check(feed)
        try:
            found = self._request.infer(feed, share_inputs=True)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot run it: {_plain(error)}", where=self._model.name) from error
        return {name: _as(found[port], dtype) for name, port, dtype in self._ports}

    def counters(self) -> Sequence[Any]:
        """What the last run's nodes took, those that ran."""
        return [node for node in self._request.get_profiling_info() if node.status.name == "EXECUTED"]

    def close(self) -> None:
        """Free the model; the session cannot run afterwards."""
        self._request, self._ports = None, []


# --------------------------------------------------------------------------------------------------------------- loading


@cache
def _core() -> Any:
    """OpenVINO's entry point.

    Raises:
        MissingError: It is not installed.
    """
    no_telemetry()
    try:
        import openvino
    except ImportError as error:
        raise MissingError(f"OpenVINO cannot be imported: {error}", hint="pip install 'graphopt[openvino]'") from error
    return openvino.Core()


def _properties(target: Target, threads: int) -> dict[str, str]:
    own = {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1"} if target.provider == "CPU" else {}
    return {**own, **target.provider_options}


def _compile(model: Path, target: Target, threads: int, more: Mapping[str, str] | None = None) -> Any:
    try:
        return _core().compile_model(str(model), target.provider, {**_properties(target, threads), **(more or {})})
    except RuntimeError as error:
        raise _load_error(error, model) from error


@lru_cache(maxsize=16)
def _facts(model: Path, _changed: int, _size: int) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], int]:
    """Inputs, outputs and the number of nodes, as the file has them: OpenVINO has several names for a value, and own types."""
    loaded = load(model)
    return input_specs(loaded), output_specs(loaded), count_nodes(loaded)


def _origins(compiled: Any, model: Path) -> dict[str, tuple[str, str]]:
    """The model's node that each node of the compiled graph was made of, and its operator; of several the one that multiplies.

    A name is that of a node of the model with more after a slash, or of one that OpenVINO made: then those of the nodes that
    were fused into it tell, or else that of its weight.
    """
    known = {
        name: (node.name or "", node.op_type)
        for node in nodes(load(model))
        if node.op_type not in _CONVERT
        for name in (node.name, *(output.name for output in node.outputs))
        if name
    }
    origins = {}
    for op in compiled.get_runtime_model().get_ordered_ops():
        facts = op.get_rt_info()
        fused = facts["originalLayersNames"].astype(str).split(",") if "originalLayersNames" in facts else []
        own = op.get_friendly_name()
        made = [found for name in (own, *reversed(fused)) for found in _beginnings(name, known)]
        if not made and facts["layerType"].astype(str) in _WEIGHTED:
            made = _beginnings(op.inputs()[1].get_source_output().get_node().get_friendly_name(), known)
        if made:
            origins[own] = next((each for each in made if each[1] in _MULTIPLIES), made[0])
    return origins


def _beginnings(name: str, known: Mapping[str, tuple[str, str]]) -> list[tuple[str, str]]:
    """What is known by a name, or by the longest beginning of it that ends before a slash."""
    while name not in known and "/" in name:
        name = name.rpartition("/")[0]
    return [known[name]] if name in known else []


def _as(array: Array, dtype: np.dtype) -> Array:
    """An output in the model's type: OpenVINO gives bfloat16 as the bits of float16."""
    return array.view(dtype) if dtype.kind == "V" and array.dtype.itemsize == dtype.itemsize else array


# -------------------------------------------------------------------------------------------------------------- messages

_NOISE = re.compile(
    r"Exception from \S+:\d+:|Check '.*?' failed at \S+:\d+:|Not Implemented:|Details:|FrontEnd API failed with \w+:|Summary:"
)


def _plain(error: Exception) -> str:
    """The message as one line, without source files."""
    return " ".join(_NOISE.sub(" ", str(error)).split())


def _load_error(error: Exception, model: Path) -> ModelError:
    text = _plain(error)
    unknown = re.search(r"No conversion rule found for operations: (.*?)(?: -- |$)", text)
    if unknown is not None:
        text = f"it has no {unknown[1]}"
    return ModelError(f"OpenVINO cannot load it: {text}", where=str(model))
