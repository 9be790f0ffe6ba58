"""What `load` refuses, what it mends, and that it says where."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import model
from graphopt.errors import ModelError

from helpers import assert_same_outputs, from_text, run, small_cnn, write

BRANCHES = """
agraph (float[2] x, bool c) => (float[2] y) {{
    y = If (c) <
        then_branch = then () => (float[2] a) {{ {then} }},
        else_branch = other () => (float[2] b) {{ b = Neg (x) }}
    >
    {after}
}}
"""
FUNCTION = """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
agraph (float[2] x) => (float[2] y) {{ y = local.double (x) }}
<domain: "local", opset_import: ["" : 20]>
double (x) => (y) {{ {body} }}
"""


def refusal(proto: onnx.ModelProto, folder: Path) -> str:
    """The error of a model that must be refused."""
    path = folder / "refused.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError) as caught:
        model.load(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n\n" not in text
    return text


def loaded(proto: onnx.ModelProto, folder: Path) -> ir.Model:
    return model.load(write(proto, folder / "accepted.onnx"))


def external(location: str, elements: int = 400, dtype: int = onnx.TensorProto.FLOAT, **place: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", dims=[elements], data_type=dtype, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, **place}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def adds(tensor: onnx.TensorProto) -> onnx.ModelProto:
    """y = x + w with w [400]."""
    proto = from_text("agraph (float[400] x) => (float[400] y) { y = Add (x, w) }")
    proto.graph.initializer.append(tensor)
    return proto


# ----------------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"\xff" * 100, "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"PK\x03\x04" + bytes(40), "ZIP"),
        (b"\x1c\0\0\0TFL3" + bytes(40), "TensorFlow Lite"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"\x08\x0a", "no graph"),
    ],
)
def test_files_that_are_no_model_are_refused(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=says) as caught:
        model.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        model.load(tmp_path / "missing.onnx")
    with pytest.raises(ModelError, match="folder"):
        model.load(tmp_path)


def test_a_truncated_file_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    data = small_cnn().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="truncated"):
        model.load(path)


def test_a_file_over_2_gb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(ModelError, match="larger than 2 GB"):
        model.load(path)


def test_damaged_models_load_or_raise_a_model_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    text = BRANCHES.format(then="k = Constant <value = float[2] {1, 2}> () a = Add (x, k)", after="")
    originals = [small_cnn(channels=2).SerializeToString(), from_text(text).SerializeToString()]
    path = tmp_path / "m.onnx"
    for _ in range(500):
        data = bytearray(rng.choice(originals))
        where = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                del data[where:]
            case 1:
                del data[where : where + rng.randrange(1, 9)]
            case 2:
                data[where:where] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                data[where] = rng.choice([0, 1, 8, 255, rng.randrange(256)])
        path.write_bytes(data)
        try:
            proto = model.load(path)
        except ModelError:
            continue
        model.save(proto, tmp_path / "again.onnx")


# --------------------------------------------------------------------------------------------------------- the header


def test_header_faults_are_refused(tmp_path: Path) -> None:
    def broken(change: Callable[[onnx.ModelProto], object]) -> str:
        proto = small_cnn()
        change(proto)
        return refusal(proto, tmp_path)

    assert "no opset" in broken(lambda m: m.ClearField("opset_import"))
    assert "imports version 99" in broken(lambda m: m.opset_import.__getitem__(0).__setattr__("version", 99))
    assert "'ai.onnx.ml'" in broken(lambda m: m.opset_import.add(domain="ai.onnx.ml", version=99))
    assert "two versions" in broken(lambda m: m.opset_import.add(domain="ai.onnx", version=13))
    assert "IR version 99" in broken(lambda m: m.__setattr__("ir_version", 99))
    assert "no IR version" in broken(lambda m: m.ClearField("ir_version"))
    assert "no outputs" in broken(lambda m: m.graph.ClearField("output"))
    assert "no type" in broken(lambda m: m.graph.output[0].ClearField("type"))


def test_the_default_domain_may_be_called_ai_onnx(tmp_path: Path) -> None:
    proto = small_cnn()
    proto.opset_import[0].domain = "ai.onnx"
    proto.graph.node[0].domain = "ai.onnx"
    assert model.opset(loaded(proto, tmp_path)) == 20


# ------------------------------------------------------------------------------------------------------ names and order


def test_a_cycle_is_refused_with_its_nodes(tmp_path: Path) -> None:
    proto = from_text("agraph (float[2] x) => (float[2] y) { a = Relu (x) b = Add (a, d) d = Neg (b) y = Neg (d) }")
    for node, name in zip(proto.graph.node, ["first", "sum", "back", "last"], strict=True):
        node.name = name
    text = refusal(proto, tmp_path)
    assert "cycle" in text
    assert "node 'sum' (Add) -> node 'back' (Neg) -> node 'sum' (Add)" in text or "'back' (Neg) -> node 'sum'" in text
    assert "first" not in text
    assert "last" not in text


def test_a_branch_that_reads_its_own_result_is_a_cycle(tmp_path: Path) -> None:
    assert "cycle" in refusal(from_text(BRANCHES.format(then="a = Neg (y)", after="")), tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("agraph (float[2] x) => (float[2] y) { y = Relu (x) y = Neg (x) }", "makes 'y', which is made by"),
        ("agraph (float[2] x) => (float[2] x) { x = Relu (x) }", "made by an input or initializer"),
        ("agraph (float[2] x) => (float[2] w) <float[2] w = {1, 2}> { w = Relu (x) }", "made by an input or initializer"),
        (BRANCHES.format(then="y = Neg (x) a = Neg (y)", after="").replace("y = If", "z = If").replace("] y)", "] z)", 1), ""),
        ("agraph (float[2] x) => (float[2] y) { a = Relu (x) y = If (c) <then_branch = t () => (q) { a = Neg (x) q = Neg (a) },"
         " else_branch = e () => (r) { r = Neg (x) }> c = Constant <value = bool {1}> () }", "'a' has been used"),
        ("agraph (float[2] x) => (float[2] y) { y = Add (x, nothing) }", "input 'nothing' is not defined"),
        (BRANCHES.format(then="a = Neg (nothing)", after=""), "then_branch of"),
        ("agraph (float[2] x) => (float[2] y, float[2] z) { y = Relu (x) }", "output 'z' is not defined"),
        (BRANCHES.format(then="a = Neg (x)", after="").replace("(float[2] a)", "(float[2] x)"), "output 'x' is not defined"),
        ("agraph (float[2] x, float[2] x) => (float[2] y) { y = Relu (x) }", "graph input 'x' occurs twice"),
        ("agraph (float[2] x) => (float[2] y, float[2] y) { y = Relu (x) }", "graph output 'y' occurs twice"),
        ("agraph (float[2] x) => (float[2] y) { y = Reloo (x) }", "no operator 'Reloo'"),
        ("<ir_version: 8, opset_import: [\"\" : 14]> agraph (float[2] x) => (float[2] y) { y = Gelu (x) }", "at version 14"),
        ("<ir_version: 8, opset_import: [\"\" : 14, \"ai.onnx.ml\" : 3]> agraph (float[2] x) => (float[2] y)"
         " { y = ai.onnx.ml.Nothing (x) }", "no operator 'Nothing'"),
        ("agraph (float[2] x) => (float[2] y) { y = com.microsoft.Gelu (x) }", "'com.microsoft', which is not imported"),
        (FUNCTION.format(body="y = Add (x, nothing)"), "in function 'double'"),
        (FUNCTION.format(body="y = Reloo (x)"), "no operator 'Reloo'"),
        (FUNCTION.format(body="z = Neg (x)"), "output 'y' is not defined in function 'double'"),
        (FUNCTION.format(body="y = local.double (x)").replace('["" : 20]>', '["" : 20, "local" : 1]>'), "without end"),
    ],
)  # fmt: skip
def test_graphs_that_make_no_sense_are_refused(text: str, says: str, tmp_path: Path) -> None:
    proto = from_text(text)
    if says:
        assert says in refusal(proto, tmp_path)
    else:  # two branches may use a name that no graph around them has
        loaded(proto, tmp_path)


def test_an_error_names_the_node(tmp_path: Path) -> None:
    proto = from_text("agraph (float[2] x) => (float[2] y) { y = Add (x, nothing) }")
    proto.graph.node[0].name = "sum"
    assert "node 'sum' (Add): its input 'nothing'" in refusal(proto, tmp_path)


def test_duplicate_initializers_are_refused_and_duplicate_node_names_are_not(tmp_path: Path) -> None:
    proto = small_cnn()
    for node in proto.graph.node:
        node.name = "same"
    loaded(proto, tmp_path)
    proto.graph.initializer.append(proto.graph.initializer[0])
    assert "initializer 'w1' occurs twice" in refusal(proto, tmp_path)


def test_custom_domains_are_left_to_the_runtime(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20, "mine" : 3]> agraph (float[2] x) => (float[2] y) { y = mine.Magic (x) }'
    model.check(loaded(from_text(text), tmp_path))


@pytest.mark.parametrize("operator", ["LayerNormalization", "SimplifiedLayerNormalization"])
def test_operators_that_only_onnxruntime_knows_are_accepted(operator: str, tmp_path: Path) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 14]> agraph (float[2, 4] x) => (float[2, 4] y)'
        f" <float[4] s = {{1, 1, 1, 1}}> {{ z = {operator} <axis: int = -1> (x, s) y = Relu (z) }}"
    )
    proto = from_text(text)
    model.check(loaded(proto, tmp_path))
    run(proto, {"x": np.ones((2, 4), np.float32)})


def test_unsorted_graphs_are_sorted_and_sorted_ones_stay(tmp_path: Path) -> None:
    # d is captured in a branch: the If must come after the node that makes it
    unsorted = from_text(BRANCHES.format(then="a = Neg (e) e = Neg (d)", after="d = Relu (x)"))
    proto = loaded(unsorted, tmp_path)
    assert [node.op_type for node in proto.graph] == ["Relu", "If"]
    assert len(proto.meta[model.NOTES]) == 2
    model.check(proto)
    saved = model.save(proto, tmp_path / "sorted.onnx").path
    expected = from_text(BRANCHES.format(then="e = Neg (x2) a = Neg (e)", after="").replace("y = If", "x2 = Relu (x) y = If"))
    assert_same_outputs(saved, expected, {"x": np.array([-1, 2], np.float32), "c": np.array(True)})
    again = model.load(saved)
    assert again.meta[model.NOTES] == []
    assert [node.name for node in again.graph] == [node.name for node in proto.graph]


def test_unsorted_functions_are_sorted(tmp_path: Path) -> None:
    proto = loaded(from_text(FUNCTION.format(body="y = Neg (a) a = Relu (x)")), tmp_path)
    (function,) = proto.functions.values()
    assert [node.op_type for node in function] == ["Relu", "Neg"]
    assert any("function 'double'" in note for note in proto.meta[model.NOTES])


def test_functions_are_validated_and_kept(tmp_path: Path) -> None:
    proto = from_text(FUNCTION.format(body="y = Add (x, x)"))
    again = model.save(loaded(proto, tmp_path), tmp_path / "out.onnx").path
    assert_same_outputs(proto, again, {"x": np.array([1, 2], np.float32)})


def _nested(depth: int) -> bytes:
    """A model of ``depth`` nested Ifs, in wire format: protobuf itself builds none that is too deep."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size >= 0x80:
            length += bytes([size & 0x7F | 0x80])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    info = from_text("agraph (bool c) => (bool y) { y = Not (c) }").graph
    made = field(12, onnx.ValueInfoProto(name="y0", type=info.output[0].type).SerializeToString())
    graph = field(1, onnx.NodeProto(op_type="Not", input=["c"], output=["y0"]).SerializeToString()) + field(2, b"g") + made
    for level in range(1, depth + 1):
        name = f"y{level}"
        branches = b"".join(
            field(5, onnx.AttributeProto(name=branch, type=onnx.AttributeProto.GRAPH).SerializeToString() + field(6, body))
            for branch, body in (
                ("then_branch", graph),
                ("else_branch", onnx.helper.make_graph(
                    [onnx.helper.make_node("Not", ["c"], [f"e{level}"])], "e", [],
                    [onnx.ValueInfoProto(name=f"e{level}", type=info.output[0].type)]).SerializeToString()),
            )
        )  # fmt: skip
        node = onnx.NodeProto(op_type="If", input=["c"], output=[name]).SerializeToString() + branches
        made = field(12, onnx.ValueInfoProto(name=name, type=info.output[0].type).SerializeToString())
        graph = field(1, node) + field(2, b"g") + made
    graph += field(11, info.input[0].SerializeToString())
    head = onnx.ModelProto(ir_version=10, opset_import=[onnx.helper.make_opsetid("", 20)])
    return head.SerializeToString() + field(7, graph)


