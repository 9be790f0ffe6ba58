"""Whether a ModelProto is a model: its header, its names, the order of its nodes, its operators and its tensors.

The onnx checker (``checker.py``) does part of this, but its errors do not name the node, it passes over undefined
versions, tensors of the wrong size and operators in the wrong order, and it refuses what can be mended. Mended here, in
place, and told in the notes:

    nodes out of order        sorted; values that a subgraph captures count as read by the node that holds the subgraph
    sparse initializers       made dense: the graph representation has none
    training information      dropped, for the same reason

Names follow the checker's scopes: a graph sees what the graphs around it define; a function sees only itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeAlias

import onnx

from graphopt.errors import ModelError

from . import tensors
from .external import DataFiles
from .order import CycleError, stable_order

_LATEST = {
    "": onnx.defs.onnx_opset_version(),
    "ai.onnx.ml": onnx.defs.onnx_ml_opset_version(),
    "ai.onnx.preview": 1,
    "ai.onnx.preview.training": 1,
    "ai.onnx.training": 1,
}
RUNTIME_OPERATORS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})
"""Operators of the default domain that onnxruntime has at opsets where ONNX does not; its transformer optimizer writes them."""

_GRAPHS = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
_PLAIN = {getattr(onnx.AttributeProto, name) for name in ("FLOAT", "FLOATS", "INT", "INTS", "STRING", "STRINGS")}
"""Attributes that hold no tensor and no graph."""

_Opsets: TypeAlias = dict[str, int]
_Body: TypeAlias = onnx.GraphProto | onnx.FunctionProto
_FunctionKey: TypeAlias = tuple[str, str, str]
_Where: TypeAlias = Callable[[], str]
"""The place in words, made when something is wrong there."""


def validate(proto: onnx.ModelProto, files: DataFiles) -> list[str]:
    """Check ``proto``, mend it in place, and say what was mended.

    Raises:
        ModelError: It is not valid; ``where`` names the node, the function or the graph.
    """
    notes: list[str] = []
    _header(proto)
    if proto.training_info:
        proto.ClearField("training_info")
        notes.append("training information was dropped")
    _metadata(proto, notes)
    walk = _Walk(proto, files, notes)
    for function in proto.functions:
        walk.function(function)
    walk.calls_end()
    walk.graph(proto.graph, _Scope("", (), _opsets(proto, "the model")))
    _unique([info.name for info in proto.graph.output], "graph output", "")
    for info in (*proto.graph.input, *proto.graph.output):
        kind = info.type.WhichOneof("value")
        if kind is None or (kind == "tensor_type" and info.type.tensor_type.elem_type == onnx.TensorProto.UNDEFINED):
            raise ModelError(f"the input or output {info.name!r} has no type")
    return notes


def _header(proto: onnx.ModelProto) -> None:
    if not proto.HasField("graph"):
        raise ModelError("this is not an ONNX model: it has no graph")
    if proto.ir_version < 1:
        raise ModelError("the model has no IR version", hint="The file may be damaged, or not an ONNX model.")
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"the model has IR version {proto.ir_version}, but onnx {onnx.__version__} reads at most {onnx.IR_VERSION}",
            hint="Upgrade onnx, or export the model for an older version.",
        )
    if not proto.graph.output:
        raise ModelError("the graph has no outputs")


def _metadata(proto: onnx.ModelProto, notes: list[str]) -> None:
    """Of entries with the same key the last one counts, as onnxruntime has it."""
    entries = {_text(entry.key, "metadata"): _text(entry.value, "metadata") for entry in proto.metadata_props}
    if len(entries) < len(proto.metadata_props):
        proto.ClearField("metadata_props")
        for key, value in entries.items():
            proto.metadata_props.add(key=key, value=value)
        notes.append("metadata keys that occurred more than once were reduced to their last value")


def _opsets(owner: onnx.ModelProto | onnx.FunctionProto, where: str) -> _Opsets:
    """Versions by domain. ``ai.onnx`` is another name of the default domain and is rewritten to it."""
    versions: _Opsets = {}
    for entry in owner.opset_import:
        domain = _domain(entry.domain, where)
        if versions.setdefault(domain, entry.version) != entry.version:
            raise ModelError(f"{where} imports two versions of the domain {_shown(domain)}")
        if domain in _LATEST and not 1 <= entry.version <= _LATEST[domain]:
            raise ModelError(
                f"{where} imports version {entry.version} of the domain {_shown(domain)}, but the latest that onnx"
                f" {onnx.__version__} knows is {_LATEST[domain]}",
                hint="Upgrade onnx, or export the model for an older opset.",
            )
    if not versions:
        raise ModelError(f"{where} imports no opset")
    owner.ClearField("opset_import")
    for domain, version in versions.items():
        owner.opset_import.add(domain=domain, version=version)
    return versions


@dataclass(frozen=True)
class _Scope:
    """Where the walk is: in words, the names that the graphs around define, and the imported opsets."""

    inside: str
    around: tuple[set[str], ...]
    opsets: _Opsets


class _Walk:
    """One walk over all graphs and functions: what it must know of the model, and what it has found so far."""

    def __init__(self, proto: onnx.ModelProto, files: DataFiles, notes: list[str]) -> None:
        self.files = files
        self.notes = notes
        self.functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
        if len(self.functions) < len(proto.functions):
            _unique([f"{f.domain}.{f.name}" + f".{f.overload}" * bool(f.overload) for f in proto.functions], "function", "")
        self.types: set[bytes] = set()
        self.calls: dict[_FunctionKey, set[_FunctionKey]] = {key: set() for key in self.functions}
        self.caller: _FunctionKey | None = None

    def function(self, function: onnx.FunctionProto) -> None:
        """Check a function's body; it sees its own inputs and opsets only."""
        where = f"function {_text(function.name, 'function')!r}"
        self.caller = (function.domain, function.name, function.overload)
        _unique(function.input, "input", where)
        _unique(function.output, "output", where)
        for info in function.value_info:
            self._value_info(info, where)
        for attribute in function.attribute_proto:
            if attribute.type in _GRAPHS:
                raise ModelError(f"the attribute {attribute.name!r} of {where} is a graph, which graphopt does not support")
            self._tensors(attribute, lambda: where)
        self._body(function, set(function.input), function.output, _Scope(where, (), _opsets(function, where)))
        self.caller = None

    def calls_end(self) -> None:
        """Functions must not call themselves, directly or through others."""
        keys = list(self.functions)
        index = {key: i for i, key in enumerate(keys)}
        try:
            stable_order([{index[called] for called in self.calls[key]} for key in keys])
        except CycleError as error:
            names = [keys[i][1] for i in error.nodes]
            raise ModelError(f"functions call each other without end: {' -> '.join([*names, names[0]])}") from None

    def graph(self, graph: onnx.GraphProto, scope: _Scope) -> set[str]:
        """Check a graph and return the names that it reads from the graphs around it."""
        inside = scope.inside
        if not _text(graph.name, inside):
            graph.name = "graph"
        for info in (*graph.input, *graph.output, *graph.value_info):
            self._value_info(info, inside)
        for sparse in graph.sparse_initializer:
            name = _text(sparse.values.name, inside)
            try:
                graph.initializer.append(tensors.dense(sparse, self.files))
            except ModelError as error:
                raise _about(f"initializer {name!r}", inside, error) from None
            self.notes.append(f"the sparse initializer {name!r} was made dense")
        graph.ClearField("sparse_initializer")
        inputs = [info.name for info in graph.input]
        initializers = [tensor.name for tensor in graph.initializer]
        _unique(inputs, "graph input", inside)
        _unique(initializers, "initializer", inside)
        for tensor in graph.initializer[:]:
            self._tensor(tensor, "initializer", tensor.name, lambda: inside)
        return self._body(graph, {*inputs, *initializers}, [info.name for info in graph.output], scope)

    def _body(self, body: _Body, given: set[str], outputs: Iterable[str], scope: _Scope) -> set[str]:
        """Check nodes and sort them. ``given`` are the names of inputs and initializers."""
        nodes = body.node[:]
        maker = _makers(nodes, given, scope.inside)
        here = given | maker.keys()
        for name in outputs:
            if name not in here:
                raise ModelError(f"the output {_text(name, scope.inside)!r} is not defined{_in(scope.inside)}")
        within = _Scope(scope.inside, (*scope.around, here), scope.opsets)
        captured: set[str] = set()
        read: list[set[str]] = []
        for node in nodes:
            reads = self._node(node, within)
            read.append(reads)
            if not reads <= here:
                outer = reads - here
                for name in sorted(outer, key=str):
                    if not any(name in names for names in scope.around):
                        where = _label(node, scope.inside)
                        raise ModelError(f"its input {_text(name, where)!r} is not defined", where=where)
                captured |= outer
        if any(maker.get(name, -1) >= index for index, reads in enumerate(read) for name in reads):
            self._sort(body, [{maker[name] for name in reads if name in maker} for reads in read], scope.inside)
        return captured

    def _sort(self, body: _Body, needs: list[set[int]], inside: str) -> None:
        try:
            order = stable_order(needs)
        except CycleError as error:
            labels = [_label(body.node[i], "") for i in error.nodes]
            shown = labels if len(labels) <= 8 else [*labels[:7], f"{len(labels) - 7} more"]
            raise ModelError(f"the graph has a cycle{_in(inside)}: {' -> '.join([*shown, labels[0]])}") from None
        ordered = [body.node[i] for i in order]
        del body.node[:]
        body.node.extend(ordered)
        self.notes.append(f"the nodes were not in the order of their use and were sorted{_in(inside)}")

    def _node(self, node: onnx.NodeProto, scope: _Scope) -> set[str]:
        """Check one node and return the names that it reads, through its subgraphs too."""
        inside = scope.inside
        self._operator(node, scope)
        reads = set(node.input[:])
        for attribute in node.attribute[:]:
            if attribute.type in _GRAPHS:
                single = attribute.type == onnx.AttributeProto.GRAPH
                if attribute.ref_attr_name or (single and not attribute.HasField("g")):
                    raise ModelError(f"its attribute {attribute.name!r} holds no graph", where=_label(node, inside))
                deeper = _Scope(f"{attribute.name} of {_label(node, inside)}", scope.around, scope.opsets)
                for graph in [attribute.g] if single else attribute.graphs:
                    reads |= self.graph(graph, deeper)
            elif attribute.type not in _PLAIN or attribute.ref_attr_name or not isinstance(attribute.name, str):
                self._tensors(attribute, partial(_label, node, inside), node)
        reads.discard("")
        return reads

    def _operator(self, node: onnx.NodeProto, scope: _Scope) -> None:
        inside, opsets = scope.inside, scope.opsets
        op_type, given = node.op_type, node.domain
        for text in (op_type, node.name, node.doc_string):
            if not isinstance(text, str):
                _text(text, inside or "the graph")
        domain = _domain(given, inside)
        if domain != given:
            node.domain = domain
        key = (domain, op_type, node.overload)
        if key in self.functions and self.caller is not None:
            self.calls[self.caller].add(key)
        if domain not in opsets:
            raise ModelError(
                f"its operator is of the domain {_shown(domain)}, which is not imported", where=_label(node, inside)
            )
        if key not in self.functions and domain in _LATEST and not _exists(op_type, opsets[domain], domain):
            raise ModelError(
                f"the domain {_shown(domain)} has no operator {node.op_type!r} at version {opsets[domain]}",
                where=_label(node, inside),
                hint="Custom operators belong in a domain of their own.",
            )

    def _tensors(self, attribute: onnx.AttributeProto, where: _Where, node: onnx.NodeProto | None = None) -> None:
        """Check the tensors of an attribute. A constant's sparse value is made dense."""
        name = attribute.name
        if not isinstance(name, str):
            _text(name, where())
        if attribute.ref_attr_name:
            if self.caller is None:
                raise ModelError(f"its attribute {name!r} refers to one of a function, but is not in one", where=where())
            return
        if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and node is not None and node.op_type == "Constant":
            try:
                value = tensors.dense(attribute.sparse_tensor, self.files)
            except ModelError as error:
                raise _about("its sparse value", where(), error) from None
            attribute.Clear()
            attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
            attribute.t.CopyFrom(value)
            self.notes.append(f"the sparse value of {where()} was made dense")
        elif attribute.type in {onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS}:
            raise ModelError(f"its attribute {name!r} is a sparse tensor, which graphopt does not support", where=where())
        elif attribute.type == onnx.AttributeProto.TENSOR:
            self._tensor(attribute.t, "its attribute", name, where)
        for tensor in attribute.tensors:
            self._tensor(tensor, "its attribute", name, where)

    def _value_info(self, info: onnx.ValueInfoProto, inside: str) -> None:
        """Check a value's name and type. Few types differ, and each is checked once."""
        _text(info.name, inside)
        given = info.type.SerializeToString()
        if given not in self.types:
            _value_type(info, inside)
            self.types.add(info.type.SerializeToString())

    def _tensor(self, tensor: onnx.TensorProto, what: str, name: str, where: _Where) -> None:
        try:
            tensors.check(tensor, self.files)
        except ModelError as error:
            raise _about(f"{what} {name!r}", where(), error) from None


