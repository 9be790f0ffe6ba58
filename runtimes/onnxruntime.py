"""onnxruntime: one module for all its execution providers; which one, and with which options, is data of the target.

onnxruntime goes on quietly when something is missing: an unknown provider becomes the CPU, a failing one is retried on the CPU.
Here every such fall-back is an error: what was asked for is compared with what the loaded session says it uses.

Sessions are made for timing: a pinned number of threads, no spinning, sequential execution. With one thread on the CPU provider
a run happens in the calling thread alone, so that its CPU time is its cost whatever else the machine does (``clock = "cpu"``).
"""

from __future__ import annotations

import bisect
import ctypes
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

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
from graphopt.errors import DataError, GraphoptError, MissingError, ModelError
from graphopt.targets import Target

_CPU = "CPUExecutionProvider"
_INSTALL = "pip install 'graphopt[cpu]'"
_INSTALL_PROVIDER = {
    "CUDAExecutionProvider": "pip uninstall -y onnxruntime && pip install 'graphopt[cuda]'",
    "OpenVINOExecutionProvider": "pip uninstall -y onnxruntime && pip install onnxruntime-openvino",
    "QNNExecutionProvider": "pip uninstall -y onnxruntime && pip install onnxruntime-qnn",
    "TensorrtExecutionProvider": "pip uninstall -y onnxruntime && pip install 'graphopt[cuda]' tensorrt",
}
"""The line that brings a provider: packages that contain onnxruntime overwrite each other, so that one must go first."""
_INSTALL_OTHER = "Install the onnxruntime package that contains it."
_NATIVE = "biufcOUS"  # kinds of numpy dtypes that onnxruntime's Python interface knows; ml_dtypes' are of kind "V"
_PROFILE_WARM_UP = 2  # runs
_PROFILE_SECONDS = 10.0  # after which no further round is begun


class OnnxRuntime(Runtime):
    """onnxruntime with the execution provider that the target names."""

    name = "onnxruntime"
    summary = "onnxruntime, any execution provider of the installed build"

    def __init__(self) -> None:
        self._availability: dict[tuple[object, ...], Availability] = {}

    def availability(self, target: Target) -> Availability:
        """Whether a one-node model runs on the target's provider; asked once per provider and options."""
        key = (target.provider, *sorted(target.provider_options.items()))
        if key not in self._availability:
            self._availability[key] = _probe(target)
        return self._availability[key]

    def open(self, model: Path, target: Target, options: SessionOptions = SessionOptions()) -> Session:  # noqa: B008 - frozen
        """Load the file on the target.

        Raises:
            ModelError: The file cannot be read, is not valid, is too new, or has a node without a kernel.
            MissingError: onnxruntime or the provider is missing here, or another provider was used in its place.
        """
        self._require(target)
        start = time.perf_counter()
        session = _load(model, target, options)
        return _OrtSession(session, model, options.threads, time.perf_counter() - start)

    def profile(self, model: Path, target: Target, feed: Feed, rounds: int = 10) -> Sequence[NodeTime]:
        """Median milliseconds of each node of the optimized graph, fused nodes as such, in order of their first execution.

        A node that onnxruntime made of one of the model's has its name, or the name of a value that it computes, and a suffix.

        Times are onnxruntime's own wall times with a resolution of 1 us. A node with a body (If, Loop, Scan) has its own time
        only: what the body's nodes take is theirs. Runs that warm up are not counted; a slow model has fewer rounds.

        Raises:
            ModelError, MissingError: As ``open``.
            DataError: The feed does not fit the model.
        """
        self._require(target)
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            options = SessionOptions(threads=target.threads)
            raw = _load(model, target, options, profile_prefix=str(Path(folder) / "profile"))
            with _OrtSession(raw, model, options.threads, 0.0) as session:
                runs, start = 0, time.perf_counter()
                try:
                    while runs < _PROFILE_WARM_UP + rounds and (runs < 2 or time.perf_counter() - start < _PROFILE_SECONDS):
                        session.run(feed)
                        runs += 1
                finally:
                    trace = Path(raw.end_profiling())
            return _node_times(json.loads(trace.read_bytes()), max(1, runs - _PROFILE_WARM_UP))

    def partition(self, model: Path, target: Target) -> Partition:
        """Which provider takes how many nodes, as assigned before the providers fuse; bodies are counted, functions inlined.

        Raises:
            ModelError, MissingError: As ``open``.
        """
        self._require(target)
        assigned = _assignment(_load(model, target, SessionOptions(threads=target.threads)))
        return Partition(
            nodes=dict(Counter(provider for _, _, provider in assigned)),
            left_behind=[node for node in assigned if node[2] != target.provider],
        )

    def _require(self, target: Target) -> None:
        available = self.availability(target)
        if not available.ok:
            raise MissingError(available.why, where=f"target {target.name}", hint=available.hint or None)


