"""Models from file to file: load, check, count, save.

``ir.Model`` is the one representation of a graph; ModelProto stays in here. Loading validates everything that can be
known without running the model, and reads no weights: they stay in their files until a pass asks for one. Parts:
``reading`` (the file), ``validate`` and ``checker`` (is it a model), ``external`` (weights in files), ``saving``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.contracts import TensorSpec
from graphopt.errors import ModelError
from graphopt.garbage import collected_later

from . import checker
from .external import DataFiles
from .fingerprint import fingerprint
from .reading import locations, read, root_cause
from .representing import represent
from .saving import ExternalData, Saved, move, save
from .tensors import SPARSE
from .validate import validate
from .weights import graphs, is_large, parameters, places, weight_bytes, weights
from .writing import message

__all__ = [
    "NOTES",
    "SPARSE",
    "ExternalData",
    "Saved",
    "check",
    "clone",
    "count_nodes",
    "file_bytes",
    "file_sha256",
    "fingerprint",
    "input_specs",
    "load",
    "move",
    "nodes",
    "opset",
    "output_specs",
    "parameters",
    "save",
    "weight_bytes",
    "weights",
]

NOTES = "graphopt.notes"
"""Key of ``model.meta`` under which ``load`` leaves a list of what it mended."""


@collected_later()
def load(path: str | Path) -> ir.Model:
    """Read and validate a model. Weights stay in their files; ``model.meta[NOTES]`` tells what was mended.

    Raises:
        ModelError: There is no such file, it is not a valid model, or its external data are missing, too short or
            outside its folder. The message names the node or the file.
    """
    path = Path(path)
    try:
        proto, contents = read(path)
        files = DataFiles(path, contents)
        notes = validate(proto, files)
        model = _checked(proto, files)
    except ModelError as error:
        where = str(path) if error.where is None else f"{path}, {error.where}"
        raise ModelError(error.what, where=where, hint=error.hint) from error.__cause__
    model.meta[NOTES] = notes
    return model


def _checked(proto: onnx.ModelProto, files: DataFiles) -> ir.Model:
    """The graph of ``proto``. The checker takes that apart and so comes second, but what it says comes first."""
    unsupported: Exception | None = None
    try:
        model = represent(proto, files)
    except Exception as error:  # whatever the library raises on a model that it does not support
        unsupported = error
    checker.run(proto, full=False)
    if unsupported is not None:
        raise ModelError(f"the model cannot be represented: {root_cause(unsupported)}") from unsupported
    return model


@collected_later()
def check(model: ir.Model, full: bool = True) -> None:
    """Run the onnx checker, with ``full`` strict shape inference too. Large weights are not copied; ``model`` stays as it is.

    Raises:
        ModelError: The model is not valid; the message names the node where it can.
    """
    without = {place.owner: ("elsewhere", 0) for place in places(model) if is_large(place.tensor)}
    if opset(model) < checker.SPARSE_CONSTANT_OPSET:  # only initializers of the main graph have a stand-in then
        without = {
            owner: where for owner, where in without.items() if isinstance(owner, ir.Value) and owner.graph is model.graph
        }
    checker.run(message(model, without.get), full=full)


@collected_later()
def clone(model: ir.Model) -> ir.Model:
    """A copy of the graph; tensors are shared."""
    return model.clone()


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes: of the graph, of functions, and of their subgraphs."""
    for graph in graphs(model):
        yield from graph


def count_nodes(model: ir.Model) -> int:
    """How many nodes there are; Constant nodes do nothing and are not counted."""
    return sum(node.op_type != "Constant" for node in nodes(model))


def opset(model: ir.Model) -> int:
    """Version of the default domain; 0 when the model does not import it."""
    return model.opset_imports.get("", 0)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of one file, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_bytes(path: str | Path) -> int:
    """Size of a model on the disk: its file and the files of its external data.

    Raises:
        ModelError: It is not a model file, or its external data are missing.
    """
    path = Path(path)
    proto, contents = read(path)
    files = DataFiles(path, contents)
    return path.stat().st_size + sum(files[location].bytes for location in locations(proto) - {path.name})


def input_specs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """What a user must feed: the graph's inputs that have no initializer.

    Raises:
        ModelError: An input has no type.
    """
    return tuple(_spec(value) for value in model.graph.inputs if value.name not in model.graph.initializers)


def output_specs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """What a run returns.

    Raises:
        ModelError: An output has no type.
    """
    return tuple(_spec(value) for value in model.graph.outputs)


def _spec(value: ir.Value) -> TensorSpec:
    if value.dtype in {None, ir.DataType.UNDEFINED}:
        raise ModelError("this input or output of the model has no type", where=repr(value.name))
    dtype = np.dtype(object) if value.dtype == ir.DataType.STRING else np.dtype(value.dtype.numpy())
    if value.shape is None:
        return TensorSpec(value.name or "", dtype, None)
    return TensorSpec(value.name or "", dtype, tuple(_dimension(dim) for dim in value.shape))


def _dimension(dim: int | ir.SymbolicDim) -> int | str | None:
    """A size, a symbol, or None; some exporters write -1 for a dynamic dimension."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value or None
