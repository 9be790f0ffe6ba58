"""What is known of types and shapes: only what follows from the inputs, and without reading weights."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from graphopt import model as models
from graphopt import shapes, sizes

from helpers import from_text


def shape_of(facts: shapes.Facts, name: str) -> list[int | str | None] | None:
    known = next(known for value, known in facts.items() if value.name == name)
    return None if known.shape is None else [dim if isinstance(dim, int) else dim.value for dim in known.shape]


def test_stated_shapes_are_ignored_and_the_model_stays_as_it_is():
    proto = from_text("g (float[N, 4] x) => (float[1, 4] y) { a = Relu(x)  y = Exp(a) }")
    proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.DOUBLE, [7]))
    model = ir.from_proto(proto)
    before = ir.to_proto(model)
    facts = shapes.infer(model)
    assert ir.to_proto(model) == before
    assert shape_of(facts, "a") == shape_of(facts, "y") == ["N", 4]
    assert {known.type.dtype for known in facts.values()} == {ir.DataType.FLOAT}


def test_shapes_that_hang_on_an_overridable_initializer_are_unknown():
    model = from_text("g (float[8] x, int64[2] s) => (float[a, b] y) <int64[2] s = {2, 4}> { y = Reshape(x, s) }")
    assert shape_of(shapes.infer(ir.from_proto(model)), "y") == [None, None]
    assert shape_of(sizes.infer(ir.from_proto(model)), "y") == [2, 4]


def test_branches_that_use_the_same_names_are_told_apart():
    text = "{ j = Constant<value_ints = [%d]>()  s = Shape(w)  p = Slice(s, zero, j)  r = Expand(k, p) }"
    proto = from_text(f"""g (bool flag, float[4, 4, 1, 1] w) => (float[a] y) <float k = {{1}}, int64[1] zero = {{0}}> {{
        y = If(flag) <then_branch = t () => (float[d] r) {text % 3}, else_branch = e () => (float[d] r) {text % 1}>
    }}""")
    model = ir.from_proto(proto)
    facts = shapes.infer(model)
    found = [facts[node.outputs[0]].shape for node in model.graph.all_nodes() if node.op_type == "Expand"]
    assert [shape and shape.numpy() for shape in found] == [(4, 4, 1), (4,)]


def test_weights_are_not_read(tmp_path: Path):
    proto = from_text("g (float[N, 600] x) => (float[N, M] y) { y = MatMul(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((600, 500), np.float32), "w"))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin")
    model = models.load(tmp_path / "m.onnx")
    (tmp_path / "w.bin").unlink()
    assert shape_of(shapes.infer(model), "y") == ["N", 500]


def test_a_huge_vector_does_not_take_huge_memory():
    model = from_text("g (float[N, 1] x) => (float[a, b] y) <float one = {1}, int64[1] n = {1000000000}> {"
                      " a = Expand(one, n)  y = Mul(x, a) }")  # fmt: skip
    begun = time.process_time()
    assert shape_of(shapes.infer(ir.from_proto(model)), "y") == ["N", 1000000000]
    assert time.process_time() - begun < 1


def test_a_vector_that_doubles_again_and_again_does_not_take_huge_memory():
    doubled = "\n".join(f"v{i} = Concat<axis = {-(i % 2)}>(v{i - 1}, v{i - 1})" for i in range(1, 31))
    model = ir.from_proto(from_text(f"g (int64[2] v0) => (int64[a] y) {{ {doubled} y = Add(v30, v30) }}"))
    assert shape_of(shapes.infer(model), "y") == [2**31]


def test_a_vector_that_is_put_together_of_a_few_inputs_does_not_take_huge_memory():
    model = ir.from_proto(
        from_text("g (int64[90000] a, int64[2000000000] b) => (int64[n] y) { c = Concat<axis = 0>(a, b) y = Neg(c) }")
    )
    assert shape_of(shapes.infer(model), "y") == [2_000_090_000]


def test_what_reads_an_initializer_that_is_an_output_is_known():
    proto = from_text("g (float[N, 4] x) => (float[N, 4] y, float[1, 4] w) <float[1, 4] w = {1, 2, 3, 4}> { y = Mul(x, w) }")
    proto.graph.output[1].type.tensor_type.ClearField("shape")
    assert shape_of(shapes.infer(ir.from_proto(proto)), "y") == ["N", 4]


def test_what_is_kept_for_the_next_pass_tells_of_constants_that_are_new():
    model = ir.from_proto(from_text("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"))
    found = shapes.infer(model)
    new = ir.Value(name="w", const_value=ir.tensor(np.zeros((4, 2), np.float32), name="w"))
    model.graph.register_initializer(new)
    shapes.keep(model, found)
    assert shape_of(shapes.infer(model), "w") == [4, 2]


def test_what_was_kept_is_believed_of_the_same_graph_only():
    model = ir.from_proto(from_text("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"))
    (node,) = model.graph
    shapes.keep(model, {})
    assert shapes.infer(model) == {}
    shapes.keep(model, {})
    node.replace_input_with(0, model.graph.inputs[0])
    assert shape_of(shapes.infer(model), "y") == ["N", 4]


def test_what_was_kept_can_be_left_again_by_who_changes_nothing():
    model = ir.from_proto(from_text("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"))
    shapes.keep(model, shapes.infer(model))
    kept = shapes.kept(model)
    shapes.keep(model, shapes.infer(model), kept)
    assert shapes.kept(model) is kept
    shapes.keep(model, {}, kept)  # who knows something else leaves that
    assert shapes.infer(model) == {}


def test_where_a_graph_was_rewired_as_much_is_known_as_if_nothing_had_been_known_before():
    model = ir.from_proto(
        from_text("""g (float[N, 4] x, float[8, 2] z, int64[2] s, bool flag) => (float[a, b] y, float[c, d] w, float[e, f] v)
        <int64[2] flat = {-1, 2}> {
            early = Relu(x)  hidden = Reshape(early, s)  pairs = Reshape(hidden, flat)  size = Shape(pairs)
            wide = Reshape(early, size)  y = Exp(wide)  w = Neg(early)
            v = If(flag) <then_branch = t () => (float[p, q] g1) { g1 = Tanh(wide) },
                          else_branch = e () => (float[p, q] g2) { g2 = Tanh(pairs) }>
        }""")
    )
    known = shapes.infer(model)
    before = {node: node.inputs for node in model.graph}
    pairs = next(node for node in model.graph if node.outputs[0].name == "pairs")
    assert shape_of(known, "pairs") == [None, 2]
    pairs.replace_input_with(0, model.graph.inputs[1])  # its input has dimensions that are known
    again, anew = shapes.infer(model, known, before), shapes.infer(model)
    assert shape_of(again, "wide") == [8, 2]
    assert again == anew


def test_a_node_that_nothing_was_known_of_is_looked_at_again():
    model = ir.from_proto(from_text("g (float[N, 4] x) => (float[N, 4] y) { a = Relu(x)  y = Exp(a) }"))
    before = {node: node.inputs for node in model.graph}
    known = {model.graph.inputs[0]: ir.TypeAndShape(model.graph.inputs[0].type, None)}
    assert shape_of(shapes.infer(model, known, before), "y") == ["N", 4]
