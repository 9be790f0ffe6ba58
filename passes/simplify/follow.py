"""How the dimensions of an operator's outputs follow from those of its inputs, as polynomials.

ONNX's own inference gives up where a dimension is computed; these rules carry on. Only operators that models put between one
computed shape and the next are here. A rule gives one entry for each output, None where it cannot tell.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from .contents import CONTENTS, slice_of
from .dims import Dim, exact_quotient, is_nonnegative, product
from .graph import Root, Work
from .numbers import squeezed, unsqueezed
from .symbolic import Follows, Symbolic

Dims = tuple[Dim, ...]
_TO_THE_END = 1 << 31


def broadcast(known: Symbolic, shapes: Sequence[Dims | None]) -> Dims | None:
    """The dimensions of an elementwise operator's output.

    Of two dimensions a size above 1 wins; of two symbolic ones that may differ, nothing is known.
    """
    given = [shape for shape in shapes if shape is not None]
    if len(given) < len(shapes) or not given:
        return None
    if all(shape == given[0] for shape in given):
        return given[0]
    rank = max(map(len, given))
    result = []
    for axis in range(-rank, 0):
        dims = {shape[axis] for shape in given if len(shape) >= -axis}
        dims.discard(1)
        fixed = [dim for dim in dims if isinstance(dim, int)]
        result.append(fixed[0] if fixed else dims.pop() if len(dims) == 1 else known.unknown() if dims else 1)
    return tuple(result)


def reshaped(known: Symbolic, node: ir.Node) -> Dims | None:
    """The dimensions that a Reshape gives; None if the wanted shape is not even known in length."""
    source = known.dims(node.inputs[0])
    target = known.numbers(node.inputs[1]) if len(node.inputs) > 1 else None
    if target is None or len(target.shape) != 1:
        return None
    copies_zero = not node.attributes.get_int("allowzero", 0)
    dims: list[Dim] = []
    rest = None
    for axis, wanted in enumerate(target.items):
        if wanted == -1:
            rest = axis
            dims.append(1)
        elif wanted is None or not is_nonnegative(wanted):
            dims.append(known.unknown())
        elif wanted == 0 and copies_zero:
            if source is None or axis >= len(source):
                return None
            dims.append(source[axis])
        else:
            dims.append(wanted)
    if rest is not None:
        length = None if source is None or 0 in dims or 0 in source else exact_quotient(product(source), product(dims))
        dims[rest] = known.unknown() if length is None else length
    return tuple(dims)


def _same(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    return [known.dims(node.inputs[0])]


def _elementwise(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    return [broadcast(known, [known.dims(value) for value in node.inputs])]


def _reshape(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    return [reshaped(known, node)]


def _transpose(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    dims = known.dims(node.inputs[0])
    if dims is None:
        return [None]
    perm = node.attributes.get_ints("perm") or [*reversed(range(len(dims)))]
    return [tuple(dims[axis] for axis in perm)]


def _unsqueeze(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    dims, axes = known.dims(node.inputs[0]), known.axes(node)
    return [None if dims is None or axes is None else unsqueezed(dims, axes)]


def _squeeze(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    dims, axes = known.dims(node.inputs[0]), known.axes(node)
    return [None if dims is None or axes is None else squeezed(dims, axes)]


def _flatten(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    dims, axis = known.dims(node.inputs[0]), node.attributes.get_int("axis", 1)
    if dims is None:
        return [None]
    axis = axis + len(dims) if axis < 0 else axis
    return [(product(dims[:axis]), product(dims[axis:]))]


def _expand(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    dims, target = known.dims(node.inputs[0]), known.known_numbers(node.inputs[1])
    return [None if target is None or not all(map(is_nonnegative, target)) else broadcast(known, [dims, tuple(target)])]


def _matmul(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    left, right = known.dims(node.inputs[0]), known.dims(node.inputs[1])
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return [None]
    batch = broadcast(known, [left[:-2], right[:-2]]) if len(left) > 2 or len(right) > 2 else ()
    return [None if batch is None else (*batch, left[-2], right[-1])]


def _gemm(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    a, b = known.dims(node.inputs[0]), known.dims(node.inputs[1])
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return [None]
    return [(a[1 if node.attributes.get_int("transA", 0) else 0], b[0 if node.attributes.get_int("transB", 0) else 1])]


def _concat(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    shapes = [known.dims(value) for value in node.inputs]
    first = shapes[0]
    if first is None or not first:
        return [None]
    axis, total = node.attributes.get_int("axis", 0) % len(first), 0
    length: Dim = total
    result = [*first]
    for shape in shapes:
        if shape is None or len(shape) != len(first):
            return [None]
        length = shape[axis] + length
        result = [b if isinstance(b, int) else a for a, b in zip(result, shape, strict=True)]  # all are equal but one
    result[axis] = length
    return [tuple(result)]


def _slice(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    dims, window = known.dims(node.inputs[0]), slice_of(known, node)
    if dims is None:
        return [None]
    if window is None:
        axes = known.axes(node, 3)
        if axes is None:
            return [tuple(known.unknown() for _ in dims)]
        touched = {axis % len(dims) for axis in axes}
        return [tuple(known.unknown() if axis in touched else dim for axis, dim in enumerate(dims))]
    result = [*dims]
    for axis, (start, end, step) in window.items():
        length = sliced(dims[axis], start, end, step)
        result[axis] = known.unknown() if length is None else length
    return [tuple(result)]


def sliced(dim: Dim, start: Dim, end: Dim, step: int) -> Dim | None:
    """How much of a dimension a Slice keeps; None if it cannot be told."""
    if isinstance(dim, int) and isinstance(start, int) and isinstance(end, int) and step > 0:
        return len(range(dim)[start:end:step])
    if step != 1:
        return None
    first, last = _bound(dim, start), _bound(dim, end)
    if first is None or last is None or not is_nonnegative(last - first):
        return None
    return last - first


def _bound(dim: Dim, bound: Dim) -> Dim | None:
    """Where a bound of a Slice lies, 0 to dim; None if it cannot be told. Every dimension is at least 1."""
    if isinstance(bound, int) and bound >= _TO_THE_END:
        return dim
    if isinstance(bound, int) and bound == -1:
        return dim - 1
    if bound == 0 or (is_nonnegative(bound) and is_nonnegative(dim - bound)):
        return bound
    return dim if is_nonnegative(bound - dim) and is_nonnegative(bound) else None


def _split(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    dims = known.dims(node.inputs[0])
    if not dims:
        return [None]
    axis, count = node.attributes.get_int("axis", 0) % len(dims), len(node.outputs)
    sizes: Sequence[Dim | None] | None = node.attributes.get_ints("split") or None
    if sizes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        sizes = known.known_numbers(node.inputs[1])
    elif sizes is None:
        sizes = [exact_quotient(dims[axis], count)] * count
    sizes = [None] * count if sizes is None else sizes
    return [(*dims[:axis], known.unknown() if size is None else size, *dims[axis + 1 :]) for size in sizes]


def _gather(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    data, indices = known.dims(node.inputs[0]), known.dims(node.inputs[1])
    if not data or indices is None:
        return [None]
    axis = node.attributes.get_int("axis", 0) % len(data)
    return [(*data[:axis], *indices, *data[axis + 1 :])]


def _like_second(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    return [known.dims(node.inputs[1])]


def _reduce(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    dims, axes, keep = known.dims(node.inputs[0]), known.axes(node), node.attributes.get_int("keepdims", 1)
    if not dims or not axes:
        return [None]
    reduced = {axis % len(dims) for axis in axes}
    return [tuple(1 if axis in reduced else dim for axis, dim in enumerate(dims) if keep or axis not in reduced)]


def _constant_of_shape(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    target = known.known_numbers(node.inputs[0])
    return [None if target is None or not all(map(is_nonnegative, target)) else tuple(target)]


def _convolution(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    """Batch and channels; of the other axes, inference knows what can be known."""
    dims, weight = known.dims(node.inputs[0]), known.dims(node.inputs[1])
    if not dims or not weight:
        return [None]
    return [(dims[0], weight[0], *(known.unknown() for _ in dims[2:]))]


def _pooling(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    dims = known.dims(node.inputs[0])
    return [None if not dims else (*dims[:2], *(known.unknown() for _ in dims[2:]))] * len(node.outputs)


def _range(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    ends = [known.known_numbers(value) for value in node.inputs]
    if ends[0] is None or ends[1] is None or ends[2] != [1]:
        return [None]
    length = ends[1][0] - ends[0][0]
    return [(length,) if is_nonnegative(length) else None]


def _resize(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    """Of the sizes that a Resize is given; by scales, ONNX's inference knows as much."""
    sizes = known.known_numbers(node.inputs[3]) if len(node.inputs) > 3 else None
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if sizes is None or "axes" in node.attributes or policy != "stretch" or not all(map(is_nonnegative, sizes)):
        return [None]
    return [tuple(sizes)]