def test_deep_nesting_is_no_problem_up_to_what_the_format_allows(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(_nested(30))
    proto = model.load(path)
    assert model.count_nodes(proto) == 1 + 2 * 30
    model.check(proto)
    path.write_bytes(_nested(1000))
    with pytest.raises(ModelError, match="nested too deeply"):
        model.load(path)


def test_twenty_thousand_nodes_take_seconds(tmp_path: Path) -> None:
    node = onnx.helper.make_node
    nodes = [node("Add", [f"v{i}", "w"], [f"v{i + 1}"], f"n{i}") for i in range(10_000)]
    nodes += [node("Neg", ["v0"], [f"wide{i}"]) for i in range(9_000)]
    nodes += [node("Sum", [f"wide{i}" for i in range(9_000)], ["sum"]), node("Add", ["sum", "v10000"], ["y"])]
    value = onnx.helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(np.ones(4, np.float32), "w")
    graph = onnx.helper.make_graph(
        nodes[::-1], "g", [value("v0", onnx.TensorProto.FLOAT, [4])], [value("y", onnx.TensorProto.FLOAT, [4])], [weight]
    )
    path = write(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx"
    )
    before = time.process_time()
    proto = model.load(path)
    assert time.process_time() - before < 6
    assert model.count_nodes(proto) == len(nodes)


# -------------------------------------------------------------------------------------------------------------- tensors


def _in_constant(tensor: onnx.TensorProto) -> onnx.ModelProto:
    proto = from_text("agraph (float[400] x) => (float[400] y) { w = Constant <value = float {1}> () y = Add (x, w) }")
    proto.graph.node[0].attribute[0].t.CopyFrom(tensor)
    return proto


def _in_attribute(tensor: onnx.TensorProto) -> onnx.ModelProto:
    proto = from_text("agraph (int64[1] s) => (float[N] y) { y = ConstantOfShape <value = float[1] {1}> (s) }")
    proto.graph.node[0].attribute[0].t.CopyFrom(tensor)
    return proto


def _in_subgraph(tensor: onnx.TensorProto) -> onnx.ModelProto:
    proto = from_text(BRANCHES.format(then="a = Add (x, w)", after="").replace("float[2]", "float[400]"))
    proto.graph.node[0].attribute[0].g.initializer.append(tensor)
    return proto


def _in_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    text = FUNCTION.format(body="w = Constant <value = float {1}> () y = Add (x, w)").replace("float[2]", "float[400]")
    proto = from_text(text)
    proto.functions[0].node[0].attribute[0].t.CopyFrom(tensor)
    return proto


EVERYWHERE = pytest.mark.parametrize("place", [adds, _in_constant, _in_attribute, _in_subgraph, _in_function])


@EVERYWHERE
def test_tensors_that_do_not_fit_their_shape_are_refused_wherever_they_are(
    place: Callable[[onnx.TensorProto], onnx.ModelProto], tmp_path: Path
) -> None:
    short = onnx.TensorProto(name="w", dims=[400], data_type=onnx.TensorProto.FLOAT, raw_data=bytes(1596))
    assert "holds 1596 bytes, but its shape [400] and type FLOAT need 1600" in refusal(place(short), tmp_path)
    typed = onnx.TensorProto(name="w", dims=[400], data_type=onnx.TensorProto.FLOAT, float_data=[1.0] * 401)
    assert "holds 401 values" in refusal(place(typed), tmp_path)
    negative = onnx.TensorProto(name="w", dims=[-1, 400], data_type=onnx.TensorProto.FLOAT, raw_data=bytes(1600))
    assert "negative dimension" in refusal(place(negative), tmp_path)
    assert "does not exist" in refusal(place(external("missing.bin")), tmp_path)


@pytest.mark.parametrize(
    ("dtype", "elements", "size"),
    [
        ("INT4", 5, 3), ("UINT4", 4, 2), ("FLOAT4E2M1", 1, 1), ("INT2", 5, 2), ("UINT2", 4, 1), ("BFLOAT16", 3, 6),
        ("FLOAT8E4M3FN", 3, 3), ("FLOAT8E8M0", 3, 3), ("BOOL", 3, 3), ("COMPLEX128", 1, 16), ("DOUBLE", 0, 0),
    ],
)  # fmt: skip
def test_raw_data_are_measured_by_their_type(dtype: str, elements: int, size: int, tmp_path: Path) -> None:
    number = onnx.TensorProto.DataType.Value(dtype)
    proto = small_cnn()
    proto.graph.initializer.add(name="extra", dims=[elements], data_type=number, raw_data=bytes(size))
    tensor = loaded(proto, tmp_path).graph.initializers["extra"].const_value
    assert tensor is not None
    assert tensor.numpy().shape == (elements,)
    proto.graph.initializer[-1].raw_data += b"\0"
    assert f"holds {size + 1} bytes" in refusal(proto, tmp_path)


@pytest.mark.parametrize(
    ("dtype", "field", "values", "wrong"),
    [
        ("INT4", "int32_data", [1, 2, 3], [1, 2]),
        ("BFLOAT16", "int32_data", [1] * 5, [1] * 3),
        ("COMPLEX64", "float_data", [1.0] * 10, [1.0] * 5),
        ("UINT32", "uint64_data", [1] * 5, [1] * 6),
        ("STRING", "string_data", [b"a"] * 5, [b"a"] * 4),
    ],
)
def test_typed_data_are_counted_by_their_type(dtype: str, field: str, values: list, wrong: list, tmp_path: Path) -> None:
    number = onnx.TensorProto.DataType.Value(dtype)
    proto = small_cnn()
    proto.graph.initializer.add(name="extra", dims=[5], data_type=number, **{field: values})
    loaded(proto, tmp_path)
    proto.graph.initializer.pop()
    proto.graph.initializer.add(name="extra", dims=[5], data_type=number, **{field: wrong})
    assert "initializer 'extra' is not valid: it holds" in refusal(proto, tmp_path)


def test_data_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    def extra(**fields: object) -> str:
        proto = small_cnn()
        proto.graph.initializer.add(name="extra", dims=[2], **fields)  # type: ignore[arg-type]
        return refusal(proto, tmp_path)

    assert "holds int64_data" in extra(data_type=onnx.TensorProto.FLOAT, int64_data=[1, 2])
    assert "strings as raw data" in extra(data_type=onnx.TensorProto.STRING, raw_data=b"ab")
    assert "twice" in extra(data_type=onnx.TensorProto.FLOAT, raw_data=bytes(8), float_data=[1, 2])
    assert "number 77" in extra(data_type=77, raw_data=bytes(8))
    assert "holds 0 values" in extra(data_type=onnx.TensorProto.FLOAT)


def _sparse(indices: np.ndarray, values: list[float], shape: list[int]) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(
        values=onnx.numpy_helper.from_array(np.array(values, np.float32), "w"),
        indices=onnx.numpy_helper.from_array(np.asarray(indices, np.int64)),
        dims=shape,
    )


@pytest.mark.parametrize("indices", [[1, 5], [[0, 1], [1, 2]]])
def test_sparse_initializers_become_dense(indices: list, tmp_path: Path) -> None:
    proto = from_text("agraph (float[2, 3] x) => (float[2, 3] y) { y = Add (x, w) }")
    proto.graph.sparse_initializer.append(_sparse(indices, [7, 8], [2, 3]))
    dense = loaded(proto, tmp_path)
    assert "made dense" in dense.meta[model.NOTES][0]
    assert_same_outputs(proto, model.save(dense, tmp_path / "out.onnx").path, {"x": np.ones((2, 3), np.float32)})


def test_sparse_constants_become_dense(tmp_path: Path) -> None:
    proto = from_text("agraph (float[4] x) => (float[4] y) { w = Constant <value = float {1}> () y = Add (x, w) }")
    attribute = proto.graph.node[0].attribute[0]
    attribute.Clear()
    attribute.name, attribute.type = "sparse_value", onnx.AttributeProto.SPARSE_TENSOR
    attribute.sparse_tensor.CopyFrom(_sparse([1, 3], [7, 8], [4]))
    out = model.save(loaded(proto, tmp_path), tmp_path / "out.onnx").path
    assert_same_outputs(proto, out, {"x": np.ones(4, np.float32)})


@pytest.mark.parametrize(
    ("indices", "shape", "says"),
    [
        ([1, 6], [2, 3], "outside its shape"),
        ([-1, 2], [2, 3], "outside its shape"),
        ([[0, 3], [1, 0]], [2, 3], "outside its shape"),
        ([2, 2], [2, 3], "twice"),
        ([1], [2, 3], "do not fit"),
        ([1, 2], [1 << 20, 1 << 20], "more than 1 GB"),
        ([1, 2], [2, 0], "not positive"),
    ],
)
def test_sparse_tensors_with_bad_indices_are_refused(indices: list, shape: list[int], says: str, tmp_path: Path) -> None:
    proto = from_text("agraph (float[2, 3] x) => (float[2, 3] y) { y = Add (x, w) }")
    proto.graph.sparse_initializer.append(_sparse(indices, [7, 8], shape))
    assert says in refusal(proto, tmp_path)


def test_training_information_is_dropped_with_a_note(tmp_path: Path) -> None:
    proto = small_cnn()
    proto.training_info.add().algorithm.name = "sgd"
    assert loaded(proto, tmp_path).meta[model.NOTES] == ["training information was dropped"]


# -------------------------------------------------------------------------------------------------------- external data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with ``w.bin`` of 400 floats in it and another one outside."""
    inside = tmp_path / "models"
    (inside / "sub").mkdir(parents=True)
    np.arange(400, dtype=np.float32).tofile(inside / "w.bin")
    shutil.copy(inside / "w.bin", tmp_path / "secret.bin")
    return inside


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ({"location": "missing.bin"}, "does not exist"),
        ({"location": "sub"}, "not a regular file"),
        ({"location": ""}, "empty"),
        ({"location": "../secret.bin"}, "leads out"),
        ({"location": "sub/../../secret.bin"}, "leads out"),
        ({"location": "/secret.bin"}, "absolute"),
        ({"location": "C:\\secret.bin"}, "absolute"),
        ({"location": "link.bin"}, "symbolic link"),
        ({"location": "linked/secret.bin"}, "symbolic link"),
        ({"location": "w.bin", "offset": "4"}, "too short"),
        ({"location": "w.bin", "length": "1596"}, "need 1600"),
        ({"location": "w.bin", "length": "1604"}, "need 1600"),
        ({"location": "w.bin", "offset": "-8"}, "not a whole number"),
        ({"location": "w.bin", "offset": "x"}, "not a whole number"),
    ],
)
def test_external_data_that_cannot_be_trusted_are_refused(place: dict[str, str], says: str, folder: Path) -> None:
    (folder / "link.bin").symlink_to("../secret.bin")
    (folder / "linked").symlink_to("..")
    text = refusal(adds(external(**place)), folder)
    assert "initializer 'w'" in text
    assert says in text


