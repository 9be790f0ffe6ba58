from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphopt import registry, targets
from graphopt.contracts import Change, Context, Site
from graphopt.errors import ModelError
from graphopt.model import weight_bytes
from graphopt.passes.quantize.dynamic import DynamicOptions, DynamicQuantize

from fusing import model
from helpers import assert_same_outputs, run, write
from simplifying import context as simplifying_context

RNG = np.random.default_rng(0)


def array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def context(target: str = "cpu", exclude: Sequence[str] = ()) -> Context:
    plain = simplifying_context(None, exclude)
    return Context(
        target=targets.load(target),
        open_session=plain.open_session,
        data=None,
        rng=plain.rng,
        progress=plain.progress,
        exclude=tuple(exclude),
    )


def sites(proto: onnx.ModelProto, exclude: Sequence[str] = (), **options: object) -> list[Site]:
    return [*DynamicQuantize(DynamicOptions(**options)).sites(ir.from_proto(proto), context(exclude=exclude))]


def quantize(
    proto: onnx.ModelProto, *, only: str | None = None, target: str = "cpu", **options: object
) -> tuple[onnx.ModelProto, list[Change]]:
    rewrite, given = DynamicQuantize(DynamicOptions(**options)), context(target)
    found = rewrite.sites(ir.from_proto(proto), given)
    plan = {site: site.settings[0] for site in found if site.settings and only in {None, site.name}}
    changed = ir.from_proto(proto)
    changes = rewrite.apply(changed, plan, given)
    result = ir.to_proto(changed)
    onnx.checker.check_model(result, full_check=True)
    assert [*result.graph.input] == [*proto.graph.input]
    assert [*result.graph.output] == [*proto.graph.output]
    return result, [*changes]


