"""onnxruntime: one module for all its execution providers; which one, and with which options, is data of the target.

onnxruntime goes on quietly when something is missing: an unknown provider becomes the CPU, a failing one is retried on the CPU.
Here every such fall-back is an error, and nodes that a provider leaves to others are counted: what was asked for is compared
with what the loaded session says it uses.

Sessions are made for timing: a pinned number of threads, no spinning, sequential execution. With one thread on the CPU provider
a run happens in the calling thread alone, so that its CPU time is its cost whatever else the machine does (``clock = "cpu"``).
"""

from __future__ import annotations

import ctypes
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt.contracts import (
    Array,
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
    TensorSpec,
)
from graphopt.errors import MissingError
from graphopt.targets import Target
from graphopt.timing import profiled

from . import mobile
from .onnxruntime_messages import load_error, run_error
from .onnxruntime_profile import node_times
from .onnxruntime_providers import CPU, choose, onnxruntime, quiet
from .onnxruntime_readme import plain_readme

_NATIVE = "biufcOUS"  # kinds of numpy dtypes that onnxruntime's Python interface knows; ml_dtypes' are of kind "V"


class OnnxRuntime(Runtime):
    """onnxruntime with the execution provider that the target names."""

    name = "onnxruntime"
    summary = "onnxruntime, any execution provider of the installed build"

    def availability(self, target: Target) -> Availability:
        """As every runtime; what a plugin prints when it first runs is dropped."""
        with quiet() if target.plugin is not None else nullcontext():
            return super().availability(target)

    def find(self, target: Target) -> Availability:
        """Which onnxruntime it is, and whether a simulator stands in for the device.

        Raises:
            MissingError: onnxruntime, the provider, or its device is not here.
        """
        if choose(target).simulated:
            why = "a simulator runs it here: answers hold, times do not"
            return Availability(ok=True, version=onnxruntime().__version__, why=why, timed=False)
        return Availability(ok=True, version=onnxruntime().__version__)

    def load(self, model: Path, target: Target, options: SessionOptions) -> Session:
        """Load the file on the provider.

        Raises:
            ModelError: The file cannot be read, is not valid, is too new, or has a node without a kernel.
            MissingError: Another provider would be used in its place.
        """
        start = time.perf_counter()
        session = _load(model, target, options)
        return _OrtSession(session, model, target, options.threads, time.perf_counter() - start)

    def profile(self, model: Path, target: Target, feed: Feed, rounds: int = 10) -> Sequence[NodeTime]:
        """Median milliseconds of each node of the optimized graph, fused nodes as such, in order of their first execution.

        A node that onnxruntime made of one of the model's has its name, or the name of a value that it computes, and a suffix.

        Times are onnxruntime's own wall times with a resolution of 1 us. A node with a body (If, Loop, Scan) has its own time
        only: what the body's nodes take is theirs. Runs that warm up are not counted; a slow model has fewer rounds.

        Raises:
            ModelError, MissingError: As ``open``.
            DataError: The feed does not fit the model.
        """
        self.require(target)
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            options = SessionOptions(threads=target.threads)
            raw = _load(model, target, options, profile_prefix=str(Path(folder) / "profile"))
            with _OrtSession(raw, model, target, options.threads, 0.0) as session:
                try:
                    counted = sum(1 for _ in profiled(session, feed, rounds))
                finally:
                    trace = Path(raw.end_profiling())
            return node_times(json.loads(trace.read_bytes()), counted)

    def partition(self, model: Path, target: Target) -> Partition:
        """Which provider takes how many nodes, as assigned before the providers fuse; bodies are counted, functions inlined.

        Raises:
            ModelError, MissingError: As ``open``.
        """
        self.require(target)
        return _partition(_load(model, target, SessionOptions(threads=target.threads)), target.provider)

    def package(self, model: Path, target: Target, folder: Path, example: Example, progress: Progress) -> Packaged:
        """The model in the form that the target wants: as it is, or as ``.ort`` with what a reduced build needs.

        Raises:
            ModelError: The model cannot be converted, or what came out cannot be run.
            MissingError: As ``open``, or onnxruntime's tools are not there.
        """
        self.require(target)
        if target.form == "ort":
            return mobile.fill(self, model, target, folder, example, progress)
        with self.open(model, target, SessionOptions(threads=target.threads)) as session:
            return Packaged(session.run(example.feed), plain_readme(target, model.name))