@pytest.mark.parametrize("location", ["w.bin", "sub/../w.bin", "inside.bin", "hard.bin"])
def test_external_data_inside_the_folder_are_read(location: str, folder: Path) -> None:
    (folder / "inside.bin").symlink_to("w.bin")
    os.link(folder / "w.bin", folder / "hard.bin")
    proto = loaded(adds(external(location)), folder)
    tensor = proto.graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), np.arange(400, dtype=np.float32))


def test_a_download_cache_of_links_is_read(folder: Path, tmp_path: Path) -> None:
    (folder / "abc").write_bytes(adds(external("m.data")).SerializeToString())
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "m.onnx").symlink_to(folder / "abc")
    (snapshot / "m.data").symlink_to(folder / "w.bin")
    assert model.load(snapshot / "m.onnx").graph.initializers["w"].const_value is not None


@EVERYWHERE
def test_external_data_are_read_wherever_a_tensor_may_be(
    place: Callable[[onnx.TensorProto], onnx.ModelProto], folder: Path, tmp_path: Path
) -> None:
    proto = place(external("w.bin", elements=1 if place is _in_attribute else 400))
    before = write(proto, folder / "m.onnx")
    after = model.save(model.load(before), tmp_path / "out.onnx").path
    feed = {"x": np.ones(400, np.float32), "c": np.array(True), "s": np.array([3])}
    names = {info.name for info in proto.graph.input}
    if place is _in_attribute:  # onnxruntime reads no external data there
        assert run(after, {"s": feed["s"]})["y"].tolist() == [0, 0, 0]
        return
    assert_same_outputs(before, after, {name: array for name, array in feed.items() if name in names})