def _makers(nodes: Sequence[onnx.NodeProto], given: set[str], inside: str) -> dict[str, int]:
    """Which node makes which name; no name is made twice."""
    maker: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.output[:]:
            if name in given or name in maker:
                other = _label(nodes[maker[name]], "") if name in maker else "an input or initializer"
                raise ModelError(f"it makes {name!r}, which is made by {other} already", where=_label(node, inside))
            if name:
                maker[name] = index
    if not set(map(type, maker)) <= {str}:
        for name in maker:
            _text(name, inside or "the graph")
    return maker


def _value_type(info: onnx.ValueInfoProto, inside: str) -> None:
    """Check a value's type; a negative dimension, which some exporters write for an unknown one, becomes unknown."""
    name = info.name
    of_value = info.type
    kind = of_value.WhichOneof("value")
    while kind in {"sequence_type", "optional_type"}:
        of_value = getattr(of_value, kind).elem_type
        kind = of_value.WhichOneof("value")
        if kind is None:
            raise ModelError(f"the value {name!r} is a sequence or optional of nothing{_in(inside)}")
    if kind in {"map_type", "opaque_type"}:
        raise ModelError(
            f"the value {name!r} is of type {kind.removesuffix('_type')}, which graphopt does not support{_in(inside)}",
            hint="Export the model so that it returns tensors (scikit-learn models: the option zipmap=False).",
        )
    if kind is None:
        return
    of_tensor = getattr(of_value, kind)
    if of_tensor.elem_type:
        try:
            tensors.data_type(of_tensor.elem_type)
        except ModelError as error:
            raise _about(f"the value {name!r}", inside, error) from None
    for dim in of_tensor.shape.dim:
        _text(dim.dim_param, inside)
        if dim.dim_value < 0:
            dim.ClearField("dim_value")


