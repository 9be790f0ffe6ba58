"""onnxsim in the place of this family's own steps, to compare with: ``--set simplify.engine=onnxsim``.

It is imported here and nowhere else, and only when it is asked for. What it returns is a new ModelProto: the graph and the
functions are taken over from it, while names and shapes of inputs and outputs, the metadata and what else the file says
about itself stay the model's own. The core checks and compares the result like any other.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.errors import MissingError, ModelError, UsageError
from graphopt.model import count_nodes, weight_bytes

LIMIT_BYTES = 1_500_000_000
"""onnxsim takes the whole model as one message, of which protobuf allows 2 GB."""


def simplify_with_onnxsim(model: ir.Model, exclude: Sequence[str] = ()) -> list[Change]:
    """Let onnxsim simplify the model, in place; one change tells what became of it.

    Raises:
        MissingError: onnxsim is not installed.
        ModelError: The weights are too large for it.
        UsageError: Nodes are to be left alone, which it cannot.
    """
    where = "simplify.engine=onnxsim"
    if exclude:
        raise UsageError(
            "onnxsim cannot leave nodes alone", where=where, hint="Leave out --exclude, or use graphopt's own steps."
        )
    try:
        import onnxsim
    except ImportError as error:
        raise MissingError(f"this engine needs onnxsim: {error}", where=where, hint="pip install 'graphopt[onnxsim]'") from None
    if (size := weight_bytes(model)) >= LIMIT_BYTES:
        raise ModelError(
            f"onnxsim takes models with less than {LIMIT_BYTES / 1e9:g} GB of weights, and this one has {size / 1e9:.2g} GB",
            where=where,
            hint="Use graphopt's own steps, which take models of any size.",
        )
    before = count_nodes(model)
    overridable = any(value.is_initializer() for value in model.graph.inputs)
    proto = ir.to_proto(model)
    with contextlib.redirect_stdout(sys.stderr):
        result, _ = onnxsim.simplify(proto, mutable_initializer=overridable, initializers_as_constants=not overridable)
    if result.graph == proto.graph and list(result.functions) == list(proto.functions):
        return [Change(model.graph.name or "graph", "nothing", "onnxsim found nothing to change", done=False)]
    _take_over(model, ir.from_proto(result))
    what = f"{before} nodes became {count_nodes(model)}"
    return [Change(model.graph.name or "graph", what, f"by onnxsim {getattr(onnxsim, '__version__', '')}".strip())]


def _take_over(model: ir.Model, result: ir.Model) -> None:
    """Give the model the graph and the functions of another, its own names and shapes of inputs and outputs kept."""
    old, new = model.graph, result.graph
    for mine, other in ((old.inputs, new.inputs), (old.outputs, new.outputs)):
        if len(mine) == len(other):
            for value, renamed in zip(mine, other, strict=True):
                _restore(value, renamed)
    new.name, new.doc_string = old.name, old.doc_string
    new.metadata_props.clear()
    new.metadata_props.update(old.metadata_props)
    model.graph = new
    model.ir_version = result.ir_version
    model.functions.clear()
    model.functions.update(result.functions)


def _restore(value: ir.Value, renamed: ir.Value) -> None:
    """Give an input or output of the result the name, type and shape that it had."""
    if renamed.name != value.name:
        renamed.name = value.name
    renamed.type, renamed.shape = value.type, value.shape
    renamed.doc_string = value.doc_string
    renamed.metadata_props.update(value.metadata_props)