class _OrtSession(Session):
    """A loaded model. Dtypes that numpy lacks (bfloat16, float8) travel as ``ml_dtypes`` arrays."""

    def __init__(self, session: Any, model: Path, threads: int, load_seconds: float) -> None:
        self._session = session
        self._model = model
        self.provider = session.get_providers()[0]
        self.threads = threads
        self.clock = "cpu" if self.provider == _CPU and threads == 1 else "wall"
        self.load_seconds = load_seconds
        self.inputs = tuple(_spec(value) for value in session.get_inputs())
        self.outputs = tuple(_spec(value) for value in session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        self._native = all(spec.dtype.kind in _NATIVE for spec in (*self.inputs, *self.outputs))

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; outputs by name, in the model's order.

        Raises:
            ModelError: A node failed (named in the message).
            DataError: The feed does not fit the model.
        """
        session = self._session
        assert session is not None, "the session is closed"
        try:
            values = session.run(self._names, feed) if self._native else self._run_values(feed)
        except Exception as error:
            raise self._explain(feed, error) from error
        return dict(zip(self._names, values, strict=True))

    def close(self) -> None:
        """Free the model; the session cannot run afterwards."""
        self._session = None

    def _run_values(self, feed: Mapping[str, Array]) -> list[Array]:
        """Run through OrtValues, which carry the types that onnxruntime does not exchange as numpy arrays."""
        values = {name: _to_value(np.asarray(array)) for name, array in feed.items()}
        outputs = self._session.run_with_ort_values(self._names, values)
        return [_from_value(value, spec.dtype) for value, spec in zip(outputs, self.outputs, strict=True)]

    def _explain(self, feed: Mapping[str, Array], error: Exception) -> GraphoptError:
        problem = _feed_problem(feed, self.inputs)
        if problem is not None:
            return problem
        text = _plain(error)
        failed = re.match(r"Non-zero status code returned while running (\S+) node\. Name:'(.*?)' Status Message: (.*)", text)
        if failed is not None:
            op_type, name, text = failed.groups()
            return ModelError(f"onnxruntime failed: {text}", where=f"{self._model.name}, {op_type} node {name!r}")
        if type(error).__name__ == "InvalidArgument":  # what onnxruntime itself finds wrong with a feed
            return DataError(text, where=self._model.name)
        return ModelError(f"onnxruntime cannot run it: {text}", where=self._model.name)


# --------------------------------------------------------------------------------------------------------------- loading


def _onnxruntime() -> Any:
    """The module with its telemetry off, which would start a thread, write to the user's cache folder and use the network."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    if not hasattr(onnxruntime, "InferenceSession"):  # what is left when one of two packages that provide it is uninstalled
        raise ImportError("the installed onnxruntime is an empty package")
    onnxruntime.disable_telemetry_events()  # for a process that imported it earlier
    return onnxruntime


def _probe(target: Target) -> Availability:
    try:
        ort = _onnxruntime()
    except ImportError as error:
        return Availability(ok=False, why=f"onnxruntime cannot be imported: {error}", hint=_INSTALL)
    version = ort.__version__
    known = ort.get_available_providers()
    if target.provider not in known:
        why = f"this onnxruntime {version} has no {target.provider} (it has {', '.join(known)})"
        return Availability(ok=False, version=version, why=why, hint=_INSTALL_PROVIDER.get(target.provider, _INSTALL_OTHER))
    try:
        session = _OrtSession(_load(_one_node(), target, SessionOptions()), Path("probe"), 1, 0.0)
        result = session.run({"x": np.array([-1, 2], np.float32)})["y"]
    except GraphoptError as error:
        return Availability(ok=False, version=version, why=error.what, hint=error.hint or "")
    if result.tolist() != [0, 2]:
        return Availability(ok=False, version=version, why=f"{target.provider} computes Relu([-1, 2]) = {result.tolist()}")
    return Availability(ok=True, version=version)


def _one_node() -> bytes:
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
    opset = onnx.helper.make_opsetid("", 14)
    model: bytes = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    return model


def _load(model: Path | bytes, target: Target, options: SessionOptions, profile_prefix: str | None = None) -> Any:
    """An InferenceSession that runs on the target's provider and on nothing else by stealth."""
    ort = _onnxruntime()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not options.optimize:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile_prefix is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = profile_prefix
    source = model if isinstance(model, bytes) else str(model)
    providers = [(target.provider, dict(target.provider_options))]
    try:
        session = ort.InferenceSession(source, settings, providers=providers, enable_fallback=0)
    except Exception as error:
        raise _load_error(error, model) from error
    session.disable_fallback()
    used = session.get_providers()[0]
    assigned = [provider for _, _, provider in _assignment(session)]
    if used == target.provider and assigned and target.provider not in assigned:
        used = assigned[0]
    if used != target.provider:
        raise MissingError(f"{target.provider} was asked for but {used} would run the model", where=f"target {target.name}")
    return session


def _assignment(session: Any) -> list[tuple[str, str, str]]:
    """Each node of the loaded model: name, operator, provider."""
    parts = session.get_provider_graph_assignment_info()
    return [(node.name, node.op_type, part.ep_name) for part in parts for node in part.get_nodes()]


# ---------------------------------------------------------------------------------------------------------------- values


def _spec(value: Any) -> TensorSpec:
    """A session's input or output. onnxruntime gives scalars and unknown ranks the same empty shape: both become None."""
    return TensorSpec(value.name, _dtype(value.type), tuple(value.shape) or None)


def _dtype(ort_type: str) -> np.dtype:
    """Numpy's dtype for ``tensor(float)`` and the like; strings, sequences, maps and optionals are objects."""
    tensor = re.fullmatch(r"tensor\((\w+)\)", ort_type)
    if tensor is None or tensor[1].upper() not in set(onnx.TensorProto.DataType.keys()):
        return np.dtype(object)
    return onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(tensor[1].upper()))


