"""Multiply-accumulates: by the textbook for each operator, through subgraphs and functions, as published for real models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import cost, sizes
from graphopt.model import load

from helpers import from_text, small_cnn


def macs(text: str | onnx.ModelProto, dims: dict[str, int] | None = None) -> int | None:
    proto = from_text(text) if isinstance(text, str) else text
    return cost.total_macs(ir.from_proto(proto), dims)


def test_a_small_cnn_is_counted_for_one_sample():
    expected = 64 * 8 * 27 + 64 * 8 * 8 * 9 + 8 * 10
    assert macs(small_cnn(batch="N")) == macs(small_cnn(batch=1)) == expected
    counts = cost.node_macs(ir.from_proto(small_cnn()))
    assert {node.name: count for node, count in counts.items() if count} == {"conv1": 13824, "conv2": 36864, "gemm": 80}


@pytest.mark.parametrize(
    ("body", "inputs", "expected"),
    [
        ("y = Conv<group = 2>(a, b)", "float[N, 4, 5, 5] a, float[6, 2, 3, 3] b", 9 * 6 * 2 * 9),
        ("y = Conv<strides = [2]>(a, b)", "float[N, 3, 9] a, float[5, 3, 3] b", 4 * 5 * 3 * 3),
        ("y = ConvTranspose<group = 2>(a, b)", "float[N, 4, 5, 5] a, float[4, 3, 2, 2] b", 4 * 25 * 3 * 4),
        ("y = ConvInteger(a, b)", "uint8[N, 3, 5, 5] a, uint8[2, 3, 3, 3] b", 9 * 2 * 27),
        ("y = QLinearConv(a, s, z, b, s, z, s, z)", "uint8[N, 3, 5, 5] a, uint8[2, 3, 3, 3] b, float s, uint8 z", 9 * 2 * 27),
        ("y = Gemm<transA = 1, transB = 1>(a, b)", "float[3, 2] a, float[5, 3] b", 2 * 3 * 5),
        ("y = MatMul(a, b)", "float[N, 7, 2, 3] a, float[3, 4] b", 7 * 2 * 3 * 4),
        ("y = MatMul(a, b)", "float[N, 1, 2, 3] a, float[5, 3, 4] b", 5 * 2 * 3 * 4),
        ("y = MatMul(a, b)", "float[3] a, float[3] b", 3),
        ("y = MatMulInteger(a, b)", "uint8[N, 3] a, uint8[3, 4] b", 12),
        ("y = QLinearMatMul(a, s, z, b, s, z, s, z)", "uint8[N, 3] a, uint8[3, 4] b, float s, uint8 z", 12),
        ('y = Einsum<equation = "bhid,bhjd->bhij">(a, b)', "float[N, 2, 3, 4] a, float[N, 2, 5, 4] b", 2 * 3 * 5 * 4),
        ('y = Einsum<equation = "...ij,jk">(a, b)', "float[N, 2, 3] a, float[3, 4] b", 2 * 3 * 4),
        ('y = Einsum<equation = "ij->ji">(a)', "float[N, 2] a", 0),
        ("y = LSTM<hidden_size = 5>(a, b, c)", "float[7, N, 3] a, float[1, 20, 3] b, float[1, 20, 5] c", 7 * 20 * (3 + 5)),
        ("y = GRU<hidden_size = 5>(a, b, c)", "float[7, N, 3] a, float[1, 15, 3] b, float[1, 15, 5] c", 7 * 15 * (3 + 5)),
        ("y = Softmax(a)", "float[N, 1000] a", 0),
    ],
)
def test_operators_are_counted_by_the_textbook(body: str, inputs: str, expected: int):
    outer = inputs.replace("[7, N,", "[7, 1,")
    result = "int32" if "Integer" in body else inputs.split("[", maxsplit=1)[0]
    assert macs(f"g ({outer}) => ({result} y) {{ {body} }}") == expected


def test_attention_counts_both_products_for_every_query_head():
    model = """<ir_version: 11, opset_import: ["" : 23]>
    g (float[N, 6, 32] q, float[N, 10, 16] k, float[N, 10, 16] v) => (float[N, 6, 32] y) {
        y = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v)
    }"""
    assert macs(model) == 4 * 6 * 10 * (8 + 8)


def test_unknown_sizes_make_the_count_unknown_unless_they_are_given():
    model = "g (float[N, T, 8] x, float[8, 4] w) => (float[N, T, 4] y) { a = Relu(x)  y = MatMul(a, w) }"
    assert macs(model) is None
    assert macs(model, {"T": 10}) == 10 * 8 * 4
    counts = cost.node_macs(ir.from_proto(from_text(model)))
    assert [counts[node] for node in counts] == [0, None]


def test_the_largest_value_of_a_run_is_known_from_a_feed():
    model = ir.from_proto(
        from_text("g (float[N, T, 8] x, float[8, 4] w) => (float[N, T, 4] y) { a = Relu(x)  y = MatMul(a, w) }")
    )
    assert sizes.largest_bytes(model, {"x": np.zeros((2, 10, 8), np.float32)}) == 4 * 2 * 10 * 8
    assert sizes.largest_bytes(model, {"x": np.zeros((1, 10, 8), np.float32)}) == 4 * 10 * 8


def test_inference_wins_over_what_the_file_states():
    stale = "g (float[N, 4] x, float[4, 4] w) => (float[9, 4] y) { a = MatMul(x, w)  y = MatMul(a, w) }"
    assert macs(stale) == 2 * 16


def test_a_size_that_the_graph_computes_is_followed():
    model = """g (float[N, 4, 4] x, float[16, 3] w) => (float[N, 3] y)
    <int64 zero = {0}, int64[1] first = {0}, int64[1] rest = {-1}> {
        shape = Shape(x)
        batch = Gather(shape, zero)
        b = Unsqueeze(batch, first)
        target = Concat<axis = 0>(b, rest)
        flat = Reshape(x, target)
        y = MatMul(flat, w)
    }"""
    assert macs(model) == 16 * 3


def test_an_if_costs_its_dearer_branch_and_a_loop_all_its_trips():
    model = """g (float[N, 4] x, bool flag, float[4, 4] w) => (float[N, 4] y) <int64 trips = {3}> {
        a = If(flag) <
            then_branch = t () => (float[N, 4] b) { b = MatMul(x, w) },
            else_branch = e () => (float[N, 4] b) { c = MatMul(x, w)  b = MatMul(c, w) }
        >
        y = Loop(trips, , a) <
            body = body (int64 i, bool go, float[N, 4] s) => (bool on, float[N, 4] r) { on = Identity(go)  r = MatMul(s, w) }
        >
    }"""
    assert macs(model) == 2 * 16 + 3 * 16
    assert macs(model.replace("Loop(trips, ,", "Loop(trips, flag,")) is None


def test_a_scan_costs_its_body_for_every_step():
    assert (
        macs(
            """g (float[7, 4] x, float[1, 4] state, float[4, 4] w) => (float[1, 4] last) {
        last = Scan<num_scan_inputs = 1>(state, x) <
            body = body (float[1, 4] s, float[4] e) => (float[1, 4] r) { p = MatMul(s, w)  r = Add(p, e) }
        >
    }""".replace("Scan<num_scan_inputs = 1>(state, x) <", "Scan(state, x) <num_scan_inputs = 1, ")
        )
        == 7 * 16
    )


def test_a_call_costs_what_its_function_computes_for_its_inputs():
    model = """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
    g (float[N, 4] x, float[4, 6] w) => (float[N, 6] y) { y = local.twice(x, w) }
    <domain: "local", opset_import: ["" : 20]>
    twice (a, b) => (c) { d = MatMul(a, b)  e = MatMul(a, b)  c = Add(d, e) }"""
    assert macs(model) == 2 * 4 * 6


def test_operators_of_unknown_domains_are_unknown():
    model = (
        '<ir_version: 10, opset_import: ["" : 20, "custom" : 1]> g (float[N, 4] x) => (float[N, 4] y) { y = custom.Magic(x) }'
    )
    assert macs(model) is None


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [("cifar_resnet20", 40.5e6, 41e6), ("cifar_resnet20_legacy", 40.5e6, 41e6), ("mobilenet_v2", 299e6, 302e6)],
)
def test_real_models_cost_what_is_published(zoo: Path, name: str, lowest: float, highest: float):
    count = cost.total_macs(load(zoo / "models" / f"{name}.onnx"))
    assert count is not None
    assert lowest <= count <= highest