def optimized(proto: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run once with the kernels that onnxruntime fuses."""
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, dict(feed)), strict=True))


def assert_close(a: onnx.ModelProto, b: onnx.ModelProto, feed: Mapping[str, np.ndarray], error: float = 0.03) -> None:
    """The outputs differ by a small part of their size, node by node and with fused kernels."""
    reference = run(a, feed)
    for result in (run(b, feed), optimized(b, feed)):
        for name, expected in reference.items():
            assert result[name].shape == expected.shape
            assert 0 < np.linalg.norm(result[name] - expected) < error * np.linalg.norm(expected), name


def kernels(proto: onnx.ModelProto, feed: Mapping[str, np.ndarray], tmp_path: Path) -> Counter[str]:
    """The operators that the target really runs."""
    times = registry.runtime("onnxruntime").profile(
        write(proto, tmp_path / "m.onnx"), targets.load("cpu"), dict(feed), rounds=1
    )
    return Counter(node.op_type for node in times)


# ---------------------------------------------------------------------------------------------------------------- MatMul


@pytest.mark.parametrize("shape", [(32,), (5, 32), (2, 5, 32), (2, 3, 5, 32)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_matmul_of_any_rank_becomes_one_integer_kernel_with_its_bias(
    shape: tuple[int, ...], bias: bool, tmp_path: Path
) -> None:
    body = "m = MatMul (x, w)  y = Add (m, b)" if bias else "y = MatMul (x, w)"
    rank = ",".join(str(size) for size in shape)
    out = ",".join([*(str(size) for size in shape[:-1]), "16"])
    proto = model(body, f"float[{rank}] x", f"float[{out}] y", w=array(32, 16), **({"b": array(16)} if bias else {}))
    result, _ = quantize(proto)
    assert_close(proto, result, {"x": array(*shape)})
    assert kernels(result, {"x": array(*shape)}, tmp_path) == {"DynamicQuantizeMatMul": 1}


def test_what_reads_one_value_quantizes_it_once(tmp_path: Path) -> None:
    body = "q = MatMul (x, wq)  k = MatMul (x, wk)  v = MatMul (x, wv)"
    weights = {name: array(32, 16) for name in ("wq", "wk", "wv")}
    proto = model(body, "float[N, T, 32] x", "float[N, T, 16] q, float[N, T, 16] k, float[N, T, 16] v", **weights)
    result, _ = quantize(proto)
    assert_close(proto, result, {"x": array(2, 5, 32)})
    assert kernels(result, {"x": array(2, 5, 32)}, tmp_path) == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 3}


def test_a_stack_of_matrices_has_a_scale_for_each_column_of_each() -> None:
    weight = array(3, 32, 16) * np.array([1, 100, 0.01], np.float32)[:, None, None]
    proto = model("y = MatMul (x, w)", "float[3, 5, 32] x", "float[3, 5, 16] y", w=weight)
    result, _ = quantize(proto)
    feed = {"x": array(3, 5, 32)}
    for actual in (run(result, feed), optimized(result, feed)):
        for a, b in zip(run(proto, feed)["y"], actual["y"], strict=True):
            assert np.linalg.norm(a - b) < 0.03 * np.linalg.norm(a)


def test_a_scale_for_each_column_is_closer_than_one_for_all() -> None:
    proto = model(
        "y = MatMul (x, w)", "float[N, 32] x", "float[N, 16] y", w=array(32, 16) * np.logspace(-2, 0, 16, dtype=np.float32)
    )
    feed = {"x": array(20, 32)}
    expected = run(proto, feed)["y"]
    errors = [np.abs(run(quantize(proto, per_channel=each)[0], feed)["y"] / expected - 1) for each in (True, False)]
    assert np.median(errors[0]) < 0.3 * np.median(errors[1])


def test_names_and_places_of_outputs_stay_and_the_product_keeps_the_nodes_name() -> None:
    proto = model(
        "[first] m = MatMul (x, w)  [second] y = MatMul (m, v)", "float[N, 8] x", "float[N, 8] y", w=array(8, 8), v=array(8, 8)
    )
    del proto.graph.output[:]
    proto.graph.output.extend([onnx.helper.make_tensor_value_info(name, 1, ["N", 8]) for name in ("m", "y")])
    result, changes = quantize(proto)
    assert {node.name for node in result.graph.node if node.op_type == "MatMulInteger"} == {"first", "second"}
    assert [change.site for change in changes] == ["first", "second"]
    assert_close(proto, result, {"x": array(3, 8)})


def test_only_the_planned_sites_change() -> None:
    proto = model(
        "[a] m = MatMul (x, w)  [b] y = MatMul (m, v)", "float[N, 8] x", "float[N, 8] y", w=array(8, 8), v=array(8, 8)
    )
    result, _ = quantize(proto, only="b")
    assert [node.name for node in result.graph.node if node.op_type == "MatMul"] == ["a"]
    assert_close(proto, result, {"x": array(3, 8)})


def test_a_weight_in_a_constant_node_becomes_an_initializer() -> None:
    proto = model("y = MatMul (x, w)", "float[N, 8] x", "float[N, 4] y", w=array(8, 4))
    weight = proto.graph.initializer.pop()
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=weight))
    result, _ = quantize(proto)
    assert_close(proto, result, {"x": array(3, 8)})
    assert "Constant" not in {node.op_type for node in result.graph.node}


def test_zeros_stay_zeros_and_a_weight_with_nan_stays_in_floats() -> None:
    proto = model("y = MatMul (x, w)", "float[N, 8] x", "float[N, 4] y", w=np.zeros((8, 4), np.float32))
    assert_same_outputs(proto, quantize(proto)[0], {"x": array(3, 8)})
    proto = model("y = MatMul (x, w)", "float[N, 8] x", "float[N, 4] y", w=np.full((8, 4), np.nan, np.float32))
    result, (change,) = quantize(proto)
    assert not change.done
    assert "NaN" in change.why
    assert [node.op_type for node in result.graph.node] == ["MatMul"]


def test_targets_without_vnni_get_weights_whose_products_cannot_saturate() -> None:
    proto = model("y = MatMul (x, w)", "float[N, 32] x", "float[N, 16] y", w=array(32, 16))
    peaks = []
    for target in ("cpu", "cpu-any"):
        result, _ = quantize(proto, target=target)
        peaks += [
            np.abs(onnx.numpy_helper.to_array(t)).max()
            for t in result.graph.initializer
            if t.data_type == onnx.TensorProto.INT8
        ]
    assert peaks == [127, 63]


# ------------------------------------------------------------------------------------------------------------------ Gemm


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(
    ("alpha", "beta", "c"), [(1.0, 1.0, None), (1.0, 1.0, (6,)), (0.5, 2.0, (5, 6)), (2.0, 0.0, (6,)), (2.0, 0.25, (1, 6))]
)
def test_a_gemm_keeps_its_meaning(trans_a: int, trans_b: int, alpha: float, beta: float, c: tuple[int, ...] | None) -> None:
    body = f"y = Gemm <transA = {trans_a}, transB = {trans_b}, alpha = {alpha}, beta = {beta}> (x, w{', c' if c else ''})"
    weights = {"w": array(*((6, 8) if trans_b else (8, 6))), **({"c": array(*c)} if c else {})}
    proto = model(body, f"float[{'8, 5' if trans_a else '5, 8'}] x", "float[5, 6] y", **weights)
    assert_close(proto, quantize(proto)[0], {"x": array(*((8, 5) if trans_a else (5, 8)))})


def test_a_gemm_becomes_one_integer_kernel(tmp_path: Path) -> None:
    proto = model("y = Gemm <transB = 1> (x, w, c)", "float[N, 32] x", "float[N, 16] y", w=array(16, 32), c=array(16))
    result, _ = quantize(proto)
    assert kernels(result, {"x": array(5, 32)}, tmp_path) == {"DynamicQuantizeMatMul": 1}


def test_a_computed_bias_of_a_gemm_is_scaled_while_it_runs() -> None:
    proto = model("y = Gemm <beta = 0.5> (x, w, c)", "float[N, 8] x, float[6] c", "float[N, 6] y", w=array(8, 6))
    assert_close(proto, quantize(proto)[0], {"x": array(5, 8), "c": array(6)})


# -------------------------------------------------------------------------------------------------------- shared weights

TIED = """e = Gather (w, ids)  h = Relu (e)  t = Transpose <perm = [1, 0]> (w)  y = MatMul (h, t)"""


def test_an_embedding_tied_to_the_last_layer_stays_tied(tmp_path: Path) -> None:
    proto = model(TIED, "int64[N, T] ids", "float[N, T, 100] y", w=array(100, 32))
    (site,) = [site for site in sites(proto) if site.settings]
    assert site.op_type == "MatMul"
    assert len(site.nodes) == 2
    result, _ = quantize(proto)
    feed = {"ids": np.array([[3, 99, 0]], np.int64)}
    assert_close(proto, result, feed)
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in result.graph.initializer) == 1
    assert weight_bytes(ir.from_proto(result)) < 0.35 * weight_bytes(ir.from_proto(proto))
    assert kernels(result, feed, tmp_path)["DynamicQuantizeMatMul"] == 1


def test_layers_that_share_a_weight_are_one_site() -> None:
    body = "[one] m = MatMul (x, w)  r = Relu (m)  [two] y = MatMul (r, w)"
    proto = model(body, "float[N, 8] x", "float[N, 8] y", w=array(8, 8))
    (site,) = sites(proto)
    assert site.nodes == ("one", "two")
    result, _ = quantize(proto)
    assert_close(proto, result, {"x": array(5, 8)})
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in result.graph.initializer) == 1


def test_a_weight_that_is_read_both_ways_has_one_scale() -> None:
    body = "m = Gemm (x, w)  r = Relu (m)  y = Gemm <transB = 1> (r, w)"
    proto = model(body, "float[N, 8] x", "float[N, 8] y", w=array(8, 8))
    result, _ = quantize(proto)
    assert_close(proto, result, {"x": array(5, 8)}, error=0.05)
    assert [tensor.dims for tensor in result.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT] == [[]]


def test_a_shared_weight_stays_when_something_else_reads_it() -> None:
    proto = model("m = MatMul (x, w)  n = Neg (w)  y = MatMul (m, n)", "float[N, 8] x", "float[N, 8] y", w=array(8, 8))
    first, second = sites(proto)
    assert first.settings == second.settings == ()
    assert "Neg" in first.why
    assert "twice" in first.why
    assert "computed" in second.why


def test_a_weight_that_is_an_output_stays() -> None:
    proto = model("y = MatMul (x, w)", "float[N, 8] x", "float[N, 4] y", w=array(8, 4))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("w", 1, [8, 4]))
    (site,) = sites(proto)
    assert site.settings == ()
    assert "output" in site.why


def test_a_weight_that_a_caller_may_replace_stays() -> None:
    proto = model("y = MatMul (x, w)", "float[N, 8] x", "float[N, 4] y", w=array(8, 4))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [8, 4]))
    (site,) = sites(proto)
    assert site.settings == ()
    assert "caller" in site.why


def test_a_site_with_an_excluded_node_is_declined() -> None:
    body = "[one] m = MatMul (x, w)  r = Relu (m)  [two] y = MatMul (r, w)"
    (site,) = sites(model(body, "float[N, 8] x", "float[N, 8] y", w=array(8, 8)), exclude=["two"])
    assert site.settings == ()
    assert "excluded" in site.why


def test_a_weight_captured_by_both_branches_becomes_integers_once() -> None:
    body = """
    s = MatMul (x, w)
    y = If (c) <then_branch = a () => (float[N, 8] p) { p = MatMul (x, w) },
                else_branch = b () => (float[N, 8] q) { r = Neg (x)  t = MatMul (r, w)  q = Add (t, s) }>
    """
    proto = model(body, "float[N, 8] x, bool c", "float[N, 8] y", w=array(8, 8))
    (site,) = sites(proto)
    assert len(site.nodes) == 3
    result, _ = quantize(proto)
    x = array(5, 8)
    assert_close(proto, result, {"x": x, "c": np.array(True)})
    assert [tensor.name for tensor in result.graph.initializer if tensor.data_type == onnx.TensorProto.INT8] == ["w_int8"]


def test_a_weight_inside_a_branch_stays_inside() -> None:
    body = """
    y = If (c) <then_branch = a () => (float[N, 8] p) <float[8, 8] v> { p = MatMul (x, v) },
                else_branch = b () => (float[N, 8] q) { q = MatMul (x, w) }>
    """
    proto = model(body, "float[N, 8] x, bool c", "float[N, 8] y", w=array(8, 8))
    branch = proto.graph.node[0].attribute[0].g
    del branch.initializer[:]
    branch.initializer.append(onnx.numpy_helper.from_array(array(8, 8), "v"))
    result, _ = quantize(proto)
    for taken in (True, False):
        assert_close(proto, result, {"x": array(5, 8), "c": np.array(taken)})
    assert "v_int8" in {tensor.name for tensor in result.graph.node[-1].attribute[0].g.initializer}


# ---------------------------------------------------------------------------------------------------------------- Gather


def test_a_large_embedding_is_offered_and_gets_four_times_smaller() -> None:
    proto = model(
        "y = Gather (w, ids)",
        "int64[N] ids",
        "float[N, 64] y",
        w=array(5000, 64) * RNG.uniform(0.01, 10, (5000, 1)).astype(np.float32),
    )
    result, _ = quantize(proto)
    assert weight_bytes(ir.from_proto(result)) < 0.27 * weight_bytes(ir.from_proto(proto))
    assert_close(proto, result, {"ids": np.array([0, 17, 4999], np.int64)}, error=0.01)


def test_a_small_embedding_is_left_alone_without_a_word() -> None:
    assert sites(model("y = Gather (w, ids)", "int64[N] ids", "float[N, 64] y", w=array(50, 64))) == []
    assert (
        len(sites(model("y = Gather (w, ids)", "int64[N] ids", "float[N, 64] y", w=array(50, 64)), least_embedding_bytes=0))
        == 1
    )


# ------------------------------------------------------------------------------------------------------------------ LSTM


def lstm(inputs: str, direction: str = "bidirectional", **more: np.ndarray) -> onnx.ModelProto:
    d = 2 if direction == "bidirectional" else 1
    body = f"y, h, c = LSTM <hidden_size = 8, layout = 0, direction = '{direction}'> ({inputs})".replace("'", '"')
    weights = {"w": array(d, 32, 6), "r": array(d, 32, 8) * 0.3, **more}
    given = "float[T, N, 6] x" + (", float[2, N, 8] h0, float[2, N, 8] c0, int32[N] lengths" if "h0" in inputs else "")
    return model(body, given, f"float[T, {d}, N, 8] y, float[{d}, N, 8] h, float[{d}, N, 8] c", **weights)


def test_a_bidirectional_lstm_with_states_lengths_and_peepholes_runs_in_integers(tmp_path: Path) -> None:
    proto = lstm("x, w, r, b, lengths, h0, c0, p", b=array(2, 64), p=array(2, 24))
    result, _ = quantize(proto)
    feed = {"x": array(7, 3, 6), "h0": array(2, 3, 8), "c0": array(2, 3, 8), "lengths": np.array([7, 2, 5], np.int32)}
    assert_close(proto, result, feed)
    assert kernels(result, feed, tmp_path) == {"DynamicQuantizeLSTM": 1}


@pytest.mark.parametrize("per_channel", [True, False])
def test_an_lstm_with_nothing_but_weights_runs_in_integers(per_channel: bool) -> None:
    proto = lstm("x, w, r", "reverse")
    result, _ = quantize(proto, per_channel=per_channel)
    assert_close(proto, result, {"x": array(7, 3, 6)}, error=0.05)


def test_recurrence_without_an_integer_kernel_is_declined_with_the_reason() -> None:
    proto = lstm("x, w, r", "forward")
    next(attribute for attribute in proto.graph.node[0].attribute if attribute.name == "layout").i = 1
    (site,) = sites(proto)
    assert "layout" in site.why
    gru = model(
        "y = GRU <hidden_size = 8> (x, w, r)", "float[T, N, 6] x", "float[T, 1, N, 8] y", w=array(1, 24, 6), r=array(1, 24, 8)
    )
    (site,) = sites(gru)
    assert "LSTM" in site.why
    assert site.settings == ()


# ------------------------------------------------------------------------------------------------------------- Attention


def attention(**attributes: object) -> onnx.ModelProto:
    node = onnx.helper.make_node(
        "Attention", ["x", "w", "b"], ["y"], "attention", domain="com.microsoft", num_heads=2, **attributes
    )
    proto = model("y = Identity (x)", "float[1, 5, 8] x", "float[1, 5, 8] y", w=array(8, 24), b=array(24))
    proto.graph.node[0].CopyFrom(node)
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return proto


def test_onnxruntimes_attention_becomes_its_integer_twin() -> None:
    proto = attention(unidirectional=1)
    result, _ = quantize(proto)
    assert [node.op_type for node in result.graph.node] == ["DynamicQuantizeLinear", "QAttention"]
    assert_close(proto, result, {"x": array(1, 5, 8)}, error=0.05)
    (site,) = sites(attention(qkv_hidden_sizes=[8, 8, 8]))
    assert site.settings == ()


# -------------------------------------------------------------------------------------------------- what is not possible


def test_convolutions_and_products_of_computed_values_are_declined_with_the_reason() -> None:
    conv = model("y = Conv (x, w)", "float[N, 4, 8, 8] x", "float[N, 4, 6, 6] y", w=array(4, 4, 3, 3))
    (site,) = sites(conv)
    assert "0.13" in site.why
    scores = model("y = MatMul (x, x)", "float[8, 8] x", "float[8, 8] y")
    (site,) = sites(scores)
    assert "computed" in site.why
    left = model("y = MatMul (w, x)", "float[8, N] x", "float[4, N] y", w=array(4, 8))
    (site,) = sites(left)
    assert "left" in site.why
    vector = model("y = MatMul (x, w)", "float[N, 8] x", "float[N] y", w=array(8))
    (site,) = sites(vector)
    assert "vector" in site.why


def test_other_types_than_float_are_declined() -> None:
    proto = model("y = MatMul (x, w)", "float16[N, 8] x", "float16[N, 4] y", w=array(8, 4).astype(np.float16))
    (site,) = sites(proto)
    assert "FLOAT16" in site.why


def test_a_model_that_is_quantized_already_is_left_as_it_is() -> None:
    proto = model("y = MatMul (x, w)", "float[N, 8] x", "float[N, 4] y", w=array(8, 4))
    once, _ = quantize(proto)
    assert [(site.settings, site.why) for site in sites(once)] == [((), "it is in integers already")]
    qdq = model(
        "w = DequantizeLinear (q, s)  y = MatMul (x, w)", "float[N, 8] x", "float[N, 4] y", s=np.float32(0.1).reshape(())
    )
    qdq.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((8, 4), np.int8), "q"))
    assert [(site.settings, site.why) for site in sites(qdq)] == [((), "its weight is quantized already")]


def test_an_opset_that_is_too_old_is_an_error_that_says_what_to_do() -> None:
    proto = model("y = MatMul (x, w)", "float[N, 8] x", "float[N, 4] y", opset=10, ir_version=4, w=array(8, 4))
    with pytest.raises(ModelError, match="begin at 11") as raised:
        sites(proto)
    assert "shapes.opset" in str(raised.value)


def test_a_target_without_such_kernels_is_offered_nothing() -> None:
    proto = model("y = MatMul (x, w)", "float[N, 8] x", "float[N, 4] y", w=array(8, 4))
    (site,) = DynamicQuantize().sites(ir.from_proto(proto), context("tensorrt"))
    assert site.settings == ()
    assert "tensorrt" in site.why


def test_a_second_plan_for_the_same_model_gives_the_same_as_a_first() -> None:
    proto = model(
        "[a] m = MatMul (x, w)  [b] y = MatMul (m, v)", "float[N, 8] x", "float[N, 8] y", w=array(8, 8), v=array(8, 8)
    )
    rewrite, loaded = DynamicQuantize(), ir.from_proto(proto)
    found = rewrite.sites(loaded, context())
    results = []
    for chosen in (found[:1], found, found[:1]):
        candidate = loaded.clone()
        rewrite.apply(candidate, {site: site.settings[0] for site in chosen}, context())
        results.append(ir.to_proto(candidate).SerializeToString(deterministic=True))
    assert results[0] == results[2] != results[1]
