"""Attention in one operator: heads are units. The decomposed form needs no rule of its own: MatMul, Reshape and Transpose do.

In all of them a channel is (head, d); the queries' heads are (k, r), r of them for each key-value head k (r = 1 without
grouping). The dimension d of queries and keys sets the scale 1 / sqrt(d), so it stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.axes.analysis import Analysis, Axes, Unknown
from graphopt.axes.ids import Axis, Ids, Symbol

from .elementwise import broadcasted
from .table import rule

_SCALE = "it sets the scale of attention"
_TIME = "samples, or positions of a sequence"


def _heads(a: Analysis, ids: Axis, heads: Ids) -> Ids:
    """Ids of d of an axis that is (head, d)."""
    if isinstance(ids, Symbol) or len(ids) % len(heads):
        raise Unknown("a dynamic number of heads")
    inner = a.union.new(len(ids) // len(heads))
    a.product(ids, (heads, inner))
    return inner


def _grouped(a: Analysis, node: ir.Node, queries: int, keys: int) -> tuple[Ids, Ids]:
    """Ids of the queries' and of the key-value heads."""
    if not queries or not keys or queries % keys:
        raise Unknown("numbers of heads that do not fit")
    shared = a.union.new(keys)
    return (shared if queries == keys else a.merged((shared, a.union.new(queries // keys)), node)), shared


def _join(a: Analysis, heads: Ids, inner: Ids) -> Ids:
    flat = a.union.new(len(heads) * len(inner))
    a.product(flat, (heads, inner))
    return flat


@rule("Attention")
def attention(a: Analysis, node: ir.Node) -> Sequence[Axes | None]:
    """Per head, y = softmax(scale * Q K^T + mask) V.

    Q [n, s, (k, r, d)], K [n, t, (k, d)], V [n, t, (k, e)]  ->  y [n, s, (k, r, e)]. With four axes heads are one of them:
    Q [n, (k, r), s, d]. Past and present keys and values have four always.
    """
    q, k, v = (a.of(node, index) for index in range(3))
    a.lock((q[0], k[0], v[0], q[-2], k[-2], v[-2]), node, _TIME)
    if len(q) == 4:
        if isinstance(q[1], Symbol) or isinstance(k[1], Symbol) or isinstance(v[1], Symbol):
            raise Unknown("a dynamic number of heads")
        heads, shared = _grouped(a, node, len(q[1]), len(k[1]))
        for ids, own in ((q[1], heads), (k[1], shared), (v[1], shared)):
            a.same(ids, own, node)
        key, value, query = k[3], v[3], q[3]
        y: Axes = (q[0], heads, q[2], value)
    else:
        heads, shared = _grouped(a, node, node.attributes.get_int("q_num_heads", 0), node.attributes.get_int("kv_num_heads", 0))
        query, key, value = _heads(a, q[2], heads), _heads(a, k[2], shared), _heads(a, v[2], shared)
        a.count_attribute(node, "q_num_heads", heads)
        a.count_attribute(node, "kv_num_heads", shared)
        y = (q[0], q[1], _join(a, heads, value))
    a.lock((query, key), node, _SCALE)
    for index, inner in ((4, key), (5, value)):
        past = a.maybe(node, index)
        if past is not None:
            a.same(past[1], shared, node)
            a.same(past[3], inner, node)
            a.lock((past[0], past[2]), node, _TIME)
    _mask(a, node, 3, heads)
    keys, values = (q[0], shared, a.symbol(), key), (q[0], shared, a.symbol(), value)
    return [y, keys, values, (q[0], heads, a.symbol(), a.symbol())][: len(node.outputs)]


def _mask(a: Analysis, node: ir.Node, index: int, heads: Ids) -> None:
    """A mask [.., heads or 1, s, t] that is added to the scores."""
    mask = a.maybe(node, index)
    if mask is not None and len(mask) == 4:
        broadcasted(a, node, [(heads,), mask[1:2]])
        a.lock((mask[0], *mask[2:]), node, _TIME)
    elif mask is not None:
        a.lock(mask, node, _TIME)


@rule("com.microsoft.MultiHeadAttention")
def multi_head(a: Analysis, node: ir.Node) -> Sequence[Axes | None]:
    """The same with ``num_heads``, Q [n, s, (h, d)], K and V alike, and a bias [(3, h, d)] for the three."""
    if any(len(a.of(node, index)) != 3 for index in range(3)) or any(node.inputs[6:8]):
        raise Unknown("packed or cached keys and values")
    q, k, v = (a.of(node, index) for index in range(3))
    a.lock((*q[:2], *k[:2], *v[:2]), node, _TIME)
    heads = a.union.new(node.attributes.get_int("num_heads", 1))
    query, key, value = (_heads(a, axes[2], heads) for axes in (q, k, v))
    a.lock((query, key), node, _SCALE)
    a.count_attribute(node, "num_heads", heads)
    bias = a.maybe(node, 3)
    if bias is not None and not isinstance(bias[0], Symbol):
        first = 0
        for axis in (q[2], k[2], v[2]):
            if not isinstance(axis, Symbol):
                a.same(bias[0][first : first + len(axis)], axis, node)
                first += len(axis)
    mask = a.maybe(node, 4)
    a.lock(mask, node, _TIME)
    _mask(a, node, 5, heads)
    return [(q[0], q[1], _join(a, heads, value))]


@rule("com.microsoft.Attention")
def fused_attention(a: Analysis, node: ir.Node) -> Sequence[Axes | None]:
    """Q, K, V = x W + b with W [c, (3, h, d)] and b [(3, h, d)]: c is contracted, a head goes from all three."""
    if (
        node.attributes.get("qkv_hidden_sizes") is not None
        or node.attributes.get_int("do_rotary", 0) == 1
        or any(node.inputs[4:5])
    ):
        raise Unknown("projections of different sizes, or cached keys and values")
    x, w = a.of(node, 0), a.of(node, 1)
    heads = a.union.new(node.attributes.get_int("num_heads", 1))
    if isinstance(w[1], Symbol) or len(w[1]) % (3 * len(heads)):
        raise Unknown("a dynamic number of heads")
    three = a.locked(3, node, "queries, keys and values")
    inner = a.locked(len(w[1]) // (3 * len(heads)), node, _SCALE)
    a.contract(node, (0, 2), (1, 0))
    a.product(w[1], (three, heads, inner))
    a.gives(node, 1, 1)
    a.count_attribute(node, "num_heads", heads)
    bias = a.maybe(node, 2)
    if bias is not None:
        a.same(bias[0], w[1], node)
    a.lock(x[:2], node, _TIME)
    a.lock(a.maybe(node, 3), node, _TIME)
    _mask(a, node, 5, heads)
    return [(x[0], x[1], _join(a, heads, inner))]


@rule("com.microsoft.GroupQueryAttention")
def group_query(a: Analysis, node: ir.Node) -> Sequence[Axes | None]:
    """Q [n, s, (k, r, d)], K and V [n, s, (k, d)], past and present keys and values [n, k, t, d]."""
    if len(node.inputs) < 3 or node.inputs[1] is None or node.inputs[2] is None:
        raise Unknown("packed queries, keys and values")
    q, k, v = (a.of(node, index) for index in range(3))
    heads, shared = _grouped(a, node, node.attributes.get_int("num_heads", 0), node.attributes.get_int("kv_num_heads", 0))
    a.lock((*q[:2], *k[:2], *v[:2]), node, _TIME)
    inner = [_heads(a, q[2], heads), _heads(a, k[2], shared), _heads(a, v[2], shared)]
    a.lock(inner, node, _SCALE)
    a.count_attribute(node, "num_heads", heads)
    a.count_attribute(node, "kv_num_heads", shared)
    for index in (3, 4):
        past = a.maybe(node, index)
        if past is not None:
            a.same(past[1], shared, node)
            a.lock((past[0], *past[2:]), node, _TIME)
    for index in range(5, len(node.inputs)):
        a.lock(a.maybe(node, index), node, _TIME)
    present: Axes = (q[0], shared, a.symbol(), inner[1])
    return [(q[0], q[1], _join(a, heads, inner[2])), present, present][: len(node.outputs)]


@rule("RotaryEmbedding", "com.microsoft.RotaryEmbedding")
def rotary(a: Analysis, node: ir.Node) -> Sequence[Axes | None]:
    """Rotates pairs of d within each head: [n, s, (h, d)] or [n, h, s, d]; d stays."""
    x = a.of(node, 0)
    heads = node.attributes.get_int("num_heads", 0)
    for index in range(1, len(node.inputs)):
        a.lock(a.maybe(node, index), node, _TIME)
    if len(x) == 4:
        a.lock((x[0], *x[2:]), node, "it is rotated in pairs")
        return [x]
    if not heads:
        raise Unknown("a number of heads that is not given")
    ids = a.union.new(heads)
    a.lock((*x[:2], _heads(a, x[2], ids)), node, "it is rotated in pairs")
    a.count_attribute(node, "num_heads", ids)
    return [x]