def _tile(known: Symbolic, node: ir.Node) -> list[Dims | None]:
    dims, times = known.dims(node.inputs[0]), known.known_numbers(node.inputs[1])
    return [None if dims is None or times is None else tuple(a * b for a, b in zip(dims, times, strict=True))]


def _table(*rows: tuple[Follows, str]) -> dict[str, Follows]:
    return {op_type: rule for rule, op_types in rows for op_type in op_types.split()}


_DIMS = _table(
    (
        _same,
        "Abs BatchNormalization Cast CastLike Ceil Celu Clip Cos CumSum DequantizeLinear Dropout Elu Erf Exp Floor Gelu"
        " GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Log"
        " LogSoftmax Mish Neg Not PRelu QuantizeLinear RMSNormalization Reciprocal Relu Round ScatterElements ScatterND Selu"
        " Sigmoid Sign Sin Softmax Softplus Softsign Sqrt Swish Tanh Trilu",
    ),
    (
        _elementwise,
        "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow Sub Sum Where Xor",
    ),
    (_reduce, "ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"),
    (_concat, "Concat"),
    (_convolution, "Conv"),
    (_pooling, "AveragePool GlobalAveragePool GlobalMaxPool MaxPool"),
    (_constant_of_shape, "ConstantOfShape"),
    (_expand, "Expand"),
    (_flatten, "Flatten"),
    (_gather, "Gather"),
    (_like_second, "GatherElements"),
    (_gemm, "Gemm"),
    (_matmul, "MatMul"),
    (_range, "Range"),
    (_reshape, "Reshape"),
    (_resize, "Resize"),
    (_slice, "Slice"),
    (_split, "Split"),
    (_squeeze, "Squeeze"),
    (_tile, "Tile"),
    (_transpose, "Transpose"),
    (_unsqueeze, "Unsqueeze"),
)


def symbolic(work: Work, root: Root) -> Symbolic:
    """What is known of the main graph; ``due`` keeps it up to date."""
    if work.symbolic is None:
        work.symbolic = Symbolic(work, root, _DIMS, CONTENTS)
    return work.symbolic
