"""Constant weights and what reads them: a weight is quantized once, for all its readers, or not at all.

    MatMul(x, W)  Gemm(x, W)  Gemm(x, Wᵀ)  MatMul(x, Transpose(W))  Gather(W, rows)  LSTM(x, W, R)  Attention(x, W)

Readers that share a weight are one group, and so are the weights of one reader: all of a group becomes integers, or all of it
stays. So a tied weight (an embedding that is the last layer's weight too) stays tied, and no weight is stored twice.

A scale belongs to an output channel. Where that lies in the weight as it is stored is ``Use.channels``: for an embedding that
is tied to a MatMul, the row that is looked up is the MatMul's output channel, so that one set of scales serves both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graphs import annotated_names, constant, site

WEIGHTS: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "MatMul"): (1,),
    ("", "Gemm"): (1,),
    ("", "Gather"): (0,),
    ("", "LSTM"): (1, 2),
    ("com.microsoft", "Attention"): (1,),
}
"""The inputs that are weights, of the operators that can read them as integers."""
_MATRIX = 2


@dataclass(frozen=True)
class Use:
    """Input ``index`` of ``node`` is ``weight``, or with ``turned`` the weight's Transpose."""

    node: ir.Node
    index: int
    weight: ir.Value
    turned: bool

    @property
    def transposed(self) -> bool:
        """Whether the node multiplies by the transposed of what is stored."""
        flag = self.node.attributes.get("transB")
        return self.turned != (flag is not None and bool(flag.as_int()))

    @property
    def channels(self) -> tuple[int, ...]:
        """The axes of the stored weight along which the channels lie that have a scale of their own."""
        rank = len(_tensor(self.weight).shape)
        if self.node.op_type == "LSTM":  # [direction, gate and unit, input]
            return (0, 1)
        if self.node.op_type == "Gather" or self.transposed:
            return (0,)
        return (*range(rank - 2), rank - 1)


@dataclass(frozen=True)
class Group:
    """Nodes and weights that become integers together. ``problem``: why they cannot."""

    uses: tuple[Use, ...]
    problem: str = ""

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes, each once, in the order of the graph."""
        return tuple(dict.fromkeys(use.node for use in self.uses))


def groups(model: ir.Model) -> list[Group]:
    """All groups of the main graph and its subgraphs, in the order of their first nodes."""
    uses = [use for node in model.graph.all_nodes() for use in _uses(model, node)]
    by_node: dict[ir.Node, list[Use]] = {}
    by_weight: dict[ir.Value, list[Use]] = {}
    for use in uses:
        by_node.setdefault(use.node, []).append(use)
        by_weight.setdefault(use.weight, []).append(use)
    annotated = annotated_names(model)
    found: list[Group] = []
    seen: set[ir.Node] = set()
    for node in by_node:
        if node in seen:
            continue
        together, waiting = {node: None}, [node]
        while waiting:
            reached = (use.node for mine in by_node[waiting.pop()] for use in by_weight[mine.weight])
            new = [other for other in dict.fromkeys(reached) if other not in together]
            together.update(dict.fromkeys(new))
            waiting += new
        seen.update(together)
        members = tuple(use for use in uses if use.node in together)
        problems = (_problem(weight, by_weight[weight], annotated) for weight in dict.fromkeys(u.weight for u in members))
        found.append(Group(members, next(filter(None, problems), "")))
    return found


def is_reader(model: ir.Model, node: ir.Node) -> bool:
    """Whether the node is one of the operators of the table, and no call of a function of that name."""
    return (node.domain, node.op_type) in WEIGHTS and node.op_identifier() not in model.functions


def _uses(model: ir.Model, node: ir.Node) -> Iterator[Use]:
    """The weights of a node; none if one of them is no constant in a form that it can be read in as integers."""
    if not is_reader(model, node):
        return
    found = []
    for index in WEIGHTS[node.domain, node.op_type]:
        use = _use(node, index)
        if use is None:
            return
        found.append(use)
    yield from found


def _use(node: ir.Node, index: int) -> Use | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    if constant(value) is not None:
        use = Use(node, index, value, turned=False)
    else:
        transpose = value.producer()
        if transpose is None or not _turns(transpose) or node.op_type not in {"MatMul", "Gemm"}:
            return None
        stored = transpose.inputs[0]
        assert stored is not None
        use = Use(node, index, stored, turned=True)
    rank = len(_tensor(use.weight).shape)
    if node.op_type == "Gather":
        axis = node.attributes.get("axis")
        return use if rank == _MATRIX and (axis is None or axis.as_int() in {0, -_MATRIX}) else None
    return use if rank >= _MATRIX else None


def _turns(node: ir.Node) -> bool:
    """Whether a node transposes a constant matrix."""
    if node.op_type != "Transpose" or node.domain != "" or node.inputs[0] is None:
        return False
    tensor, perm = constant(node.inputs[0]), node.attributes.get("perm")
    return tensor is not None and len(tensor.shape) == _MATRIX and (perm is None or tuple(perm.as_ints()) == (1, 0))


def _problem(weight: ir.Value, uses: list[Use], annotated: set[str]) -> str:
    """Why a weight must stay as it is; empty when it need not."""
    tensor = _tensor(weight)
    if tensor.dtype != ir.DataType.FLOAT:
        return f"its weight is of type {tensor.dtype.name}, and integer kernels give FLOAT"
    if weight.name in annotated:
        return "its weight has a quantization annotation"
    readers = {(use.node, use.index) for use in uses}
    waiting = [weight]
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            return f"its weight is also the output {value.name!r}: the file would hold it twice"
        for node, index in value.uses():
            if value is weight and _turns(node) and any(use.turned for use in uses):
                waiting.append(node.outputs[0])
            elif (node, index) not in readers:
                return f"its weight is also read by {site(node)!r} ({node.op_type}): the file would hold it twice"
    return ""


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    tensor = constant(value)
    assert tensor is not None, "only constants are weights"
    return tensor