class _OrtSession(Session):
    """A loaded model. Dtypes that numpy lacks (bfloat16, float8) travel as ``ml_dtypes`` arrays."""

    def __init__(self, session: Any, model: Path, target: Target, threads: int, load_seconds: float) -> None:
        self._session = session
        self._model = model
        self.provider = session.get_providers()[0]
        self.threads = threads
        self.partition = _partition(session, target.provider)
        here = self.provider == CPU or target.clock == "cpu"
        self.clock = "cpu" if here and threads == 1 else "wall"
        self.load_seconds = load_seconds
        self.inputs = tuple(_spec(value, value.type) for value in session.get_inputs())
        self.outputs = tuple(_spec(value, _element(value.type)) for value in session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        self._native = all(spec.dtype.kind in _NATIVE for spec in (*self.inputs, *self.outputs))

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; outputs by name, in the model's order; sequences as arrays.

        Raises:
            ModelError: A node failed (named in the message).
            DataError: The feed does not fit the model.
        """
        session = self._session
        assert session is not None, "the session is closed"
        try:
            values = session.run(self._names, feed) if self._native else self._run_values(feed)
        except Exception as error:
            raise run_error(error, self._model.name, feed, self.inputs) from error
        return dict(zip(self._names, map(_as_array, values), strict=True))

    def close(self) -> None:
        """Free the model; the session cannot run afterwards."""
        self._session = None

    def _run_values(self, feed: Mapping[str, Array]) -> list[Array]:
        """Run through OrtValues, which carry the types that onnxruntime does not exchange as numpy arrays."""
        values = {name: _to_value(np.asarray(array)) for name, array in feed.items()}
        outputs = self._session.run_with_ort_values(self._names, values)
        return [_from_value(value, spec.dtype) for value, spec in zip(outputs, self.outputs, strict=True)]


# --------------------------------------------------------------------------------------------------------------- loading


def _load(model: Path, target: Target, options: SessionOptions, profile_prefix: str | None = None) -> Any:
    """An InferenceSession that runs on the target's provider, and on others only what it leaves to them."""
    ort = onnxruntime()
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
    arguments = choose(target).attach(settings)
    try:
        session = ort.InferenceSession(str(model), settings, enable_fallback=0, **arguments)
    except Exception as error:
        raise load_error(error, model) from error
    session.disable_fallback()
    used = session.get_providers()[0]
    assigned = [provider for _, _, provider in _assignment(session)]
    if used == target.provider and assigned and target.provider not in assigned:
        used = assigned[0]
    if used != target.provider:
        what = f"{target.provider} was asked for but {used} would run the model"
        raise MissingError(what, where=f"target {target.name}", hint=_shapes_hint(session, target))
    return session


def _shapes_hint(session: Any, target: Target) -> str | None:
    """What a user may do when a provider that wants fixed shapes took nothing of a model with dynamic ones."""
    sizes = {
        f"{value.name}:{axis}" if size is None else size: size
        for value in session.get_inputs()
        for axis, size in enumerate(value.shape)
        if not isinstance(size, int)
    }
    if not (sizes and target.fixed_shapes):
        return None
    fix = " ".join(f"--set shapes.fix.{name}=1" for name in sizes)
    return f"It takes fixed shapes only. Give each dynamic dimension of the inputs a size: graphopt optimize {fix}."


def _assignment(session: Any) -> list[tuple[str, str, str]]:
    """Each node of the loaded model: name, operator, provider. Plugins leave the names away that they do not need."""
    parts = session.get_provider_graph_assignment_info()
    return [(node.name, node.op_type, part.ep_name) for part in parts for node in part.get_nodes()]


def _partition(session: Any, provider: str) -> Partition:
    assigned = _assignment(session)
    return Partition(
        nodes=dict(Counter(used for _, _, used in assigned)),
        left_behind=[node for node in assigned if node[2] != provider],
        parts=_parts(session, provider),
    )


def _parts(session: Any, provider: str) -> int | None:
    """How many pieces a provider that compiles was given; one that has kernels is given each node for itself: not known."""
    sizes = [len(part.get_nodes()) for part in session.get_provider_graph_assignment_info() if part.ep_name == provider]
    others = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != provider]
    if not others:
        return 1
    return len(sizes) if any(size > 1 for size in sizes) else None


# ---------------------------------------------------------------------------------------------------------------- values


def _spec(value: Any, ort_type: str) -> TensorSpec:
    """A session's input or output. onnxruntime gives scalars and unknown ranks the same empty shape: both become None."""
    return TensorSpec(value.name, _dtype(ort_type), tuple(value.shape) or None)


def _element(ort_type: str) -> str:
    """``tensor(float)`` for ``seq(tensor(float))``."""
    return f"tensor({re.findall(r'[0-9A-Za-z]+', ort_type)[-1]})"


def _as_array(value: Any) -> Array:
    """An output as an array: of a sequence the elements as rows, or, when their shapes differ, all values in a row."""
    if isinstance(value, list):
        parts = [_as_array(one) for one in value]
        alike = len({part.shape for part in parts}) == 1
        return np.stack(parts) if alike else np.concatenate([part.reshape(-1) for part in parts] or [np.zeros(0)])
    return np.asarray([] if value is None else value)


def _dtype(ort_type: str) -> np.dtype:
    """Numpy's dtype for ``tensor(float)`` and the like; strings, sequences, maps and optionals are objects."""
    tensor = re.fullmatch(r"tensor\((\w+)\)", ort_type)
    if tensor is None or tensor[1].upper() not in set(onnx.TensorProto.DataType.keys()):
        return np.dtype(object)
    return onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(tensor[1].upper()))


def _to_value(array: Array) -> Any:
    ort = onnxruntime()
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
