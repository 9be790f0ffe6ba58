"""Weights whose rank is low are written as factors that compute the same, in every form, whatever reads them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from factorizing import factorize, labelled, low_rank, with_weights
from helpers import assert_same_outputs

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 24)).astype(np.float32)
IMAGES = RNG.standard_normal((5, 8, 11, 10)).astype(np.float32)
CLOSE = 2e-4


def test_matmul_of_low_rank_is_two_that_compute_the_same() -> None:
    proto = with_weights("g (float[N, 24] x) => (float[N, 32] y) { y = MatMul(x, w) }", w=low_rank(RNG, 4, 24, 32))
    done = factorize(proto, labelled("rank 4"), x=X)
    assert done.operators == ["MatMul", "MatMul"]
    assert_same_outputs(proto, done.proto, {"x": X}, CLOSE)
    assert [tuple(one.dims) for one in done.proto.graph.initializer] == [(24, 4), (4, 32)]


def test_matmul_on_batches_of_sequences() -> None:
    x = RNG.standard_normal((3, 5, 2, 24)).astype(np.float32)
    proto = with_weights("g (float[N, 5, 2, 24] x) => (float[N, 5, 2, 32] y) { y = MatMul(x, w) }", w=low_rank(RNG, 4, 24, 32))
    assert_same_outputs(proto, factorize(proto, labelled("rank 4"), x=x).proto, {"x": x}, CLOSE)


@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_keeps_its_factors_and_its_bias(trans_b: int) -> None:
    w = low_rank(RNG, 4, 24, 32)
    proto = with_weights(
        f"g (float[N, 24] x) => (float[N, 32] y) {{ y = Gemm <alpha = 0.5, transB = {trans_b}> (x, w, b) }}",
        w=np.ascontiguousarray(w.T) if trans_b else w,
        b=RNG.standard_normal(32).astype(np.float32),
    )
    done = factorize(proto, labelled("rank 4"), x=X)
    assert_same_outputs(proto, done.proto, {"x": X}, CLOSE)
    assert "Transpose" not in done.operators


def test_embedding_that_is_the_last_layers_weight_too_stays_one_weight() -> None:
    table = low_rank(RNG, 4, 40, 24)
    proto = with_weights(
        "g (int64[N, 3] ids, float[N, 24] x) => (float[N, 3, 24] rows, float[N, 40] y) "
        "{ rows = Gather(table, ids)\n y = Gemm <transB = 1> (x, table) }",
        table=table,
    )
    ids = RNG.integers(0, 40, (6, 3))
    done = factorize(proto, labelled("rank 4"), ids=ids, x=X)
    assert_same_outputs(proto, done.proto, {"ids": ids, "x": X}, CLOSE)
    assert sorted(tuple(one.dims) for one in done.proto.graph.initializer) == [(4, 24), (40, 4)]


def test_a_weight_that_two_nodes_read_is_factorized_once() -> None:
    proto = with_weights(
        "g (float[N, 24] x) => (float[N, 24] y) { a = MatMul(x, w)\n r = Relu(a)\n y = MatMul(r, w) }",
        w=low_rank(RNG, 4, 24, 24),
    )
    done = factorize(proto, labelled("rank 4"), x=X)
    assert_same_outputs(proto, done.proto, {"x": X}, CLOSE)
    assert len(done.proto.graph.initializer) == 2
    assert len([site for site in done.offered if site.settings]) == 1


def test_float16_stays_float16() -> None:
    proto = with_weights(
        "g (float16[N, 24] x) => (float16[N, 32] y) { y = MatMul(x, w) }", w=low_rank(RNG, 4, 24, 32).astype(np.float16)
    )
    done = factorize(proto, labelled("rank 4"), x=X.astype(np.float16))
    assert_same_outputs(proto, done.proto, {"x": X.astype(np.float16)}, 5e-3)


CONVS = {
    "plain": "",
    "strided": "strides = [2, 3],",
    "padded on each side differently": "pads = [1, 2, 0, 1],",
    "dilated": "dilations = [2, 1], pads = [2, 1, 2, 1],",
    "all": "strides = [2, 1], pads = [2, 0, 1, 1], dilations = [1, 2],",
    "same upper": 'auto_pad = "SAME_UPPER", strides = [2, 2],',
}


def _conv(attributes: str, weight: np.ndarray) -> onnx.ModelProto:
    size = ", ".join(map(str, weight.shape[2:]))
    return with_weights(
        f"g (float[N, 8, 11, 10] x) => (float[N, {len(weight)}, h, w] y) "
        f"{{ y = Conv <{attributes} kernel_shape = [{size}]> (x, k, b) }}",
        k=weight,
        b=RNG.standard_normal(len(weight)).astype(np.float32),
    )


@pytest.mark.parametrize("attributes", CONVS.values(), ids=CONVS)
def test_conv_with_few_independent_filters_is_two(attributes: str) -> None:
    weight = low_rank(RNG, 4, 8 * 9, 16).T.reshape(16, 8, 3, 3)
    proto = _conv(attributes, weight)
    done = factorize(proto, labelled("rank 4"), x=IMAGES)
    assert done.operators == ["Conv", "Conv"]
    assert_same_outputs(proto, done.proto, {"x": IMAGES}, CLOSE)


@pytest.mark.parametrize("attributes", CONVS.values(), ids=CONVS)
def test_conv_of_separable_filters_is_rows_and_columns(attributes: str) -> None:
    columns, rows = RNG.standard_normal((4, 8, 3)), RNG.standard_normal((16, 4, 3))
    weight = np.einsum("rih,orw->oihw", columns, rows).astype(np.float32)
    proto = _conv(attributes, weight)
    done = factorize(proto, labelled("spatial rank 4"), x=IMAGES)
    assert [tuple(one.dims)[2:] for one in done.proto.graph.initializer if len(one.dims) == 4] == [(3, 1), (1, 3)]
    assert_same_outputs(proto, done.proto, {"x": IMAGES}, CLOSE)


@pytest.mark.parametrize("attributes", CONVS.values(), ids=CONVS)
def test_conv_between_few_channels_is_narrow_in_the_middle(attributes: str) -> None:
    inner = RNG.standard_normal((6, 3, 3, 3))
    weight = np.einsum("or,rqhw,qi->oihw", RNG.standard_normal((16, 6)), inner, RNG.standard_normal((3, 8))).astype(np.float32)
    proto = _conv(attributes, weight)
    chosen = factorize(
        proto, lambda site: next((s for s in site.settings if s.label.startswith("tucker rank 3, 6")), None), x=IMAGES
    )
    assert chosen.operators == ["Conv", "Conv", "Conv"], [s.label for s in chosen.offered[0].settings]
    assert_same_outputs(proto, chosen.proto, {"x": IMAGES}, CLOSE)


@pytest.mark.parametrize("attributes", CONVS.values(), ids=CONVS)
def test_conv_of_few_outer_products_is_four_that_are_cheap(attributes: str) -> None:
    factors = [RNG.standard_normal((size, 3)) for size in (16, 8, 3, 3)]
    proto = _conv(attributes, np.einsum("or,ir,hr,wr->oihw", *factors).astype(np.float32))
    done = factorize(proto, labelled("cp rank 3"), pass_options={"rank": 3, "cp": True}, x=IMAGES)
    assert [tuple(one.dims)[1:] for one in done.proto.graph.initializer if len(one.dims) == 4] == [
        (8, 1, 1),
        (1, 3, 1),
        (1, 1, 3),
        (3, 1, 1),
    ]
    assert_same_outputs(proto, done.proto, {"x": IMAGES}, 1e-3)


def test_grouped_conv_is_split_group_by_group() -> None:
    weight = np.concatenate([low_rank(RNG, 2, 4 * 9, 8).T, low_rank(RNG, 2, 4 * 9, 8).T]).reshape(16, 4, 3, 3)
    proto = _conv("group = 2, pads = [1, 1, 1, 1],", weight)
    done = factorize(proto, labelled("rank 2"), x=IMAGES)
    assert done.operators == ["Conv", "Conv"]
    assert_same_outputs(proto, done.proto, {"x": IMAGES}, CLOSE)


def test_conv_of_one_axis() -> None:
    x = RNG.standard_normal((4, 8, 20)).astype(np.float32)
    proto = with_weights(
        "g (float[N, 8, 20] x) => (float[N, 16, 20] y) { y = Conv <pads = [2, 2]> (x, w) }",
        w=low_rank(RNG, 3, 40, 16).T.reshape(16, 8, 5),
    )
    assert_same_outputs(proto, factorize(proto, labelled("rank 3"), x=x).proto, {"x": x}, CLOSE)
