"""How providers cut models: counted as onnxruntime counts, with a reason for each node that stays behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import operators, partitions, targets
from graphopt.contracts import Partition
from graphopt.errors import UsageError
from graphopt.targets import Target

from helpers import from_text, graphopt, small_cnn, write


def cut(proto: onnx.ModelProto, target: str = "nnapi", **dims: int) -> partitions.Cut:
    found = partitions.estimate(ir.from_proto(proto), targets.load(target), dims)
    assert found is not None
    return found


def chain(*operators: str) -> onnx.ModelProto:
    names = ["x", *(f"v{index}" for index in range(1, len(operators))), "y"]
    nodes = "\n".join(f"{b} = {op}({a})" for op, a, b in zip(operators, names[:-1], names[1:], strict=True))
    return from_text(f"g (float[1, 4] x) => (float[1, 4] y) {{ {nodes} }}")


@pytest.mark.parametrize(
    ("operators", "expected"),
    [
        (("Relu", "Tanh"), 1),
        (("Erf",), 0),
        (("Relu", "Erf", "Tanh"), 2),
        (("Erf", "Relu", "Erf", "Erf", "Tanh", "Erf"), 2),
    ],
)
def test_a_node_that_stays_behind_cuts_a_chain(operators: tuple[str, ...], expected: int) -> None:
    assert cut(chain(*operators)).partitions == expected


def test_a_branch_that_stays_behind_does_not_cut_what_runs_beside_it() -> None:
    proto = from_text("g (float[1, 4] x) => (float[1, 4] y) { a = Erf(x) b = Relu(x) c = Tanh(b) d = Add(a, c) y = Relu(d) }")
    assert (cut(proto).partitions, cut(proto).taken) == (1, 4)  # Erf comes first, and then all the others in one go


def test_a_branch_that_waits_for_the_provider_cuts_it() -> None:
    proto = from_text("g (float[1, 4] x) => (float[1, 4] y) { b = Relu(x) a = Erf(b) c = Tanh(b) y = Add(a, c) }")
    assert cut(proto).partitions == 2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["Relu", "Erf"]), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=14))
def test_the_number_of_partitions_is_what_onnxruntime_counts(recipe: list[tuple[str, int, int]]) -> None:
    from onnxruntime.tools.mobile_helpers.usability_checker import check_nnapi_partitions

    values, nodes = ["x"], []
    for index, (op, first, second) in enumerate(recipe):
        a, b = values[first % len(values)], values[second % len(values)]
        made = "Add" if op == "Relu" else "Mean"  # Mean is none of NNAPI's
        nodes.append(onnx.helper.make_node(made, [a, b], [f"v{index}"], f"n{index}"))
        values.append(f"v{index}")
    value = onnx.helper.make_tensor_value_info
    outputs = [value(name, onnx.TensorProto.FLOAT, [1, 4]) for name in values[1:]]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", onnx.TensorProto.FLOAT, [1, 4])], outputs)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    expected = check_nnapi_partitions(proto, require_fixed_input_sizes=False)
    found = cut(proto)
    assert (found.partitions, found.taken) == (expected.num_partitions, expected.num_supported_nodes)


def why(proto: onnx.ModelProto, target: str = "nnapi") -> set[str]:
    return {left.why for left in cut(proto, target).sites}


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("g (float[1, 4] x) => (float[1, 4] y) { y = Erf(x) }", "nnapi", "the provider has no such operator"),
        ("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }", "nnapi", "its shapes are not fixed"),
        ("g (int64[1, 4] x) => (int64[1, 4] y) { y = Add(x, x) }", "nnapi", "its type is int64"),
        (
            "g (float[1, 2, 3, 4, 5] x) => (float[2, 1, 3, 4, 5] y) { y = Transpose<perm = [1, 0, 2, 3, 4]>(x) }",
            "nnapi",
            "a tensor has 5 dimensions, and the provider takes up to 4",
        ),
        (
            "g (float[1, 3, 9] x, float[4, 3, 3] w) => (float[1, 4, 7] y) { y = Conv(x, w) }",
            "nnapi",
            "its input has 3 dimensions, not 4",
        ),
        (
            "g (float[1, 3, 9, 9] x, float[4, 3, 3, 3] w) => (float[1, 4, 7, 7] y) { y = Conv(x, w) }",
            "nnapi",
            "its second input is not constant",
        ),
        (
            "g (float[1, 3, 4, 4] x) => (float[1, 3, 6, 6] y) <int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}> "
            '{ y = Pad<mode = "reflect">(x, p) }',
            "nnapi",
            "its mode is reflect",
        ),
        (
            "g (float[1, 3, 4, 4] x) => (float[1, 3, 3, 4] y) <int64[8] p = {0, 0, -1, 0, 0, 0, 0, 0}> { y = Pad(x, p) }",
            "nnapi",
            "its second input has negative numbers",
        ),
        (
            "g (float[1, 5] x) => (float[1, 2] y, float[1, 3] z) <int64[2] s = {2, 3}> { y, z = Split<axis = 1>(x, s) }",
            "nnapi",
            "its outputs are not of one size",
        ),
        ("g (float[1, 3, 4] x) => (float[1, 3, 4] y) { y = Softmax<axis = 1>(x) }", "xnnpack", "its axis is not the last"),
        (
            "g (float[1, 4] x, int64[2] i) => (float[1, 2] y) { y = Gather<axis = 1>(x, i) }",
            "nnapi",
            "its second input is int64 and not constant",
        ),
        ("g (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }", "xnnpack", "it follows no Conv or MaxPool or AveragePool"),
    ],
)
def test_a_node_stays_behind_for_a_reason(text: str, target: str, expected: str) -> None:
    assert why(from_text(text), target) == {expected}


def test_sizes_that_a_user_gives_count_as_fixed() -> None:
    dynamic = small_cnn()
    assert cut(dynamic).taken == 0
    fixed = cut(dynamic, N=1)
    assert (fixed.partitions, fixed.taken, fixed.nodes) == (1, 8, 8)


def test_what_the_provider_fuses_into_a_convolution_is_taken() -> None:
    found = cut(small_cnn(1), "xnnpack")
    assert {left.operator for left in found.sites} == {"Add", "Relu", "Flatten"}  # the Relu behind the Add
    assert found.taken == 5


def test_bodies_are_cut_by_themselves() -> None:
    proto = from_text(
        """g (float[1, 4] x, bool c) => (float[1, 4] y) {
          a = Relu(x)
          y = If(c) <then_branch = t () => (float[1, 4] b) { b = Tanh(a) },
                     else_branch = e () => (float[1, 4] d) { d = Erf(a) }>
        }"""
    )
    found = cut(proto)
    assert (found.partitions, found.taken, found.nodes) == (2, 2, 4)
    core_ml = cut(proto, "coreml")  # takes no bodies unless it is asked to
    assert (core_ml.partitions, core_ml.taken) == (1, 1)


def test_constants_are_no_nodes() -> None:
    proto = from_text("g (float[1, 4] x) => (float[1, 4] y) { c = Constant<value_float = 2.0>() y = Mul(x, c) }")
    assert cut(proto).nodes == 1


@pytest.mark.parametrize("name", operators.names())
def test_every_table_is_valid_and_says_where_it_is_from(name: str) -> None:
    found = operators.load(name)
    assert len(found.source) > 40
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    assert {key for key in found.operators if "." not in key} <= known


@pytest.mark.parametrize("name", targets.names())
def test_a_target_names_a_table_that_there_is(name: str) -> None:
    table = targets.load(name).operators
    assert table is None or table in operators.names()


def test_the_list_of_the_installed_onnxruntime_decides() -> None:
    assert "Sin" in operators.load("nnapi").operators
    assert "Erf" not in operators.load("nnapi").operators


def test_a_wrong_table_is_an_error_that_names_the_field(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("source: me\ntypes: [float32]\noperators: {Relu: {rank: 4}}\n")
    with pytest.raises(UsageError, match="rank"):
        operators.load(str(path))
    with pytest.raises(UsageError, match="unknown table"):
        operators.load("nnapy")


def test_a_provider_may_take_older_operators_only(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("source: me\nopset: 17\ntypes: [float32]\noperators: {Relu: }\n")
    target = Target(name="t", summary="", runtime="onnxruntime", provider="Some", operators=str(path))
    found = partitions.estimate(ir.from_proto(chain("Relu")), target)
    assert found is not None
    assert [left.why for left in found.sites] == ["the model's opset is 20, and the provider takes up to 17"]


def test_a_quantized_weight_is_constant_to_a_provider_that_dequantizes_it() -> None:
    model = ir.from_proto(
        from_text(
            "g (float[1, 3, 9, 9] x) => (float[1, 1, 9, 9] y) <int8[1, 3, 1, 1] q = {1, 2, 3}, float s = {0.5}> "
            "{ w = DequantizeLinear(q, s) y = Conv(x, w) }"
        )
    )
    cut = partitions.estimate(model, targets.load("nnapi"))
    assert cut is not None
    assert (cut.taken, cut.partitions) == (2, 1)
    cut = partitions.estimate(model, targets.load("coreml"))
    assert cut is not None
    assert [left.why for left in cut.sites] == ["the provider has no such operator"]


def test_an_initializer_that_a_caller_may_replace_is_no_constant() -> None:
    proto = from_text(
        "g (float[1, 3, 9, 9] x, float[4, 3, 3, 3] w) => (float[1, 4, 7, 7] y) { y = Conv(x, w) }",
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w"))
    assert why(proto) == {"its second input is an initializer that a caller may replace"}


def test_a_provider_that_runs_here_is_believed() -> None:
    proto = chain("Relu", "Erf", "Tanh")
    for index, node in enumerate(proto.graph.node):
        node.name = f"n{index}"
    target = Target(name="t", summary="", runtime="onnxruntime", provider="Some", operators="nnapi")
    found = partitions.from_provider(ir.from_proto(proto), target, Partition({"Some": 2, "CPU": 1}, [("n1", "Erf", "CPU")]))
    assert (found.judged_by, found.partitions, found.taken) == ("provider", 2, 2)
    assert [left.why for left in found.sites] == ["the provider has no such operator"]
    unknown = partitions.from_provider(ir.from_proto(proto), target, Partition({"Some": 2, "CPU": 1}, [("n2", "Tanh", "CPU")]))
    assert [left.why for left in unknown.sites] == ["the provider left it to CPU"]


def test_inspect_says_which_nodes_stay_behind_and_that_it_is_an_estimate(tmp_path: Path) -> None:
    source = write(chain("Relu", "Erf", "Tanh"), tmp_path / "m.onnx")
    text = graphopt("inspect", source, "--target", "nnapi", "--target", "cpu").stdout
    assert "nnapi: 2 partitions with 1 of 3 nodes left behind" in text
    assert "an estimate from a table" in text
    assert "the provider has no such operator" in text
    assert "cpu: 1 partition" in text
    rows = json.loads(graphopt("inspect", source, "--target", "nnapi", "--json").stdout)["targets"]
    assert rows[0]["judged_by"] == "table"
    assert rows[0]["partitions"] == 2
    assert rows[0]["left_behind"][0]["operator"] == "Erf"


def test_inspect_lists_every_target_in_short(tmp_path: Path) -> None:
    found = json.loads(graphopt("inspect", write(small_cnn(1), tmp_path / "m.onnx"), "--json").stdout)["targets"]
    assert [row["target"] for row in found] == targets.names()
    assert {row["target"]: row["partitions"] for row in found}["nnapi"] == 1


def test_inspect_of_an_unknown_target_is_a_usage_error(tmp_path: Path) -> None:
    failed = graphopt("inspect", write(small_cnn(1), tmp_path / "m.onnx"), "--target", "nnap")
    assert failed.returncode == 2
    assert "nnapi" in failed.stderr


def test_types_of_half_precision_are_named_as_in_targets() -> None:
    proto = from_text("g (float16[1, 4] x) => (float16[1, 4] y) { y = Relu(x) }")
    assert why(proto) == {"its type is float16"}
    assert cut(proto, "coreml").taken == 1
