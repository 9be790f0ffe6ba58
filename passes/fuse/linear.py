"""Let one linear map of the channels do what two in a row do.

    Conv(Reshape(Transpose(x W + b)))   ->   Reshape(Transpose(x (W V) + (b V + c)))

The Conv is 1 x 1, with a weight V [channels, out] and a bias c. ``x W + b`` is a MatMul with a constant weight [in, channels],
and maybe the Add of a constant; the Transpose brings the channels to axis 1, and the Reshape only takes the places apart into
rows and columns. So heads of vision transformers go from a sequence back to a picture. Weights are computed in float64 and
rounded once. Conditions: nothing else reads what lies in between, all operands are constants that no caller can override, and
one map takes no more multiplications than two: a weight that was taken apart on purpose stays so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant, site

from .affine import rounded
from .enlarge import is_pointwise
from .graph import Work, attribute, ints, only_use

_SWAPPED = (0, 2, 1)


@dataclass(frozen=True)
class _Chain:
    """What lies between x and the Conv."""

    matmul: ir.Node
    add: ir.Node | None
    transpose: ir.Node
    reshape: ir.Node
    bias: np.ndarray | None
    """[channels], in the type of the weight."""


def merge_linear_maps(work: Work, node: ir.Node) -> Change | None:
    """Fold a 1 x 1 Conv into the MatMul before it."""
    v = constant(node.inputs[1])
    chain = None if v is None else _chain(work, node)
    w = None if chain is None else constant(chain.matmul.inputs[1])
    if chain is None or v is None or w is None or not is_pointwise(work, node, v):
        return None
    first, second = w.numpy().astype(np.float64), v.numpy().astype(np.float64)[:, :, 0, 0].T  # [in, channels], [channels, out]
    inputs, channels, outputs = *first.shape, second.shape[1]
    target = ints(chain.reshape.inputs[1])
    if second.shape[0] != channels or inputs * outputs > channels * (inputs + outputs) or not _can_retarget(target, channels):
        return None
    weight = rounded(first @ second, w.numpy().dtype)
    bias = _bias(node, chain, second)
    if not np.isfinite(weight).all() or (bias is not None and not np.isfinite(bias).all()):
        return None
    if work.grow([(chain.matmul, 1, weight.nbytes)], gone=node) is not None:
        return None
    name = site(node)
    _rewrite(work, node, chain, weight, bias, [outputs if index == 1 else size for index, size in enumerate(target or ())])
    return Change(name, "folded Conv into the MatMul before it", "two linear maps in a row are one")


def _chain(work: Work, node: ir.Node) -> _Chain | None:
    reshape = work.producer(node.inputs[0], node, "Reshape")
    transpose = None if reshape is None else work.producer(reshape.inputs[0], reshape, "Transpose")
    if reshape is None or transpose is None or attribute(transpose, "perm") != _SWAPPED:
        return None
    before, after = work.shape(reshape.inputs[0]), work.shape(reshape.outputs[0])
    if before is None or after is None or len(before) != 3 or len(after) != 4 or before[1] != after[1]:
        return None
    last = transpose.inputs[0]
    add = work.producer(last, transpose, "Add")
    matmul, bias = work.producer(last, transpose, "MatMul"), None
    if add is not None:
        found = [(work.producer(v, add, "MatMul"), constant(c)) for v, c in (add.inputs, add.inputs[::-1])]
        matmul, tensor = next(((m, t) for m, t in found if m is not None and t is not None), (None, None))
        bias = None if tensor is None else tensor.numpy()
    between = [*(n.outputs[0] for n in (matmul, add, transpose, reshape) if n is not None)]
    if matmul is None or constant(matmul.inputs[1]) is None or not all(map(only_use, between)):
        return None
    channels = work.shape(matmul.inputs[1])
    if channels is None or len(channels) != 2 or (add is not None and (bias is None or bias.shape != (channels[1],))):
        return None
    return _Chain(matmul, add, transpose, reshape, bias)


def _can_retarget(target: list[int] | None, channels: int) -> bool:
    """Whether the shape that a Reshape asks for names the channels on axis 1, and the places after it."""
    return target is not None and len(target) == 4 and target[1] in {0, channels} and target[2] > 0 and target[3] > 0


def _bias(node: ir.Node, chain: _Chain, second: np.ndarray) -> np.ndarray | None:
    tensor = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    total = np.zeros(second.shape[1])
    if chain.bias is not None:
        total += chain.bias.astype(np.float64) @ second
    if tensor is not None:
        total += tensor.numpy()
    weight = constant(node.inputs[1])
    assert weight is not None
    return rounded(total, weight.numpy().dtype) if total.any() else None


def _rewrite(work: Work, node: ir.Node, chain: _Chain, weight: np.ndarray, bias: np.ndarray | None, target: list[int]) -> None:
    """Put the new chain before ``node``, and its Reshape in its place."""
    name = node.outputs[0].name
    before = chain.transpose.inputs[0]
    assert before is not None
    sequence, turned = work.facts[before], work.facts[chain.transpose.outputs[0]]
    assert sequence.shape is not None
    assert turned.shape is not None
    outputs = weight.shape[1]
    wide = ir.TypeAndShape(sequence.type, ir.Shape([*sequence.shape[:2], outputs]))
    high = ir.TypeAndShape(turned.type, ir.Shape([turned.shape[0], outputs, turned.shape[2]]))
    w = work.constant(node, weight, f"{name}_weight")
    value = work.insert(node, "MatMul", [chain.matmul.inputs[0], w], [], wide)
    if bias is not None:
        value = work.insert(node, "Add", [value, work.constant(node, bias, f"{name}_bias")], [], wide)
    value = work.insert(node, "Transpose", [value], [ir.AttrInt64s("perm", _SWAPPED)], high)
    shape = work.constant(node, np.array(target, np.int64), f"{name}_shape")
    work.add(node, "Reshape", [value, shape], [*chain.reshape.attributes.values()])
