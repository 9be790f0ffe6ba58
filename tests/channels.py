"""Networks built node by node, and one assertion about removal: what is left equals the network with the channels zeroed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from graphopt import axes
from graphopt.model import check, parameters

from helpers import assert_same_outputs


class Net:
    """A network under construction: ``net(op_type, input, ...)`` adds a node and gives the name of its output."""

    def __init__(self, seed: int = 0, opset: int = 20, **inputs: Sequence[int | str]) -> None:
        self.rng = np.random.default_rng(seed)
        self.inputs = inputs
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def __call__(self, op_type: str, *operands: str, domain: str = "", **attributes: object) -> str:
        return self.many(op_type, 1, *operands, domain=domain, **attributes)[0]

    def many(self, op_type: str, outputs: int, *operands: str, domain: str = "", **attributes: object) -> list[str]:
        name = f"{op_type.lower()}{len(self.nodes)}"
        names = [name, *(f"{name}_{number}" for number in range(1, outputs))]
        self.nodes.append(onnx.helper.make_node(op_type, operands, names, name, domain=domain, **attributes))
        return names

    def weight(self, *shape: int, positive: bool = False) -> str:
        values = self.rng.standard_normal(shape) * 0.5
        return self.constant((np.abs(values) + 0.5 if positive else values).astype(np.float32))

    def constant(self, values: object) -> str:
        array = np.asarray(values)
        name = f"w{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(array if array.dtype == np.float32 else array.astype(np.int64), name))
        return name

    def conv(self, x: str, channels: int, out: int, kernel: int = 3, group: int = 1) -> str:
        weight, bias = self.weight(out, channels // group, kernel, kernel), self.weight(out)
        return self("Conv", x, weight, bias, group=group, pads=[kernel // 2] * 4)

    def norm(self, x: str, channels: int) -> str:
        parameters = [self.weight(channels, positive=number == 3) for number in range(4)]
        return self("BatchNormalization", x, *parameters)

    def linear(self, x: str, features: int, out: int) -> str:
        return self("Add", self("MatMul", x, self.weight(features, out)), self.weight(out))

    def model(self, *outputs: str) -> ir.Model:
        value = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            self.nodes,
            "net",
            [value(name, onnx.TensorProto.FLOAT, shape) for name, shape in self.inputs.items()],
            [value(name, onnx.TensorProto.FLOAT, None) for name in outputs],
            self.weights,
        )
        opsets = [onnx.helper.make_opsetid("", self.opset), onnx.helper.make_opsetid("com.microsoft", 1)]
        return ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))


def feed(model: ir.Model, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal inputs; "N" and what leads without being fixed is the batch, other symbols are 5."""
    rng = np.random.default_rng(seed)

    def size(dim: int | ir.SymbolicDim, axis: int) -> int:
        return dim if isinstance(dim, int) else batch if axis == 0 or dim.value == "N" else 5

    shapes = {value.name or "": [size(dim, axis) for axis, dim in enumerate(value.shape or ())] for value in model.graph.inputs}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def assert_removal_is_exact(
    model: ir.Model,
    ratio: float = 0.5,
    seed: int = 0,
    feeds: Sequence[Mapping[str, np.ndarray]] | None = None,
    rtol: float = 1e-5,
) -> ir.Model:
    """Remove units of all groups at random: the file is valid, smaller, runs, and equals the masked network."""
    before = parameters(model)
    channels = axes.analyse(model)
    rng = np.random.default_rng(seed)
    removal = {
        group: chosen
        for group in channels.groups()
        if group.prunable and len(chosen := group.choose(rng.permutation(group.size), int(ratio * group.size)))
    }
    masked = axes.masked(model, channels, removal)
    changes = axes.remove(model, channels, removal)
    assert len(changes) == len(removal)
    assert (parameters(model) < before) == bool(removal)
    check(model)
    for one in feeds or [feed(model, 1), feed(model, 2)]:
        assert_same_outputs(masked, model, one, rtol)
    return model


def sizes(model: ir.Model) -> list[int]:
    """Units of the groups that can be pruned, in order."""
    return [group.size for group in axes.analyse(model).groups() if group.prunable]


def why(model: ir.Model) -> list[str]:
    """Why the others cannot."""
    return [group.why for group in axes.analyse(model).groups() if not group.prunable]