@cache
def _exists(operator: str, version: int, domain: str) -> bool:
    if domain == "" and operator in RUNTIME_OPERATORS:
        return True
    return bool(onnx.defs.has(operator, version, domain))


def _about(what: str, where: str, error: ModelError) -> ModelError:
    """The error with the name of the tensor or value that it is about."""
    return ModelError(f"{what} is not valid: {error.what}", where=where or None)


def _unique(names: Iterable[str], what: str, inside: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not _text(name, inside):
            raise ModelError(f"there is a nameless {what}{_in(inside)}")
        if name in seen:
            raise ModelError(f"the {what} {name!r} occurs twice{_in(inside)}")
        seen.add(name)


def _text(text: str, where: str) -> str:
    """The text itself. Protobuf gives bytes where a file has something that is not UTF-8."""
    if not isinstance(text, str):
        raise ModelError(
            f"a name or text is not UTF-8: {bytes(text[:40])!r}", where=where or None, hint="The file may be damaged."
        )
    return text


def _domain(domain: str, where: str) -> str:
    return "" if _text(domain, where) == "ai.onnx" else domain


def _shown(domain: str) -> str:
    return repr(domain or "ai.onnx")


def _label(node: onnx.NodeProto, inside: str) -> str:
    made = next((name for name in node.output if name), "")
    named = f"node {node.name!r} ({node.op_type})" if node.name else f"the {node.op_type} node that makes {made!r}"
    return named + _in(inside)


def _in(inside: str) -> str:
    return f" in {inside}" if inside else ""
