"""Which operators of a model can be computed in integers on a target, and why the others cannot.

An ``Operator`` is a node with an integer kernel on the target, and what its quantization takes in: the Add of a constant that
follows a MatMul is its bias, and a Relu or Clip that follows is done by the range of its output. A ``Passing`` node hands
integers on as they are: its output has the parameters of its input.

Only nodes of the main graph are offered: values inside If, Loop, Scan and functions cannot be observed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graphs import constant, is_overridable, site
from graphopt.shapes import Facts
from graphopt.targets import Quantization

from .tables import ABSORBED, ABSORBING, ELEMENTWISE, QUANTIZERS, WEIGHTED


@dataclass(frozen=True, eq=False)
class Operator:
    """A node that an integer kernel can compute, with the nodes that it takes in."""

    name: str
    node: ir.Node
    activations: tuple[int, ...]
    """Indices of the inputs that are computed."""
    constants: tuple[int, ...] = ()
    """Indices of constant inputs that are quantized like activations."""
    weight: int | None = None
    weight_axis: int | None = None
    """The axis with the output's channels; None: one scale for the whole weight."""
    bias: tuple[ir.Node, int] | None = None
    """The node and the index of its input that is a constant added to the products."""
    absorbed: tuple[ir.Node, ...] = ()

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The node and what it takes in, in order."""
        return (self.node, *self.absorbed)

    @property
    def output(self) -> ir.Value:
        """What the last of the nodes gives."""
        return self.nodes[-1].outputs[0]

    @property
    def activation(self) -> ir.Node | None:
        """The Relu or Clip that is taken in."""
        return next((node for node in self.absorbed if node.op_type in ABSORBED), None)


REPLACEABLE = "its weight is an input that a caller may replace"


class Declined(Exception):  # noqa: N818 - an answer, not an error
    """Why a node cannot be quantized."""


def find(
    model: ir.Model, style: Quantization, facts: Facts, observable: frozenset[str]
) -> tuple[list[Operator], list[tuple[ir.Node, str, str]]]:
    """The operators that can be quantized, in the graph's order, and those that cannot: node, name and why."""
    names = _Names()
    operators, declined = [], []
    taken: set[ir.Node] = set()
    for node in model.graph:
        if node.op_type not in style.static or node.domain != "" or node in taken or node.op_identifier() in model.functions:
            continue
        name = names.unique(site(node))
        try:
            operator = _operator(name, node, style, facts)
            unseen = [v.name for v in (operator.output, *_inputs(operator)) if v.name not in observable]
            if unseen:
                raise Declined(f"its value {unseen[0]!r} cannot be observed")
        except Declined as why:
            declined.append((node, name, str(why)))
        else:
            operators.append(operator)
            taken.update(operator.absorbed)
    inner = (node for node in model.graph.all_nodes() if node.graph is not model.graph)
    hidden = [node for node in inner if node.op_type in style.static and node.domain == ""]
    inside = "it is in the body of another node, where values cannot be observed"
    declined += [(node, names.unique(site(node)), inside) for node in hidden]
    return operators, declined


def _inputs(operator: Operator) -> list[ir.Value]:
    inputs = (operator.node.inputs[index] for index in operator.activations)
    return [value for value in inputs if value is not None]


class _Names:
    """Names that are given once: node names need not be unique."""

    def __init__(self) -> None:
        self._given: Counter[str] = Counter()

    def unique(self, name: str) -> str:
        self._given[name] += 1
        return name if self._given[name] == 1 else f"{name} #{self._given[name]}"


def _operator(name: str, node: ir.Node, style: Quantization, facts: Facts) -> Operator:
    """The operator of a node.

    Raises:
        Declined: It has none.
    """
    if len(node.outputs) != 1:
        raise Declined("it has more than one output")
    for value in (*node.inputs, *node.outputs):
        if value is not None and (dtype := _dtype(value, facts)) != ir.DataType.FLOAT:
            raise Declined(f"its type is {'not known' if dtype is None else dtype.name.lower()}, not float")
    if any(value is not None and _is_from(value, QUANTIZERS) for value in node.inputs):
        raise Declined("it is quantized already")
    weighted = WEIGHTED.get(node.op_type)
    operator = _unweighted(name, node) if weighted is None else _weighted(name, node, weighted.channel)
    if node.op_type == "MatMul" and operator.weight is not None:
        operator = _with_added_bias(operator)
    return _with_activation(operator, style)


def _weighted(name: str, node: ir.Node, axis: int) -> Operator:
    data, weight = node.inputs[0], node.inputs[1]
    tensor = constant(weight)
    if constant(data) is not None:
        raise Declined("its first input is constant")
    if tensor is None:
        if is_overridable(weight):
            raise Declined(REPLACEABLE)
        if node.op_type == "MatMul":
            return Operator(name, node, (0, 1))
        raise Declined("its weight is computed")
    rank, channel = len(tensor.shape), axis
    if node.op_type == "Gemm":
        channel = 0 if node.attributes.get_int("transB", 0) else 1
    if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) != 1:
        raise Declined("it is a grouped ConvTranspose: a channel's scale has no axis of its own")
    per_channel = rank == 2 if node.op_type == "MatMul" else True
    bias = None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        added = constant(node.inputs[2])
        if added is None:
            raise Declined("its bias is computed, or an input that a caller may replace")
        if node.op_type == "Gemm" and not _is_row(added, tensor.shape[channel]):
            raise Declined(f"its third input has shape {list(added.shape)}: it is no bias of a channel each")
        bias = (node, 2)
    return Operator(name, node, (0,), weight=1, weight_axis=channel % rank if per_channel else None, bias=bias)


