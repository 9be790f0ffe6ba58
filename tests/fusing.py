"""Run the pass ``fuse`` by itself, and check what must hold for every model that goes through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.model import count_nodes
from graphopt.passes.fuse import Fuse

from helpers import assert_same_outputs
from simplifying import context


def fuse(
    proto: onnx.ModelProto, *, growth_bytes: int | None = None, exclude: Sequence[str] = ()
) -> tuple[onnx.ModelProto, list[Change]]:
    """The fused model and the changes. ``proto`` stays as it is."""
    model = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    changes = Fuse().apply(model, context(growth_bytes, exclude))
    return ir.to_proto(model), [*changes]


def fused(proto: onnx.ModelProto, *feeds: Mapping[str, np.ndarray], rtol: float = 2e-6, **kwargs: object) -> onnx.ModelProto:
    """Fuse, and assert what holds for every model; ``feeds`` must give the same outputs."""
    onnx.checker.check_model(proto, full_check=True)
    result, _ = fuse(proto, **kwargs)
    onnx.checker.check_model(result, full_check=True)
    assert [*result.graph.input] == [*proto.graph.input]
    assert [*result.graph.output] == [*proto.graph.output]
    assert count_nodes(ir.from_proto(result)) <= count_nodes(ir.from_proto(proto))
    again, changes = fuse(result, **kwargs)
    assert [change for change in changes if change.done] == []
    assert again == result
    for feed in feeds:
        assert_same_outputs(proto, result, feed, rtol)
    return result


def model(
    body: str,
    inputs: str = "float[N, 4, 8, 8] x",
    outputs: str = "float[N, C, H, W] y",
    opset: int = 20,
    ir_version: int = 10,
    **weights: np.ndarray,
) -> onnx.ModelProto:
    """A model of nodes in ONNX's text syntax, its weights given as arrays."""
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n'
    typed = []
    for name, array in weights.items():
        kind = {"f": "float", "i": "int64"}[array.dtype.kind] if array.dtype.itemsize != 2 else "float16"
        typed.append(f"{kind}[{','.join(map(str, array.shape))}] {name}" if array.ndim else f"{kind} {name}")
    names = ", ".join([inputs, *typed])
    proto = onnx.parser.parse_model(f"{header} g ({names}) => ({outputs}) {{ {body} }}")
    del proto.graph.input[len(proto.graph.input) - len(weights) :]
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return proto


def listed_as_input(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with an initializer that a caller may override."""
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    proto.graph.input.append(onnx.helper.make_tensor_value_info(name, weight.data_type, weight.dims))
    return proto


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
