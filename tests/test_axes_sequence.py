"""What is removed together in transformers and recurrent networks: heads, feed-forward widths, hidden units, embeddings."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import axes

from channels import Net, assert_removal_is_exact, sizes, why
from helpers import from_text

WIDTH = 8


def tokens(seed: int = 0, opset: int = 20) -> Net:
    return Net(seed, opset, x=["N", "T", WIDTH])


def split_heads(net: Net, x: str, heads: int, size: int, perm: list[int]) -> str:
    return net("Transpose", net("Reshape", x, net.constant([0, 0, heads, size])), perm=perm)


def attend(net: Net, q: str, k: str, v: str, heads: int, size: int, out: int = WIDTH) -> str:
    """Softmax(q k / sqrt(size)) v for q, v [N, H, T, D] and k [N, H, D, T], and the projection."""
    scores = net("Softmax", net("Mul", net("MatMul", q, k), net.constant(np.float32(size**-0.5))), axis=-1)
    y = net("Transpose", net("MatMul", scores, v), perm=[0, 2, 1, 3])
    return net.linear(net("Reshape", y, net.constant([0, 0, heads * size])), heads * size, out)


def attention(net: Net, x: str, heads: int, size: int) -> str:
    q, k, v = (net.linear(x, WIDTH, heads * size) for _ in range(3))
    turned = split_heads(net, k, heads, size, [0, 2, 3, 1])
    return attend(
        net, split_heads(net, q, heads, size, [0, 2, 1, 3]), turned, split_heads(net, v, heads, size, [0, 2, 1, 3]), heads, size
    )


def normed(net: Net, x: str) -> str:
    return net("LayerNormalization", x, net.weight(WIDTH), net.weight(WIDTH))


def test_heads_are_units_and_the_residual_width_stays() -> None:
    net = tokens()
    x = net("Add", attention(net, normed(net, net.linear("x", WIDTH, WIDTH)), 4, 3), "x")
    model = net.model(net.linear(x, WIDTH, 2))
    assert sizes(model) == [4]
    assert "LayerNormalization" in why(model)[0]
    group = next(group for group in axes.analyse(model).groups() if group.prunable)
    assert [len(use.index(1)) for use in group.producers] == [3, 3, 3]
    assert len(group.consumers[0].index(1)) == 3
    assert "4 units of 3 channels" in str(group)
    assert_removal_is_exact(model)


def test_one_head_alone_prunes_its_dimensions() -> None:
    net = tokens()
    model = net.model(attention(net, "x", 1, 6))
    assert sizes(model) == [6, 6]
    assert_removal_is_exact(model)


@pytest.mark.parametrize("how", ["reshape", "split", "gather"])
def test_heads_of_a_fused_projection_go_from_queries_keys_and_values(how: str) -> None:
    net, heads, size = tokens(), 4, 3
    x = net.linear("x", WIDTH, 3 * heads * size)
    if how == "split":
        parts = [
            split_heads(net, part, heads, size, [0, 2, 1, 3])
            for part in net.many("Split", 3, x, net.constant([heads * size] * 3), axis=2)
        ]
    else:
        x = net("Transpose", net("Reshape", x, net.constant([0, 0, 3, heads, size])), perm=[2, 0, 3, 1, 4])
        if how == "gather":
            parts = [net("Gather", x, net.constant(number), axis=0) for number in range(3)]
        else:
            parts = [
                net("Squeeze", part, net.constant([0])) for part in net.many("Split", 3, x, net.constant([1, 1, 1]), axis=0)
            ]
    turned = net("Transpose", parts[1], perm=[0, 1, 3, 2])
    model = net.model(attend(net, parts[0], turned, parts[2], heads, size))
    assert sizes(model) == [4]
    assert_removal_is_exact(model)


def rotated(net: Net, x: str, size: int) -> str:
    """x * cos + rotate_half(x) * sin on the last axis of [N, H, T, D]."""
    half = size // 2
    first = net("Slice", x, net.constant([0]), net.constant([half]), net.constant([3]))
    second = net("Slice", x, net.constant([half]), net.constant([2**31]), net.constant([3]))
    turned = net("Concat", net("Neg", second), first, axis=-1)
    return net("Add", net("Mul", x, net.weight(1, 1, 1, size)), net("Mul", turned, net.weight(1, 1, 1, size)))


def test_grouped_queries_go_with_their_keys_and_values() -> None:
    net, shared, repeats, size = tokens(), 3, 2, 4
    q = split_heads(net, net.linear("x", WIDTH, shared * repeats * size), shared * repeats, size, [0, 2, 1, 3])
    keys = []
    for _ in range(2):
        x = split_heads(net, net.linear("x", WIDTH, shared * size), shared, size, [0, 2, 1, 3])
        x = rotated(net, x, size) if not keys else x
        x = net("Unsqueeze", x, net.constant([2]))
        x = net("Expand", x, net.constant([1, 1, repeats, 1, 1]))
        keys.append(net("Reshape", x, net.constant([0, shared * repeats, -1, size])))
    turned = net("Transpose", keys[0], perm=[0, 1, 3, 2])
    model = net.model(attend(net, rotated(net, q, size), turned, keys[1], shared * repeats, size))
    assert sizes(model) == [3]
    group = next(group for group in axes.analyse(model).groups() if group.prunable)
    assert [len(use.index(0)) for use in group.producers] == [8, 4, 4]
    assert_removal_is_exact(model, rtol=1e-4)


def test_feed_forward_width_prunes_also_when_gated() -> None:
    net = tokens()
    gate = net("Mul", net("Sigmoid", net.linear("x", WIDTH, 12)), net.linear("x", WIDTH, 12))
    model = net.model(net("Add", net.linear(gate, 12, WIDTH), "x"))
    assert sizes(model) == [12]
    assert_removal_is_exact(model)


def test_standard_attention_loses_heads_and_grouped_ones() -> None:
    for kv in (4, 2):
        net = tokens(opset=23)
        q, k, v = (net.linear("x", WIDTH, heads * 3) for heads in (4, kv, kv))
        y = net("Attention", q, k, v, q_num_heads=4, kv_num_heads=kv)
        model = net.model(net.linear(y, 12, WIDTH))
        assert sizes(model) == [kv]
        node = next(node for node in assert_removal_is_exact(model).graph if node.op_type == "Attention")
        assert node.attributes.get_int("kv_num_heads") == kv // 2
        assert node.attributes.get_int("q_num_heads") == 2


def test_contrib_attention_loses_heads() -> None:
    net = tokens()
    q, k, v = (net("MatMul", "x", net.weight(WIDTH, 12)) for _ in range(3))
    y = net("MultiHeadAttention", q, k, v, net.weight(36), domain="com.microsoft", num_heads=4)
    y = net.linear(y, 12, WIDTH)
    y = net("Attention", y, net.weight(WIDTH, 36), net.weight(36), domain="com.microsoft", num_heads=4)
    model = net.model(net.linear(y, 12, WIDTH))
    assert sizes(model) == [4, WIDTH, 4]
    assert_removal_is_exact(model)


def test_grouped_query_attention_with_its_cache_loses_key_value_heads() -> None:
    net = Net(x=[2, 3, WIDTH])
    q, k, v = (net("MatMul", "x", net.weight(WIDTH, heads * 8)) for heads in (4, 2, 2))
    lengths, total = net.constant(np.float32(0)), net.constant(np.float32(0))
    net.weights[-2:] = [
        onnx.numpy_helper.from_array(np.array([2, 2], np.int32), lengths),
        onnx.numpy_helper.from_array(np.array(3, np.int32), total),
    ]
    contrib = {"domain": "com.microsoft", "num_heads": 4, "kv_num_heads": 2}
    y = net("GroupQueryAttention", q, k, v, "", "", lengths, total, **contrib)
    model = net.model(net.linear(y, 32, 3))
    assert sizes(model) == [2]
    assert_removal_is_exact(model)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_hidden_units_go_from_all_gates_states_and_directions(operator: str, direction: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    d, hidden = (2 if direction == "bidirectional" else 1), 6
    net = Net(x=[5, "N", 4])
    operands, features = "x", 4
    for _ in range(2):
        weights = [
            net.weight(d, gates * hidden, features),
            net.weight(d, gates * hidden, hidden),
            net.weight(d, 2 * gates * hidden),
        ]
        outputs = net.many(operator, 2, operands, *weights, hidden_size=hidden, direction=direction)
        merged = net("Transpose", outputs[0], perm=[0, 2, 1, 3])
        operands, features = net("Reshape", merged, net.constant([0, 0, d * hidden])), d * hidden
    state = net("MatMul", outputs[1], net.weight(hidden, 2))
    model = net.model(net("MatMul", operands, net.weight(features, 3)), state)
    assert sizes(model) == [6, 6]
    pruned = assert_removal_is_exact(model)
    assert {node.attributes.get_int("hidden_size") for node in pruned.graph if node.op_type == operator} == {3}


def test_initial_states_and_peepholes_shrink_with_the_units() -> None:
    net = Net(x=[5, 2, 4])
    hidden = 4
    zeros = net("ConstantOfShape", net.constant([1, 2, hidden]))
    weights = [net.weight(1, 16, 4), net.weight(1, 16, hidden), net.weight(1, 32)]
    y = net("LSTM", "x", *weights, "", zeros, net.weight(1, 2, hidden), net.weight(1, 12), hidden_size=hidden)
    model = net.model(net("MatMul", y, net.weight(hidden, 3)))
    assert sizes(model) == [4]
    assert_removal_is_exact(model)


def test_an_embedding_loses_columns_and_keeps_its_rows() -> None:
    model = ir.from_proto(
        from_text("""agraph (int64[N, T] ids) => (float[N, T, 1] y)
        <float[3, 4] table = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[4, 1] w = {1, -1, 2, 3}> {
            x = Gather (table, ids)
            y = MatMul (x, w)
        }""")
    )
    assert sizes(model) == [4]
    pruned = assert_removal_is_exact(model, feeds=[{"ids": np.array([[0, 2]])}, {"ids": np.array([[1], [2]])}])
    assert pruned.graph.initializers["table"].shape == ir.Shape([3, 2])


@pytest.mark.parametrize("equation", ["nti,io->nto", "nti, oi -> nto"])
def test_einsum_contracts_and_gives(equation: str) -> None:
    net = tokens()
    shape = (WIDTH, 6) if "io" in equation else (6, WIDTH)
    x = net("Einsum", "x", net.weight(*shape), equation=equation)
    model = net.model(net("Einsum", net("Relu", x), net.weight(6, 3), equation="abc,cd->abd"))
    assert sizes(model) == [6]
    assert_removal_is_exact(model)


def test_a_shape_joined_of_computed_and_constant_sizes_is_joined_again() -> None:
    net, heads, size = tokens(), 4, 3
    batch = net("Shape", "x", start=0, end=1)
    time = net("Shape", "x", start=1, end=2)
    shape = net("Concat", batch, time, net.constant([-1]), net.constant([size]), axis=0)
    whole = net("Concat", batch, time, net.constant([heads * size]), axis=0)
    q, k, v = (net("Reshape", net.linear("x", WIDTH, heads * size), shape) for _ in range(3))
    q, k, v = (
        net("Transpose", q, perm=[0, 2, 1, 3]),
        net("Transpose", k, perm=[0, 2, 3, 1]),
        net("Transpose", v, perm=[0, 2, 1, 3]),
    )
    y = net("Transpose", net("MatMul", net("Softmax", net("MatMul", q, k)), v), perm=[0, 2, 1, 3])
    model = net.model(net.linear(net("Reshape", y, whole), heads * size, WIDTH))
    assert sizes(model) == [4]
    assert_removal_is_exact(model)


def test_a_size_that_is_computed_with_is_not_changed() -> None:
    net = tokens()
    x = net.linear("x", WIDTH, 6)
    count = net("Cast", net("Shape", x, start=2, end=3), to=1)
    model = net.model(net("MatMul", net("Div", x, count), net.weight(6, 2)))
    assert sizes(model) == []
    assert "its size is computed with" in why(model)[0]
    assert_removal_is_exact(model)


@st.composite
def transformers(draw: st.DrawFn) -> ir.Model:
    net = tokens(draw(st.integers(0, 99)))
    x = net.linear("x", WIDTH, WIDTH)
    for kind in draw(st.lists(st.sampled_from(["attention", "mlp", "gated", "norm"]), min_size=1, max_size=4)):
        match kind:
            case "attention":
                y = attention(
                    net,
                    normed(net, x) if draw(st.booleans()) else x,
                    draw(st.sampled_from([1, 2, 3])),
                    draw(st.sampled_from([2, 3])),
                )
                x = net("Add", x, y)
            case "mlp":
                width = draw(st.sampled_from([4, 6]))
                x = net("Add", net.linear(net("Gelu", net.linear(x, WIDTH, width)), width, WIDTH), x)
            case "gated":
                gate = net("Mul", net("Tanh", net.linear(x, WIDTH, 6)), net.linear(x, WIDTH, 6))
                x = net.linear(gate, 6, WIDTH)
            case "norm":
                x = normed(net, x)
    return net.model(net.linear(x, WIDTH, 3))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(transformers(), st.sampled_from([0.4, 0.7]), st.integers(0, 9))
def test_any_transformer_without_the_units_equals_it_with_the_units_zeroed(model: ir.Model, ratio: float, seed: int) -> None:
    assert_removal_is_exact(model, ratio, seed, rtol=1e-4)
