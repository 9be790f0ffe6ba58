"""Removal on random valid graphs: what exporters write, mixed without sense (``random_graphs``)."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import random_graphs
from channels import assert_removal_is_exact


def contracted(proto: onnx.ModelProto) -> ir.Model:
    """The model with a Conv or MatMul behind each output: its channels are no output's, so they can be removed."""
    rng = np.random.default_rng(0)
    proto.ir_version = max(proto.ir_version, 4)  # the new weights are no inputs
    outputs = [*proto.graph.output]
    del proto.graph.output[:]
    for number, output in enumerate(outputs):
        dims = output.type.tensor_type.shape.dim
        shape = (3, dims[1].dim_value, 1, 1) if len(dims) == 4 else (dims[-1].dim_value, 3) if len(dims) > 1 else ()
        name = output.name
        if shape:
            weight = onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), f"end_w{number}")
            proto.graph.initializer.append(weight)
            name = f"end{number}"
            proto.graph.node.append(
                onnx.helper.make_node("Conv" if len(dims) == 4 else "MatMul", [output.name, weight.name], [name])
            )
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    proto.ir_version = max(proto.ir_version, 4)  # before, the new weights would have to be inputs
    return ir.from_proto(proto)


@pytest.mark.parametrize("first", range(0, 80, 10))
def test_any_graph_without_the_units_equals_it_with_the_units_zeroed(first: int) -> None:
    for number in range(first, first + 10):
        proto = random_graphs.model(5_000_000 + number)
        feeds = random_graphs.feeds(proto)
        assert_removal_is_exact(contracted(proto), (0.5, 0.8)[number % 2], number, feeds, rtol=1e-4)
