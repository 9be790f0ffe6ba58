"""The torch runtime: operators give what ONNX expects, gradients are right, values can be changed and kept, and the errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import model, targets
from graphopt.contracts import SessionOptions
from graphopt.dataset.generate import generate
from graphopt.errors import DataError, MissingError, ModelError
from graphopt.runtimes.torch.network import TorchNetwork, missing_operators
from graphopt.runtimes.torch.operators import TABLE
from graphopt.runtimes.torch.tensors import to_array

from helpers import from_text, run, small_cnn, write
from random_graphs import feeds
from random_graphs import model as random_model

TARGET = targets.load("torch")
REFUSED = re.compile("does not compute with|is not run in torch|not implemented for 'UInt|Expected reduction dim 1 to have")
"""Types and forms of an operator that torch or the runtime lacks: an error that says so."""
OTHERWISE = re.compile("downsample_scales_(linear|cubic)_align_corners|nan_robustness")
"""Where onnxruntime has another answer than the suite, and rows of attention that see nothing."""
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def network(proto: onnx.ModelProto) -> tuple[TorchNetwork, ir.Model]:
    graph = ir.from_proto(proto)
    return TorchNetwork(graph), graph


def outputs(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    executed, model = network(proto)
    found = executed.run(feed)
    return {v.name: to_array(found[v], np.dtype(v.dtype.numpy())) for v in model.graph.outputs}


def assert_as_onnxruntime(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> None:
    wanted, found = run(proto, feed), outputs(proto, feed)
    for name, right in wanted.items():
        assert found[name].shape == right.shape
        assert found[name].dtype == right.dtype
        if right.dtype.kind == "f":
            np.testing.assert_allclose(
                found[name], right, rtol=1e-5, atol=1e-5 * max(1e-30, float(np.abs(right).max(initial=0)))
            )
        else:
            np.testing.assert_array_equal(found[name], right)


def test_without_torch_the_error_names_the_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.runtimes.torch import TorchRuntime

    monkeypatch.setitem(sys.modules, "torch", None)
    write(small_cnn(), path)
    with pytest.raises(MissingError, match=r"pip install 'graphopt\[torch\]'") as caught:
        TorchRuntime().open(path, TARGET)
    assert caught.value.exit_code == 6


@pytest.mark.torch
class TestOperators:
    def test_every_case_of_onnxs_suite_comes_out_right_or_is_refused(self) -> None:
        import torch
        from onnx.backend.test import loader

        wrong, right = [], 0
        with np.errstate(all="ignore"):
            cases = loader.load_model_tests(kind="node")
        for case in cases:
            model = ir.from_proto(case.model)
            if missing_operators(model) or OTHERWISE.search(case.name) or "training_dropout" in case.name:
                continue
            try:
                executed = TorchNetwork(model)
                for given, wanted in case.data_sets:
                    feed = {value.name: _fed(array) for value, array in zip(model.graph.inputs, given, strict=False)}
                    with torch.no_grad():
                        found = executed.run(feed)
                    for value, expected in zip(model.graph.outputs, wanted, strict=True):
                        _assert_near(found[value], _array(expected), case.rtol, case.atol)
                right += 1
            except ModelError as error:
                if not REFUSED.search(str(error)):
                    wrong.append(f"{case.name}: {error}")
            except AssertionError as error:
                wrong.append(f"{case.name}: {error}")
        assert not wrong, "\n".join(wrong)
        assert right > 1250

    @pytest.mark.parametrize("seed", range(40))
    def test_random_graphs_give_what_onnxruntime_gives(self, seed: int) -> None:
        proto = random_model(seed)
        if missing_operators(ir.from_proto(proto)):
            assert not {*missing_operators(ir.from_proto(proto))} & {*TABLE}
            return
        for feed in feeds(proto):
            assert_as_onnxruntime(proto, feed)

    @pytest.mark.parametrize("kind", GATES)
    @pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
    def test_recurrent_cells_run_both_ways_and_over_unequal_lengths(self, kind: str, direction: str) -> None:
        gates, rng = GATES[kind], np.random.default_rng(0)
        ways, size = 2 if direction == "bidirectional" else 1, 4
        shapes = {"w": (ways, gates * size, 3), "r": (ways, gates * size, size), "b": (ways, 2 * gates * size)}
        shapes["h"] = (ways, 2, size)
        weights = [
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in shapes.items()
        ]
        extra = {"linear_before_reset": 1} if kind == "GRU" else {}
        node = onnx.helper.make_node(
            kind, ["x", "w", "r", "b", "n", "h"], ["y", "last"], hidden_size=size, direction=direction, **extra
        )
        value = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [node],
            "g",
            [value("x", 1, [5, 2, 3]), value("n", 6, [2])],
            [value("y", 1, [5, ways, 2, size]), value("last", 1, [ways, 2, size])],
            weights,
        )
        proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        x = rng.standard_normal((5, 2, 3)).astype(np.float32)
        assert_as_onnxruntime(proto, {"x": x, "n": np.array([5, 3], np.int32)})

    @pytest.mark.parametrize("pads", ["auto_pad = 'SAME_UPPER'", "auto_pad = 'SAME_LOWER'", "pads = [0, 1, 2, 1]", ""])
    @pytest.mark.parametrize(
        "what",
        [
            "Conv <group = 2, strides = [2, 1], {}> (x, w)",
            "ConvTranspose <group = 2, strides = [2, 3], {}> (x, v)",
            "MaxPool <kernel_shape = [3, 2], strides = [2, 2], {}> (x)",
            "AveragePool <kernel_shape = [3, 2], strides = [2, 3], ceil_mode = 1, count_include_pad = 1, {}> (x)",
            "AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1, {}> (x)",
        ],
    )
    def test_windows_are_padded_as_onnxruntime_pads(self, what: str, pads: str) -> None:
        attributes = what.format(pads).replace(", >", ">").replace("'", '"')
        rng = np.random.default_rng(1)
        proto = from_text(
            f"""g (float[2,4,9,10] x, float[6,2,3,2] w, float[4,3,3,2] v) => (float[a,b,c,d] y) {{ y = {attributes} }}"""
        )
        shapes = {"x": (2, 4, 9, 10), "w": (6, 2, 3, 2), "v": (4, 3, 3, 2)}
        assert_as_onnxruntime(proto, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})

    @pytest.mark.parametrize(
        "body",
        [
            "y = com.microsoft.Gelu (x)",
            "y = com.microsoft.FastGelu (x, b)",
            "y = com.microsoft.BiasGelu (x, b)",
            "y = com.microsoft.QuickGelu <alpha = 1.5> (x)",
            "y = com.microsoft.SkipLayerNormalization <epsilon = 0.1> (x, x, g, b, b)",
            "y = com.microsoft.SkipSimplifiedLayerNormalization (x, x, g)",
            "y = SimplifiedLayerNormalization (x, g)",
            "y = com.microsoft.FusedMatMul <alpha = 0.5, transB = 1> (x, x)",
            "a = Squeeze (x, zero) y = com.microsoft.FusedGemm <activation = 'Relu', transB = 1> (a, w)",
            "a = Unsqueeze (x, zero) y = com.microsoft.FusedConv <activation = 'Relu', pads = [1, 1, 1, 1]> (a, k)",
            "y = com.microsoft.MultiHeadAttention <num_heads = 2> (x, x, x, wide)",
            "y = com.microsoft.MultiHeadAttention <num_heads = 2, unidirectional = 1> (x, x, x)",
            "y = com.microsoft.Attention <num_heads = 4, unidirectional = 1> (x, packed, wide)",
            "y = com.microsoft.RotaryEmbedding <num_heads = 2> (x, places, turn, turn)",
        ],
    )
    def test_operators_of_onnxruntime_are_run_as_there(self, body: str) -> None:
        rng = np.random.default_rng(2)
        shapes = {"g": (8,), "b": (8,), "w": (3, 8), "k": (2, 1, 3, 3), "wide": (24,), "packed": (8, 24), "turn": (6, 2)}
        text = body.replace("'", '"')
        proto = from_text(
            f"""<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]> g (float[1,5,8] x) => (float[a] y)
            <int64[1] zero = {{0}}, int64[1,5] places = {{0, 1, 2, 3, 4}}> {{ {text} }}"""
        )
        proto.graph.output[0].type.tensor_type.ClearField("shape")
        proto.graph.initializer.extend(
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in shapes.items()
        )
        assert_as_onnxruntime(proto, {"x": rng.standard_normal((1, 5, 8)).astype(np.float32)})

    def test_bodies_capture_values_and_functions_take_attributes(self) -> None:
        proto = from_text(
            """<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
            g (float[N,3] x, bool up) => (float[N,3] y) {
                twice = own.scaled <by: float = 2.0> (x)
                y = If (up) <
                    then_branch = a () => (float[N,3] p) { one = Constant <value = float[1] {1}> () p = Add (twice, one) },
                    else_branch = b () => (float[N,3] q) { q = Neg (twice) }
                >
            }
            <domain: "own", opset_import: ["" : 20]>
            scaled <by> (v) => (w) { c = Constant <value_float: float = @by> () w = Mul (v, c) }"""
        )
        x = np.array([[1, -2, 3]], np.float32)
        for up in (True, False):
            assert_as_onnxruntime(proto, {"x": x, "up": np.array(up)})
        executed, model = network(proto)
        [one] = [value for value in executed.weights if value.name == "one"]
        executed.weights[one].requires_grad_()
        executed.run({"x": x, "up": np.array(True)})[model.graph.outputs[0]].sum().backward()
        assert executed.weights[one].grad.tolist() == [3.0]

    def test_operators_that_are_missing_are_named_together(self) -> None:
        proto = from_text("g (float[4] x) => (float[4] y) { a = Unique (x) b = mine.Odd (a) y = Relu (b) }")
        proto.opset_import.append(onnx.helper.make_opsetid("mine", 1))
        with pytest.raises(ModelError, match=r"no Unique, mine\.Odd"):
            TorchNetwork(ir.from_proto(proto))

    def test_a_form_that_is_not_run_is_refused_by_the_name_of_its_node(self) -> None:
        proto = from_text(
            """g (float[1,2,3] x) => (float[1,2,3] y) <float[2] a = {1, 2}> {
                y = BatchNormalization <training_mode = 1> (x, a, a, a, a) }"""
        )
        proto.graph.node[0].name = "norm"
        with pytest.raises(ModelError, match=r"node 'norm'.*training mode"):
            outputs(proto, {"x": np.zeros((1, 2, 3), np.float32)})


@pytest.mark.torch
class TestGradients:
    @pytest.mark.parametrize(
        "body",
        [
            "y = ConvTranspose <strides = [2, 2], pads = [1, 0, 1, 0]> (x, w)",
            "y = AveragePool <kernel_shape = [2, 2], ceil_mode = 1, strides = [2, 2]> (x)",
            "y = Resize <mode = 'cubic'> (x, , sizes)",
            "y = LayerNormalization (x, row)",
            "y = InstanceNormalization (x, pair, pair)",
            "a = Gelu (x) b = HardSwish (a) c = Celu <alpha = 0.7> (b) y = Softmax (c)",
            "a, b = TopK (x, two) c = CumSum (a, one) y = ReduceLogSumExp (c)",
            "a = Pad <mode = 'reflect'> (x, edges) b = Slice (a, start, two, last, back) y = ReduceL2 (b)",
            "y = Einsum <equation = 'nchw,ncvw->nhv'> (x, x)",
        ],
    )
    def test_torch_finds_gradients_of_operators_right(self, body: str) -> None:
        import torch

        proto = from_text(
            f"""g (double[1,2,4,4] x) => (double[a] y)
            <double[2,2,3,3] w = {{{", ".join(str(k % 7 / 3 - 1) for k in range(36))}}}, double[4] row = {{1, 2, 3, 4}},
             double[2] pair = {{0.5, 2}}, int64[4] sizes = {{1, 2, 7, 3}}, int64[1] two = {{2}}, int64 one = {{1}},
             int64[1] start = {{-1}}, int64[1] last = {{-1}}, int64[1] back = {{-1}},
             int64[8] edges = {{0, 0, 1, 2, 0, 0, 1, -1}}> {{ {body.replace("'", '"')} }}"""
        )
        executed, model = network(proto)
        x = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
        assert torch.autograd.gradcheck(lambda given: executed.run({"x": given})[model.graph.outputs[0]], [x])

    def test_torch_agrees_that_gradients_of_a_network_are_right(self) -> None:
        import torch

        executed, model = network(small_cnn(channels=3))
        for value, weight in executed.weights.items():
            executed.weights[value] = weight.double()
        chosen = [value for value in executed.weights if value.name in {"w1", "b2", "w3"}]
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

        def function(*weights: Any) -> Any:
            executed.weights.update(zip(chosen, weights, strict=True))
            return executed.run({"x": x})[model.graph.outputs[0]]

        assert torch.autograd.gradcheck(function, [executed.weights[value].requires_grad_() for value in chosen], atol=1e-6)

    def test_quantizers_let_gradients_straight_through_within_their_range(self) -> None:
        import torch

        executed, model = network(
            from_text(
                """g (float[4] x) => (float[4] y) <float s = {0.5}, uint8 z = {10}> {
                    q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }"""
            )
        )
        x = torch.tensor([-9.0, -0.3, 0.4, 900.0], requires_grad=True)
        y = executed.run({"x": x})[model.graph.outputs[0]]
        assert y.tolist() == [-5.0, -0.5, 0.5, 122.5]
        y.sum().backward()
        assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]

    def test_what_a_node_reads_can_be_changed_and_values_kept(self) -> None:
        executed, model = network(small_cnn())
        conv, inner = (next(node for node in model.graph if node.name == name) for name in ("conv2", "relu1"))
        feed = {"x": np.ones((1, 3, 8, 8), np.float32)}
        [kept] = inner.outputs
        plain = executed.run(feed, keep=[kept])
        gated = executed.run(feed, through={(conv, 0): lambda x: 0 * x}, keep=[kept, conv.outputs[0]])
        assert bool((gated[kept] == plain[kept]).all())  # the residual reads what it read
        bias = executed.weights[conv.inputs[2]].reshape(-1, 1, 1)
        assert bool((gated[conv.outputs[0]] == bias).all())

    def test_training_a_weight_lowers_the_loss(self) -> None:
        import torch

        executed, model = network(small_cnn())
        feed = {"x": np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)}
        weights = [weight.requires_grad_() for weight in executed.weights.values()]
        optimizer = torch.optim.SGD(weights, lr=0.01)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = executed.run(feed)[model.graph.outputs[0]].square().sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses == sorted(losses, reverse=True)


@pytest.mark.torch
class TestSession:
    def test_it_computes_what_onnxruntime_computes_at_two_batch_sizes(self, path: Path) -> None:
        write(small_cnn(), path)
        with targets.runtime(TARGET).open(path, TARGET) as session:
            assert (session.provider, session.clock) == ("CPU", "cpu")
            for batch in (1, 3):
                feed = {"x": np.random.default_rng(0).standard_normal((batch, 3, 8, 8)).astype(np.float32)}
                np.testing.assert_allclose(session.run(feed)["y"], run(path, feed)["y"], rtol=1e-5, atol=1e-6)

    @pytest.mark.zoo
    @pytest.mark.parametrize("name", ["cifar_resnet20_legacy", "gtcrn_simple", "nanodet_m", "ppocr_cls", "stories260k"])
    def test_trained_models_give_what_onnxruntime_gives(self, name: str, zoo: Path) -> None:
        source = zoo / "models" / f"{name}.onnx"
        cpu = targets.load("cpu")
        with targets.runtime(cpu).open(source, cpu) as other, targets.runtime(TARGET).open(source, TARGET) as session:
            feed = next(generate(model.load(source), samples=1, runs=other.accepts).batches()).feed
            wanted, found = other.run(feed), session.run(feed)
        for output, right in wanted.items():
            np.testing.assert_allclose(found[output], right, rtol=1e-5, atol=1e-5 * float(np.abs(right).max()))

    def test_a_feed_that_does_not_fit_is_a_data_error(self, path: Path) -> None:
        write(small_cnn(), path)
        with (
            targets.runtime(TARGET).open(path, TARGET, SessionOptions(threads=2)) as session,
            pytest.raises(DataError, match="has shape"),
        ):
            session.run({"x": np.zeros((1, 2, 8, 8), np.float32)})

    def test_every_node_has_its_time_and_one_that_is_not_run_is_left_behind(self, path: Path) -> None:
        write(small_cnn(), path)
        runtime = targets.runtime(TARGET)
        times = runtime.profile(path, TARGET, {"x": np.zeros((1, 3, 8, 8), np.float32)}, rounds=2)
        assert [(one.name, one.op_type) for one in times][:2] == [("conv1", "Conv"), ("relu1", "Relu")]
        assert runtime.partition(path, TARGET).left_behind == []
        write(from_text("g (float[4] x) => (float[n] y) { a = Relu (x) y = Unique (a) }"), path)
        [left] = runtime.partition(path, TARGET).left_behind
        assert left == ("y", "Unique", "none")
        with pytest.raises(ModelError, match="torch has no Unique"):
            runtime.open(path, TARGET)


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return [_array(one) for one in value] if isinstance(value, list) else np.asarray(value)


def _fed(value: Any) -> Any:
    import torch

    array = _array(value)
    return [torch.tensor(one) for one in array] if isinstance(array, list) else array


def _pairs(found: Any, expected: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            yield from _pairs(one, other)
    else:
        yield found, expected


def _assert_near(found: Any, expected: Any, rtol: float, atol: float) -> None:
    for tensor, right in _pairs(found, expected):
        array = to_array(tensor, right.dtype)
        assert array.shape == right.shape
        if right.dtype.kind in "fV":
            least = 1e-5 if right.dtype.itemsize > 2 else 2e-2 if right.dtype.kind == "V" else 4e-3
            near = np.float64
            np.testing.assert_allclose(
                array.astype(near), right.astype(near), rtol=max(rtol, least), atol=max(atol, least / 10)
            )
        else:
            np.testing.assert_array_equal(array, right)
