"""Whatever is built of layers and whichever part of it is quantized, it stays valid, near, and in integer kernels."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from quantizing import kernels, quantize, run_optimized, sqnr

MATMULS = {"QGemm", "QLinearMatMul", "MatMulIntegerToFloat"}


class Builder:
    """Adds layers to a network; ``value`` [N, channels, size, size] is the last one's output."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 1000)))
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.value, self.channels, self.size = "x", 4, 8

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(onnx.numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        fan_in = max(1, int(np.prod(shape[1:])))
        spread = np.exp(self.rng.uniform(-1, 1, (shape[0], *[1] * (len(shape) - 1))))
        return self.constant((self.rng.standard_normal(shape) * spread / np.sqrt(fan_in)).astype(np.float32))

    def node(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        name = f"n{len(self.nodes)}"
        outs = [f"{name}_{index}" for index in range(outputs)]
        self.nodes.append(onnx.helper.make_node(op_type, inputs, outs, name, **attributes))
        return outs[0]

    def conv(self, value: str, channels: int, activation: str = "") -> str:
        kernel, grouped = self.draw(st.sampled_from([1, 3])), self.draw(st.booleans())
        group = self.channels if grouped and channels % self.channels == 0 else 1
        inputs = [value, self.weight(channels, self.channels // group, kernel, kernel)]
        if self.draw(st.booleans()):
            inputs.append(self.constant(self.rng.standard_normal(channels).astype(np.float32)))
        made = self.node("Conv", *inputs, group=group, pads=[kernel // 2] * 4)
        return self.activate(made, activation or self.draw(st.sampled_from(["", "Relu", "Clip", "LeakyRelu", "Sigmoid"])))

    def activate(self, value: str, activation: str) -> str:
        if not activation or activation == "none":
            return value
        if activation == "Clip":
            low, high = self.draw(st.sampled_from([(0.0, 6.0), (-1.0, 1.0), (0.0, 0.5)]))
            return self.node("Clip", value, self.constant(np.float32(low)), self.constant(np.float32(high)))
        return self.node(activation, value)

    # ------------------------------------------------------------------------------------------------------------ layers

    def plain(self) -> None:
        channels = self.draw(st.sampled_from([4, 6, 8]))
        self.value, self.channels = self.conv(self.value, channels), channels

    def residual(self) -> None:
        added = self.node("Add", self.conv(self.value, self.channels), self.value)
        self.value = self.activate(added, self.draw(st.sampled_from(["none", "Relu"])))

    def gate(self) -> None:
        pooled = self.node("GlobalAveragePool", self.value)
        self.value = self.node("Mul", self.value, self.conv_of_one(pooled))

    def conv_of_one(self, value: str) -> str:
        return self.node("Sigmoid", self.node("Conv", value, self.weight(self.channels, self.channels, 1, 1)))

    def branches(self) -> None:
        parts = [self.conv(self.value, self.channels, "Relu"), self.conv(self.value, self.channels, "none"), self.value]
        taken = self.draw(st.permutations(parts))[: self.draw(st.integers(2, 3))]
        self.value = self.node("Concat", *taken, axis=1)
        self.channels *= len(taken)

    def pool(self) -> None:
        if self.size < 4:
            return
        kind = self.draw(st.sampled_from(["MaxPool", "AveragePool"]))
        self.value = self.node(kind, self.value, kernel_shape=[2, 2], strides=[2, 2])
        self.size //= 2

    def shortcut(self) -> None:
        if self.size < 4:
            return
        starts, ends, axes, steps = ([0, 0], [99, 99], [2, 3], [2, 2])
        values = [self.constant(np.array(part, np.int64)) for part in (starts, ends, axes, steps)]
        sliced = self.node("Slice", self.value, *values)
        pads = self.constant(np.array([0, 2, 0, 0, 0, 2, 0, 0], np.int64))
        self.value = self.node("Pad", sliced, pads)
        self.channels, self.size = self.channels + 4, self.size // 2

    def halves(self) -> None:
        first = self.node("Split", self.value, outputs=2, axis=1, num_outputs=2)
        second = first[:-1] + "1"
        self.value = self.node("Concat", second, first, axis=1)

    def around(self) -> None:
        there = self.node("Transpose", self.value, perm=[0, 2, 3, 1])
        self.value = self.node("Transpose", there, perm=[0, 3, 1, 2])

    def handed_on(self) -> None:
        """Something that moves or repeats elements, and moves them back."""
        integers = lambda *values: self.constant(np.array(values, np.int64))  # noqa: E731
        kind = self.draw(st.sampled_from(["Gather", "Unsqueeze", "Reshape", "DepthToSpace", "Resize", "Tile", "Expand", "Pad"]))
        if kind == "Gather":
            self.value = self.node("Gather", self.value, integers(*self.rng.permutation(self.channels)), axis=1)
        elif kind == "Unsqueeze":
            self.value = self.node("Squeeze", self.node("Unsqueeze", self.value, integers(2)), integers(2))
        elif kind == "Reshape":
            flat = self.node("Reshape", self.value, integers(0, -1))
            self.value = self.node("Reshape", flat, integers(0, self.channels, self.size, self.size))
        elif kind == "DepthToSpace" and self.channels % 4 == 0 and self.channels > 4:
            there = self.node("DepthToSpace", self.value, blocksize=2)
            self.value = self.node("SpaceToDepth", there, blocksize=2)
        elif kind == "Resize" and self.size <= 4:
            scales = self.constant(np.array([1, 1, 2, 2], np.float32))
            self.value = self.node("Resize", self.value, "", scales, mode=self.draw(st.sampled_from(["nearest", "linear"])))
            self.size *= 2
        elif kind == "Tile" and self.channels <= 16:
            self.value, self.channels = self.node("Tile", self.value, integers(1, 2, 1, 1)), 2 * self.channels
        elif kind == "Expand":
            self.value = self.node("Expand", self.value, integers(1, self.channels, 1, 1))
        elif kind == "Pad":
            mode = self.draw(st.sampled_from(["constant", "reflect", "edge"]))
            padded = self.node("Pad", self.value, integers(0, 0, 1, 1, 0, 0, 1, 1), mode=mode)
            self.value = self.node("MaxPool", padded, kernel_shape=[3, 3])

    def arithmetic(self) -> None:
        """A constant for each channel, an activation that nothing absorbs, a product of two branches."""
        kind = self.draw(st.sampled_from(["Add", "Mul", "HardSigmoid", "product", "ConvTranspose"]))
        if kind in {"Add", "Mul"}:
            constant = self.constant(self.rng.uniform(0.5, 2, (self.channels, 1, 1)).astype(np.float32))
            self.value = self.activate(self.node(kind, self.value, constant), self.draw(st.sampled_from(["none", "Relu"])))
        elif kind == "HardSigmoid":
            self.value = self.node("HardSigmoid", self.value)
        elif kind == "product":
            self.value = self.node("Mul", self.conv(self.value, self.channels, "Sigmoid"), self.value)
        else:
            weight = self.weight(self.channels, self.channels, 3, 3)
            self.value = self.activate(self.node("ConvTranspose", self.value, weight, pads=[1] * 4), "Relu")

    def head(self) -> str:
        flat = self.node("Flatten", self.value)
        size = self.channels * self.size**2
        if self.draw(st.booleans()):
            hidden = self.node("MatMul", flat, self.constant(self.rng.standard_normal((size, 6)).astype(np.float32) / 8))
            flat, size = self.activate(self.node("Add", hidden, self.weight(6)), "Relu"), 6
        if self.draw(st.booleans()):
            return self.node("MatMul", flat, self.constant(self.rng.standard_normal((size, 5)).astype(np.float32)))
        trans = self.draw(st.integers(0, 1))
        shape = (5, size) if trans else (size, 5)
        alpha, beta = self.draw(st.sampled_from([(1.0, 1.0), (0.5, 2.0)]))
        return self.node("Gemm", flat, self.weight(*shape), self.weight(5), transB=trans, alpha=alpha, beta=beta)


LAYERS = (
    *("plain", "residual", "gate", "branches", "pool", "shortcut", "halves", "around"),
    *("handed_on", "arithmetic", "plain"),
)


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    builder = Builder(draw)
    for layer in draw(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=5)):
        getattr(builder, layer)()
    outputs = [builder.head(), builder.value] if draw(st.booleans()) else [builder.head()]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        builder.nodes,
        "random",
        [value("x", onnx.TensorProto.FLOAT, ["N", 4, 8, 8])],
        [onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(outputs)],
        builder.initializers,
    )
    for output in graph.output:
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(made)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(proto=networks(), data=st.data())
def test_any_subset_is_valid_near_the_float_model_and_runs_in_integer_kernels(
    proto: onnx.ModelProto, data: st.DataObject
) -> None:
    x = np.random.default_rng(7).standard_normal((8, 4, 8, 8)).astype(np.float32)
    share = data.draw(st.sampled_from([1.0, 1.0, 0.7, 0.3]))
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    plain = {"method": "minmax", "rounding": "nearest", "bias_correction": "off"}
    done = quantize(proto, {"x": x}, only=lambda _site: bool(rng.random() < share), **plain)
    left = {change.site for change in done.changes if not change.done}
    counted = [site for site in done.planned if site.name not in left]
    before, after = run_optimized(proto, {"x": x}), run_optimized(done.proto, {"x": x})
    assert list(before) == list(after)
    for name, expected in before.items():
        assert after[name].shape == expected.shape
        assert sqnr(expected, after[name]) > 8, (name, sqnr(expected, after[name]))
    run = kernels(done.proto, {"x": x[:1]})
    note(onnx.printer.to_text(done.proto.graph))
    note(f"planned {counted}, run {run}")
    planned = [site.op_type for site in counted]
    assert run["QLinearConv"] == planned.count("Conv")
    assert sum(run[kind] for kind in MATMULS) == planned.count("Gemm") + planned.count("MatMul")
    for kind in ("Add", "Mul", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"):
        assert run[f"QLinear{kind}"] >= planned.count(kind), kind  # the runtime makes more of them when it can
