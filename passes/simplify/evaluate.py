"""Compute one operator on constants, ahead of time, or say why not.

The reference implementation that comes with ONNX computes, or for the usual operators ``direct``; tests show of each that
onnxruntime gives the same.
Everything that raises, warns, or divides by zero, overflows or makes a NaN is refused: what a runtime makes of that is its own
business, and must stay so.

    MOVES      only move elements: exact for every type, and never in vain once the shape of the output is known
    COMPUTES   calculate, in NumPy, with the types of the operator

Random operators are in neither; nor are quantizers (runtimes look for them), strings, and anything with a subgraph.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from . import direct

_MOVES = "Concat Expand Flatten Identity Reshape Slice Split Squeeze Tile Transpose Unsqueeze"
_COMPUTES = (
    "Abs Add And ArgMax ArgMin Cast Ceil Clip ConstantOfShape Cos CumSum DepthToSpace Div Equal Erf Exp EyeLike"
    " Floor Gather GatherElements GatherND Gemm Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Log MatMul Max Mean Min Mod"
    " Mul Neg NonZero Not OneHot Or Pad Pow Range Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd"
    " ReduceSum ReduceSumSquare Relu Round ScatterND Sigmoid Sign Sin SpaceToDepth Sqrt Sub Sum Tanh Trilu Where Xor"
)
MOVES = frozenset(_MOVES.split())
COMPUTES = frozenset(_COMPUTES.split())
LOWEST_OPSET = 7
"""Before this version, operators broadcast by an attribute."""
_EXPANDS = frozenset({"ConstantOfShape", "Expand", "EyeLike", "OneHot", "Pad", "Range", "Tile"})
"""Their outputs may be larger than the product of the sizes of their inputs."""
_NO_LARGER = MOVES - _EXPANDS
"""Their outputs together are no larger than their inputs."""
_MOVED = frozenset({ir.DataType.BFLOAT16, *(t for t in ir.DataType if t.name.startswith("FLOAT8"))})
_COMPUTED = frozenset(
    {ir.DataType.BOOL, ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE}
    | {t for t in ir.DataType if t.name in {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}}
)


class Refused(Exception):  # noqa: N818 - not an error: the node stays
    """The operator is not computed ahead of time; the message says why."""


def accepts(op_type: str, dtype: ir.DataType) -> bool:
    """Whether the operator can be computed ahead of time on inputs of this type."""
    return dtype in _COMPUTED or (op_type in MOVES and dtype in _MOVED)


def bound(op_type: str, tensors: Sequence[ir.TensorProtocol]) -> int | None:
    """An upper bound of the number of elements that the operator gives for these inputs; None if there is none."""
    shape = {"ConstantOfShape": 0, "Expand": 1}.get(op_type)
    if shape is not None and tensors[shape].size <= _SHAPE_ELEMENTS:
        return math.prod(max(1, int(size)) for size in tensors[shape].numpy().flat) * (tensors[0].size + 1)
    if op_type in _NO_LARGER:
        return sum(tensor.size for tensor in tensors)
    return None if op_type in _EXPANDS else math.prod(tensor.size + 1 for tensor in tensors)


def output_types(node: ir.Node, opset: int, tensors: Sequence[ir.TensorProtocol | None]) -> list[ir.TypeAndShape]:
    """Type and shape of each output, found without computing it.

    Raises:
        Refused: They do not follow from the inputs.
    """
    names = [f"i{index}" if tensor is not None else "" for index, tensor in enumerate(tensors)]
    outputs = [f"o{index}" if output.name else "" for index, output in enumerate(node.outputs)]
    attributes = [ir.serde.serialize_attribute(attribute) for attribute in node.attributes.values()]
    proto = onnx.helper.make_node(node.op_type, names, outputs)
    proto.attribute.extend(attributes)
    given = {name: tensor for name, tensor in zip(names, tensors, strict=True) if tensor is not None}
    types = {n: onnx.helper.make_tensor_type_proto(t.dtype.value, t.shape.numpy()) for n, t in given.items()}
    small = {n: ir.serde.serialize_tensor(t) for n, t in given.items() if t.size <= _SHAPE_ELEMENTS}
    for name, tensor in small.items():
        tensor.name = name
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        found = onnx.shape_inference.infer_node_outputs(
            schema, proto, types, small, opset_imports=[onnx.helper.make_opsetid("", opset)]
        )
    except (onnx.shape_inference.InferenceError, onnx.defs.SchemaError, RuntimeError) as error:
        raise Refused(f"its output cannot be foretold: {error}") from error
    result = []
    for name in filter(None, outputs):
        shape = ir.serde.deserialize_type_proto_for_shape(found[name]) if name in found else None
        if shape is None or not shape.is_static():
            raise Refused("the size of its output is not known")
        result.append(ir.TypeAndShape(ir.serde.deserialize_type_proto_for_type(found[name]), shape))
    return result


_SHAPE_ELEMENTS = 64
"""Tensors up to this size may be shapes that inference needs to see."""


def evaluate(node: ir.Node, opset: int, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """The outputs of a node that have a name, in order; where elements only move, they may be views of the inputs.

    Raises:
        Refused: The operator cannot be computed on these inputs without an error or a warning.
    """
    try:
        with np.errstate(all="raise", under="ignore"):
            if node.op_type == "Cast":
                _check_cast(node, inputs)
            found: Any = direct.compute(node, inputs)
            if found is None:
                found = _by_reference(node, opset, inputs)
    except Refused:
        raise
    except FloatingPointError as error:
        raise Refused(f"computing it gives: {error}") from error
    except Exception as error:  # the reference implementation raises whatever it likes
        raise Refused(f"the reference implementation cannot compute it: {error}") from error
    outputs = list(found) if isinstance(found, list | tuple) else [found]
    return [np.asarray(array) for array in outputs[: len(node.outputs)]]


def _by_reference(node: ir.Node, opset: int, inputs: Sequence[np.ndarray | None]) -> Any:
    from onnx.reference.ops import load_op  # not before it is needed: it takes long

    operator: Any = load_op("", node.op_type, opset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return operator.eval(*inputs, n_outputs=len(node.outputs), **_attributes(node))


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {
        name: ir.serde.serialize_tensor(attribute.value)
        if attribute.type == ir.AttributeType.TENSOR
        else list(attribute.value)
        if isinstance(attribute.value, tuple)
        else attribute.value
        for name, attribute in node.attributes.items()
    }


def _check_cast(node: ir.Node, inputs: Sequence[np.ndarray | None]) -> None:
    """A float that does not fit an integer type becomes whatever the processor makes of it."""
    array, to = inputs[0], ir.DataType(node.attributes["to"].as_int())
    if to not in _COMPUTED:
        raise Refused(f"a cast to {to.name.lower()} is left to the runtime")
    if array is None or array.dtype.kind != "f" or to.numpy().kind not in "iu":
        return
    limits = np.iinfo(to.numpy())
    whole = np.trunc(array.astype(np.float64))
    if not np.all((whole >= limits.min) & (whole <= limits.max)):
        raise Refused(f"values do not fit {to.name.lower()}")
