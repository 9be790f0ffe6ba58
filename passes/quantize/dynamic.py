"""``quantize.dynamic``: weights in int8, and inputs that are quantized while the model runs, by their own range each time.

No calibration: the range of an input is found in every run. This pays where the multiplication is large against the input,
so for MatMul, Gemm, LSTM and Attention; how each is written is in ``integers.py``. A large table of a Gather can go with
them, for size: only its weight is in integers. It is the style of the target that says for which operators there are kernels.

A site is what shares weights (``readers.py``), mostly one node. Weights are symmetric, with a scale for each output channel.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from pydantic import Field

from graphopt.contracts import Array, Change, Context, LossyPass, PassOptions, Plan, Setting, Site
from graphopt.errors import ModelError
from graphopt.graphs import constant, site

from . import scheme, weights
from .integers import Integers, Weight
from .readers import Group, groups, is_reader

_OPSET = 11
"""The first with DynamicQuantizeLinear."""
_INT8 = Setting("int8")
_SAFE_BITS = 7
"""So many bits of a weight that two products with 8 bits fit in 16 bits together, as kernels without VNNI need it."""
_SLOWER = {
    "Conv": "ConvInteger, which finds the scale of its input in each run, has 0.13 times the speed of Conv in floats",
    "ConvTranspose": "there is no integer kernel for it",
    "GRU": "there is an integer kernel for LSTM, and none for it",
    "RNN": "there is an integer kernel for LSTM, and none for it",
}
_DONE = {
    "ConvInteger",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QAttention",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
}


class DynamicOptions(PassOptions):
    """What becomes integers."""

    per_channel: bool | None = Field(
        None, description="a scale for each output channel of a weight, or one for all; by default as the target wants it"
    )
    required: bool = Field(False, description="whether a model with nothing to quantize, and nothing quantized, is an error")
    least_embedding_bytes: int = Field(
        1_000_000,
        ge=0,
        description="bytes from which on a table that a Gather looks up is offered too: smaller, not faster",
    )


class DynamicQuantize(LossyPass):
    """See the module. Quantized weights are kept, so that another plan for the same model is applied quickly."""

    name = "quantize.dynamic"
    summary = "int8 weights for MatMul, Gemm, LSTM, Attention; the range of what they multiply is found in each run"
    per_site = True
    Options = DynamicOptions
    options: DynamicOptions

    def __init__(self, options: PassOptions | None = None) -> None:
        super().__init__(options)
        self._quantized: dict[tuple[int, tuple[int, ...], int], tuple[ir.TensorProtocol, Weight]] = {}

    def sites(self, model: ir.Model, context: Context) -> Sequence[Site]:
        """One for each group of nodes that share weights, and one without settings for each node that is left alone, with why.

        Nodes in subgraphs are covered, those in functions are not.

        Raises:
            ModelError: There is something to quantize, but the model's opset has no operator for it.
        """
        found = {id(group.nodes[0]): group for group in self._groups(model)}
        covered = {node for group in found.values() for node in group.nodes}
        sites = []
        for node in model.graph.all_nodes():
            if (group := found.get(id(node))) is not None:
                sites.append(_site(group, context))
            elif node not in covered and (why := _declined(model, node)) is not None:
                sites.append(Site(site(node), node.op_type, (), why, (site(node),)))
        if self.options.required and not found and not any("quantize" in n.op_type.lower() for n in model.graph.all_nodes()):
            kinds = ", ".join(context.target.quantization.dynamic) if context.target.quantization is not None else "nothing"
            raise ModelError(f"nothing can be quantized: the target has integer kernels for {kinds}, and for none of its nodes")
        version = model.opset_imports.get("", _OPSET)
        if version < _OPSET and any(found.settings for found in sites):
            raise ModelError(
                f"the model is at opset {version}, and integers whose range is found in each run begin at {_OPSET}",
                where=self.name,
                hint="Put shapes.opset before it: --set shapes.opset.version=20.",
            )
        return sites

    def apply(self, model: ir.Model, plan: Plan, context: Context) -> Sequence[Change]:
        """Write the planned sites with integers."""
        quantization = context.target.quantization
        assert quantization is not None, "without it no site is offered"
        per_channel = quantization.per_channel if self.options.per_channel is None else self.options.per_channel
        bits = _SAFE_BITS if quantization.saturates else quantization.weight_bits
        work = Integers(model, lambda weight, axes: self._weight(weight, axes if per_channel else (), bits))
        changes = []
        for group in self._groups(model):
            place = _site(group, context)
            if place not in plan or not place.settings:
                continue
            what = _what(group)
            try:
                work.write(group)
            except ValueError as error:
                changes.append(Change(place.name, "left alone", str(error), done=False))
            else:
                changes.append(Change(place.name, what, f"the target {context.target.name!r} has a kernel for it"))
        return changes

    def _groups(self, model: ir.Model) -> list[Group]:
        """The groups, without embeddings that are small: their bytes are few, and they do not get faster."""
        least = self.options.least_embedding_bytes
        return [
            group for group in groups(model) if any(node.op_type != "Gather" for node in group.nodes) or _bytes(group) >= least
        ]

    def _weight(self, value: ir.Value, axes: tuple[int, ...], bits: int) -> Weight:
        """Quantize a weight, or return what it was quantized to before.

        Raises:
            ValueError: It holds NaN or infinite numbers.
        """
        tensor = constant(value)
        assert tensor is not None, "only constants are quantized"
        key = (id(tensor), axes, bits)
        if key not in self._quantized:
            self._quantized[key] = (tensor, _quantize(tensor.numpy(), axes, bits))
        return self._quantized[key][1]


def _quantize(array: Array, axes: tuple[int, ...], bits: int) -> Weight:
    """Symmetric int8 of ``bits`` bits, with a scale for each index of ``axes``, or one for all.

    Raises:
        ValueError: There are NaN or infinite numbers.
    """
    if not np.isfinite([array.min(initial=0), array.max(initial=0)]).all():
        raise ValueError("its weight holds NaN or infinite numbers")
    front = range(len(axes))
    channels_first = np.moveaxis(array, axes, front)
    rows = channels_first.reshape(math.prod(channels_first.shape[: len(axes)]), -1)
    parameters = weights.parameters(rows, 0 if axes else None, bits)
    values = np.moveaxis(scheme.quantize(rows, parameters).reshape(channels_first.shape), front, axes)
    shape = [size if axis in axes else 1 for axis, size in enumerate(array.shape)]
    return Weight(values, parameters.scale.reshape(shape if axes else ()))


def _site(group: Group, context: Context) -> Site:
    """The site of a group: its name is that of the first node."""
    first, *others = group.nodes
    op_type = next((node.op_type for node in group.nodes if node.op_type != "Gather"), "Gather")
    excluded = [site(node) for node in others if any(fnmatch.fnmatchcase(site(node), glob) for glob in context.exclude)]
    shared = f"{excluded[0]!r} shares its weight, and is excluded" if excluded else ""
    why = group.problem or shared or next(filter(None, (_unsupported(node, context) for node in group.nodes)), "")
    names = tuple(site(node) for node in group.nodes)
    return Site(site(first), op_type, () if why else (_INT8,), why, names)


def _unsupported(node: ir.Node, context: Context) -> str:
    """Why a node that reads a constant weight must stay in floats; empty when it need not."""
    quantization = context.target.quantization
    kernels = () if quantization is None else quantization.dynamic
    if node.op_type != "Gather" and node.op_type not in kernels:
        return f"the target {context.target.name!r} has no {node.op_type} in integers that finds the scale of its input itself"
    if node.op_type == "Gather" and not kernels:
        return f"the target {context.target.name!r} has no kernels that find the scale of their input themselves"
    if node.op_type == "LSTM" and node.attributes.get_int("layout"):
        return "the integer kernel takes sequences with the batch as second axis only (layout = 0)"
    if node.op_type == "Attention":
        more = [value for value in node.inputs[5:] if value is not None]
        if more or node.attributes.keys() & {"qkv_hidden_sizes", "rotary_embedding_dim"}:
            return "the integer kernel has no bias of the scores, sizes of its own for q, k and v, or partial rotation"
    return ""


def _declined(model: ir.Model, node: ir.Node) -> str | None:
    """Why a node that multiplies is no site; None for other nodes."""
    if node.op_type in _DONE:
        return "it is in integers already"
    if node.domain == "" and node.op_type in _SLOWER:
        return _SLOWER[node.op_type]
    return _no_weight(node) if is_reader(model, node) and node.op_type != "Gather" else None


def _no_weight(node: ir.Node) -> str:
    """Why what a node multiplies by is no weight that could be integers."""
    weight = node.inputs[1]
    producer = None if weight is None else weight.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return "its weight is quantized already"
    if constant(weight) is not None:
        return "its constant is a vector, which is too little to multiply"
    if node.op_type == "MatMul" and constant(node.inputs[0]) is not None:
        return "its constant is on the left, and integer kernels take the weight on the right"
    if weight is not None and weight.is_initializer():
        return "its weight is an input too: a caller may give another one"
    return "it multiplies two values that are computed, and the integer kernel wants a constant weight"


def _what(group: Group) -> str:
    shapes = " and ".join(
        "×".join(str(size) for size in tensor.shape.numpy())
        for tensor in (constant(weight) for weight in dict.fromkeys(use.weight for use in group.uses))
        if tensor is not None
    )
    kinds = ", ".join(dict.fromkeys(node.op_type for node in group.nodes))
    count = len(group.nodes)
    return f"{kinds} in int8, weight {shapes}" + (f", for {count} nodes" if count > 1 else "")


def _bytes(group: Group) -> int:
    tensors = (constant(weight) for weight in dict.fromkeys(use.weight for use in group.uses))
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
