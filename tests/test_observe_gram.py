from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.observe import CrossGram, Gram, Keep, Patches, Seen, collect_pair, gram, patches

from helpers import run, small_cnn
from observing import context

RNG = np.random.default_rng(0)


def gram_of(values: np.ndarray, observer: Gram) -> tuple[np.ndarray, np.ndarray, int]:
    collector = observer.start()
    for part in np.array_split(values, 2):
        collector.update(Seen(part, len(part)))
    found = collector.result()
    return found.products, found.sums, found.count


CONVS = {
    "plain": (6, 4, (3, 3), {"pads": [1, 1, 1, 1]}),
    "strided, unevenly padded": (6, 4, (3, 2), {"pads": [0, 1, 2, 0], "strides": [2, 3]}),
    "dilated": (4, 3, (3, 3), {"dilations": [2, 1]}),
    "grouped": (6, 4, (3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": (6, 12, (3, 3), {"group": 6}),
    "pointwise": (5, 4, (1, 1), {}),
    "padded alike, more behind": (4, 4, (4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    "padded alike, more before": (4, 4, (4, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "not padded": (4, 4, (2, 2), {"auto_pad": "VALID"}),
    "of one dimension": (6, 4, (5,), {"pads": [2, 1]}),
    "of three dimensions": (2, 4, (2, 3, 2), {"strides": [1, 2, 1]}),
}


@pytest.mark.parametrize("name", CONVS)
def test_the_gram_matrix_of_a_conv_tells_the_squares_of_its_outputs(name: str) -> None:
    """Sum y^2 = trace(W G W^T) and sum y = W sum x, for onnxruntime's own y."""
    channels, out, kernel, attributes = CONVS[name]
    group = attributes.get("group", 1)
    weight = RNG.standard_normal((out, channels // group, *kernel)).astype(np.float32)
    x = RNG.standard_normal((5, channels, *(9, 10, 8)[: len(kernel)])).astype(np.float32)
    make = onnx.helper
    node = make.make_node("Conv", ["x", "w"], ["y"], **attributes)
    graph = make.make_graph(
        [node],
        "g",
        [make.make_tensor_value_info("x", 1, x.shape)],
        [make.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    proto = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    y = run(proto, {"x": x})["y"].astype(np.float64)
    read = patches(ir.from_proto(proto).graph.node(0))
    products, sums, count = gram_of(x, Gram(read))
    assert products.dtype == sums.dtype == np.float64
    assert count == y.size // out
    rows = weight.reshape(group, out // group, -1).astype(np.float64)
    axes = (0, *range(2, y.ndim))
    squares = np.einsum("goi,gij,goj->go", rows, products, rows).reshape(-1)
    np.testing.assert_allclose(squares, (y**2).sum(axis=axes), rtol=1e-4)
    np.testing.assert_allclose(np.einsum("goi,gi->go", rows, sums).reshape(-1), y.sum(axis=axes), rtol=1e-3, atol=1e-3)


def test_the_gram_matrix_of_a_dense_layer_is_that_of_its_rows() -> None:
    x = RNG.standard_normal((6, 7, 5)).astype(np.float32)
    products, sums, count = gram_of(x, Gram())
    rows = x.reshape(-1, 5).astype(np.float64)
    np.testing.assert_allclose(products[0], rows.T @ rows, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sums[0], rows.sum(axis=0), rtol=1e-5, atol=1e-5)
    assert count == 42


def test_chunks_of_patches_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    x = RNG.standard_normal((2, 4, 12, 12)).astype(np.float32)
    read = Patches((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    whole = gram_of(x, Gram(read))
    monkeypatch.setattr(gram, "_CHUNK", 100)
    for a, b in zip(whole, gram_of(x, Gram(read)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 200), st.integers(5, 14))
def test_a_part_of_the_positions_counts_for_all(rows: int, size: int) -> None:
    x = np.ones((3, 2, size, size), np.float32)
    products, sums, count = gram_of(x, Gram(Patches((1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), rows=rows))
    assert products[0, 0, 0] == sums[0, 0] == count
    if rows >= size * size:
        assert count == 3 * size * size


def test_sampled_positions_are_an_unbiased_estimate() -> None:
    x = RNG.standard_normal((400, 3, 14, 14)).astype(np.float32) + np.linspace(0, 3, 14, dtype=np.float32)
    read = Patches((1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
    whole, sums, count = gram_of(x, Gram(read))
    part, part_sums, part_count = gram_of(x, Gram(read, rows=16))
    assert part_count == pytest.approx(count, rel=0.02)
    np.testing.assert_allclose(part, whole, rtol=0.05)
    np.testing.assert_allclose(part_sums, sums, rtol=0.03)


def test_the_best_weights_for_a_smaller_input_follow_from_the_gram_matrices_of_both_models() -> None:
    """Conv behind a Conv that lost half of its channels: W' G' = W C is the least-squares fit of the original output."""
    proto = small_cnn(channels=8)
    smaller = ir.from_proto(proto)
    for name in ("w1", "b1", "w2"):
        initializer = smaller.graph.initializers[name]
        assert initializer.const_value is not None
        kept = initializer.const_value.numpy()[:4] if name != "w2" else initializer.const_value.numpy()[:, :4]
        initializer.const_value, initializer.shape = ir.tensor(kept, name=name), ir.Shape(kept.shape)
    node = next(node for node in smaller.graph if node.name == "add")
    node.replace_input_with(1, node.inputs[0])
    x = RNG.standard_normal((40, 3, 8, 8)).astype(np.float32)
    original = ir.from_proto(proto)
    read = patches(next(node for node in original.graph if node.name == "conv2"))
    with context(proto, x=x) as c:
        assert c.data is not None
        pair = ("r1", "r1")
        found = collect_pair(original, smaller, {pair: CrossGram(read, read)}, data=c.data, open_session=c.open_session)[pair]
        kept = c.observe(smaller, {"r1": [Gram(read), Keep(40)], "x": [Keep(40)]})["r1"]
        truth = c.observe(original, {"c2": [Keep(40)]})["c2"][0].joined()
        mean = c.observe(original, {"r1": [Gram(read)]})["r1"][0]
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[2]).reshape(8, -1).astype(np.float64)
    assert found.count == kept[0].count == 40 * 64
    assert found.products.shape == (1, 72, 36)
    np.testing.assert_allclose(found.first, mean.sums, rtol=1e-9)
    np.testing.assert_allclose(found.second, kept[0].sums, rtol=1e-9)
    fitted = np.linalg.solve(kept[0].products[0], (weight @ found.products[0]).T).T
    inputs = kept[1].joined()
    padded = np.pad(inputs, [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 36).astype(np.float64)
    bias = onnx.numpy_helper.to_array(proto.graph.initializer[3])
    target = (truth - bias[:, None, None]).transpose(0, 2, 3, 1).reshape(-1, 8)
    direct = np.linalg.lstsq(rows, target, rcond=None)[0].T
    np.testing.assert_allclose(fitted, direct, rtol=1e-3, atol=1e-3)


def test_patches_of_a_pair_are_sampled_at_the_same_places() -> None:
    x = RNG.standard_normal((4, 3, 10, 10)).astype(np.float32)
    read = Patches((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    collector = CrossGram(read, read, rows=20).start()
    collector.update(Seen(x, 4), Seen(2 * x, 4))
    found = collector.result()
    np.testing.assert_allclose(found.products, found.products.swapaxes(1, 2), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found.second, 2 * found.first, rtol=1e-6)