def _is_row(tensor: ir.TensorProtocol, channels: object) -> bool:
    """Whether a constant gives each channel of the last axis a number of its own, or all the same."""
    size = math.prod(tensor.shape.numpy())
    return size == 1 or (size == channels and tensor.shape[-1] == channels)


def _unweighted(name: str, node: ir.Node) -> Operator:
    inputs = [(index, value) for index, value in enumerate(node.inputs) if value is not None]
    constants = tuple(index for index, value in inputs if constant(value) is not None)
    activations = tuple(index for index, value in inputs if constant(value) is None)
    if not activations:
        raise Declined("all its inputs are constant")
    if any(is_overridable(value) for _, value in inputs):
        raise Declined("an input is a constant that a caller may replace")
    if constants and node.op_type not in ELEMENTWISE:
        raise Declined("an input is constant")
    if any(size != 1 for size in node.attributes.get_ints("dilations", ())):
        raise Declined("it is dilated, which no integer kernel is")
    if counts_beyond(node):
        raise Declined("its integer kernel counts what lies beyond the padding")
    return Operator(name, node, activations, constants)


def counts_beyond(node: ir.Node) -> bool:
    """Whether onnxruntime's integer kernel computes another mean: it divides by positions that only ceil_mode adds."""
    rounds_up, counts = (node.attributes.get_int(name, 0) for name in ("ceil_mode", "count_include_pad"))
    return node.op_type == "AveragePool" and bool(rounds_up and counts)


def _with_added_bias(operator: Operator) -> Operator:
    """MatMul and the Add of a constant to its columns are one operator, as they are in Gemm."""
    add = only_reader(operator.node.outputs[0])
    if add is None or add.op_type != "Add" or add.domain != "":
        return operator
    index = 1 if add.inputs[0] is operator.node.outputs[0] else 0
    tensor, weight = constant(add.inputs[index]), constant(operator.node.inputs[1])
    if tensor is None or weight is None or len(weight.shape) != 2 or tensor.dtype != ir.DataType.FLOAT:
        return operator
    if math.prod(tensor.shape.numpy()) != weight.shape[1] or tensor.shape[-1] != weight.shape[1]:
        return operator
    return _replace(operator, bias=(add, index), absorbed=(add,))


def _with_activation(operator: Operator, style: Quantization) -> Operator:
    """A Relu or Clip that follows goes with the operator where the range of its output can do its work."""
    node = only_reader(operator.output)
    if node is None or node.op_type not in ABSORBED or node.domain != "" or operator.node.op_type not in ABSORBING:
        return operator
    if style.symmetric and not style.fuses_activations:
        return operator
    low, high = bounds(node)
    if not low <= 0 <= high:
        return operator
    return _replace(operator, absorbed=(*operator.absorbed, node))


def _replace(operator: Operator, **changes: object) -> Operator:
    return Operator(**{**operator.__dict__, **changes})


def bounds(node: ir.Node) -> tuple[float, float]:
    """What a Relu or Clip limits its input to; NaN where a bound is computed."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    limits = [-math.inf, math.inf]
    for index in (1, 2):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None:
            tensor = constant(value)
            limits[index - 1] = math.nan if tensor is None else float(tensor.numpy().item())
    return limits[0], limits[1]


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, if it is in the same graph and the value is no output."""
    uses = [*value.uses()]
    if value.is_graph_output() or len(uses) != 1:
        return None
    node = uses[0].node
    producer = value.producer()
    return node if producer is not None and node.graph is producer.graph else None


def _is_from(value: ir.Value, op_types: frozenset[str]) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type in op_types


def _dtype(value: ir.Value, facts: Facts) -> ir.DataType | None:
    tensor = constant(value)
    if tensor is not None:
        return tensor.dtype
    known = facts.get(value)
    return known.type.dtype if known is not None and isinstance(known.type, ir.TensorType) else None


# --------------------------------------------------------------------------------------------------------------- passing


def passes(node: ir.Node, style: Quantization) -> bool:
    """Whether a node hands integers on as they are, on this target."""
    if node.domain != "" or node.op_type not in {*style.passing, *style.direct}:
        return False
    return _CONDITIONS.get(node.op_type, _always)(node)


def _always(node: ir.Node) -> bool:
    return len(node.outputs) == 1


def _nearest(node: ir.Node) -> bool:
    exact = node.attributes.get_string("mode", "nearest") == "nearest"
    return exact and node.attributes.get_string("coordinate_transformation_mode", "") != "tf_crop_and_resize"


def _zero_padding(node: ir.Node) -> bool:
    """Padding with zero becomes padding with the zero point; padding with what is there stays what it is."""
    if node.attributes.get_string("mode", "constant") != "constant":
        return True
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return True
    tensor = constant(value)
    return tensor is not None and tensor.numpy().item() == 0


def _all_read(node: ir.Node) -> bool:
    return all(output.name and (output.uses() or output.is_graph_output()) for output in node.outputs)


def _no_constant(node: ir.Node) -> bool:
    return all(value is not None and constant(value) is None for value in node.inputs)


_CONDITIONS: Mapping[str, Callable[[ir.Node], bool]] = {
    "Concat": _no_constant,
    "Pad": _zero_padding,
    "Resize": _nearest,
    "Split": _all_read,
}