# ---------------------------------------------------------------------------------------------------------- the checker


def test_faults_that_the_checker_finds_name_the_node_in_one_paragraph(tmp_path: Path) -> None:
    proto = small_cnn()
    proto.graph.node[0].attribute.add(name="nonsense", type=onnx.AttributeProto.INT, i=1)
    text = refusal(proto, tmp_path)
    assert "node 'conv1' (Conv)" in text
    assert "nonsense" in text
    assert "\n" not in text
    proto = small_cnn()
    del proto.graph.node[0].input[1:]
    assert "node 'conv1' (Conv)" in refusal(proto, tmp_path)


def test_wrong_shapes_are_found_by_the_full_check_but_do_not_stop_loading(tmp_path: Path) -> None:
    proto = small_cnn()
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 11
    wrong = loaded(proto, tmp_path)
    model.check(wrong, full=False)
    with pytest.raises(ModelError, match=r"node 'gemm' \(Gemm\)"):
        model.check(wrong)


def test_outputs_of_unknown_rank_are_accepted(tmp_path: Path) -> None:
    proto = small_cnn()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    accepted = loaded(proto, tmp_path)
    model.check(accepted)
    assert model.output_specs(accepted)[0].shape is None


def test_negative_dimensions_of_inputs_are_unknown_ones(tmp_path: Path) -> None:
    proto = small_cnn()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert model.input_specs(loaded(proto, tmp_path))[0].shape == (None, 3, 8, 8)


@pytest.mark.parametrize("place", [adds, _in_constant, _in_subgraph, _in_function])
def test_the_full_check_needs_no_weights(place: Callable[[onnx.TensorProto], onnx.ModelProto], folder: Path) -> None:
    write(place(external("w.bin")), folder / "m.onnx")
    proto = model.load(folder / "m.onnx")
    (folder / "w.bin").unlink()
    tensors = [tensor for _, tensor in model.weights(proto)]
    model.check(proto)
    assert [tensor for _, tensor in model.weights(proto)] == tensors


def test_the_full_check_sees_the_shapes_of_weights_that_it_does_not_read(folder: Path) -> None:
    proto = _in_subgraph(external("w.bin", elements=300))
    with pytest.raises(ModelError, match="Incompatible dimensions"):
        model.check(loaded(proto, folder))


def test_map_types_are_refused_with_what_to_do(tmp_path: Path) -> None:
    proto = small_cnn()
    kind = proto.graph.output[0].type
    kind.Clear()
    kind.sequence_type.elem_type.map_type.key_type = onnx.TensorProto.INT64
    assert "zipmap" in refusal(proto, tmp_path)