def _to_value(array: Array) -> Any:
    ort = _onnxruntime()
    if array.dtype.kind in _NATIVE:
        return ort.OrtValue.ortvalue_from_numpy(array)
    bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.helper.np_dtype_to_tensor_dtype(array.dtype))


def _from_value(value: Any, dtype: np.dtype) -> Array:
    if dtype.kind in _NATIVE:
        array: Array = value.numpy()
        return array
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, dtype).reshape(value.shape())


def _feed_problem(feed: Mapping[str, Array], inputs: Sequence[TensorSpec]) -> DataError | None:
    """What is wrong with a feed that was refused, judged by the model's inputs; None when nothing is."""
    missing = [spec.name for spec in inputs if spec.name not in feed]
    extra = [name for name in feed if name not in {spec.name for spec in inputs}]
    if missing or extra:
        said = [f"misses {name!r}" for name in missing] + [f"has an unknown {name!r}" for name in extra]
        return DataError(f"the feed {', '.join(said)}", hint=f"The inputs are {', '.join(repr(s.name) for s in inputs)}.")
    for spec in inputs:
        if spec.dtype == object:
            continue
        array = np.asarray(feed[spec.name])
        where = f"input {spec.name!r}"
        if array.dtype != spec.dtype:
            return DataError(f"is {array.dtype} but the model takes {spec.dtype}", where=where)
        if spec.shape is None:
            continue
        fits = array.ndim == len(spec.shape) and all(
            not isinstance(size, int) or size == given for size, given in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            takes = ", ".join("?" if size is None else str(size) for size in spec.shape)
            return DataError(f"has shape {list(array.shape)} but the model takes [{takes}]", where=where)
    return None


# -------------------------------------------------------------------------------------------------------------- messages

_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:")
_SOURCE = re.compile(r"\S+\.(?:h|hpp|cc|cpp):\d+ ")
_SIGNATURE = re.compile(  # what follows a full path: "type ns::Class::method(arguments) const [with T = ...] "
    r"\S*onnxruntime_src\S+:\d+ [^()]*(?:\((?:[^()]|\([^()]*\))*\))+(?: const)?(?: \[with [^\]]*\])? "
)
_FUNCTION = re.compile(r"\S+\.(?:h|hpp|cc|cpp):\d+ \w+ ")


def _plain(error: Exception) -> str:
    """The message as one line, without onnxruntime's codes, source files and C++ signatures."""
    text = " ".join(str(error).split())
    for noise in (_CODE, _SIGNATURE, _FUNCTION, _SOURCE):
        text = noise.sub("", text)
    return text.strip()


def _load_error(error: Exception, model: Path | bytes) -> ModelError:
    text = _plain(error)
    where = None
    if isinstance(model, Path):
        where = str(model)
    hint = None
    opset = re.search(r"Opset (\d+) is under development.* domain (\S+) is till opset (\d+)", text)
    if opset is not None:
        text = f"its opset {opset[1]} of domain {opset[2]} is newer than this onnxruntime, which takes up to {opset[3]}"
        hint = "Install a newer onnxruntime, or convert the model to an older opset."
    elif "max supported IR version" in text:
        hint = "Install a newer onnxruntime, or write the model with an older IR version."
    elif "Could not find an implementation" in text:
        hint = "This onnxruntime has no kernel for the node with these types."
    return ModelError(f"onnxruntime cannot load it: {text}", where=where, hint=hint)


# --------------------------------------------------------------------------------------------------------------- profile


_RENAMED = re.compile(r"_nchwc$|_token_\d+$|/duplicated$")
"""What onnxruntime appends to the name of a node, or of its output, when it replaces the node by another of its own."""
_INTEGER = re.compile(r"^(QLinear|QGemm|QAttention|MatMulInteger|ConvInteger|DynamicQuantize(MatMul|LSTM)|MatMulNBits)")
"""Operators of the optimized graph that compute in integers."""


def _node_times(trace: Sequence[Mapping[str, Any]], rounds: int) -> list[NodeTime]:
    """Self time per node, the median of the last ``rounds`` runs of a profile (Chrome trace events, times in us)."""
    starts = sorted(event["ts"] for event in trace if event.get("name") == "model_run")
    if len(starts) < rounds:  # onnxruntime keeps the first million events only
        raise ModelError("it executes too many nodes in a run to be profiled")
    starts = starts[-rounds:]
    events = [e for e in trace if e.get("cat") == "Node" and e["name"].endswith("_kernel_time") and e["ts"] >= starts[0]]
    events.sort(key=lambda event: (event["ts"], -event["dur"]))  # a node with a body comes before the body's nodes
    total: dict[tuple[str, str, str], list[float]] = {}
    around: list[tuple[int, int, tuple[str, str, str]]] = []  # end, run and key of the nodes that are still running
    for event in events:
        fields = event["args"]
        op_type = fields["op_name"]
        name = event["name"].removesuffix("_kernel_time") or f"{op_type} #{fields['node_index']}"
        key = (name, op_type, fields["provider"])
        run = bisect.bisect_right(starts, event["ts"]) - 1
        while around and around[-1][0] <= event["ts"]:
            around.pop()
        if around:
            _, outer_run, outer = around[-1]
            total[outer][outer_run] -= event["dur"]
        total.setdefault(key, [0.0] * rounds)[run] += event["dur"]
        around.append((event["ts"] + event["dur"], run, key))
    return [
        NodeTime(*key, max(0.0, median(us)) / 1000, _RENAMED.sub("", key[0]), _INTEGER.match(key[1]) is not None)
        for key, us in total.items()
    ]
