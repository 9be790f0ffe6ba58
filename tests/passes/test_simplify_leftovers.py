"""What torch's exporters leave in a file goes, and what a person wrote stays."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from graphopt import pipeline

from helpers import from_text, small_cnn, write
from simplifying import simplify

TRACE = 'File "/home/somebody/secret/net.py", line 12, in forward\n    return self.conv(x)'


def put(owner: object, **entries: str) -> None:
    for key, value in entries.items():
        owner.metadata_props.add(key=key.replace("__", "."), value=value)


def exported() -> onnx.ModelProto:
    """A model as torch's newer exporter writes it, in which a person wrote a few lines too."""
    model = small_cnn()
    put(model, author="me", pkg__torch__version="mine")
    put(model.graph, pkg__torch__export__ExportedProgram__graph_signature="# inputs", task="digits")
    for node in model.graph.node:
        put(node, namespace=": net/conv", pkg__torch__onnx__stack_trace=TRACE, pkg__onnxscript__rewriter="x", layer="stem")
    put(model.graph.input[0], pkg__torch__onnx__original_node_name="x", unit="grey levels")
    model.doc_string, model.graph.doc_string = "about the model", "about the graph"
    model.graph.node[0].doc_string, model.graph.input[0].doc_string = TRACE, "an image"
    model.graph.node[1].doc_string = "the first activation, see net.py"
    return model


def keys(owner: object) -> list[str]:
    return [entry.key for entry in owner.metadata_props]


def test_leftovers_go_and_what_a_person_wrote_stays() -> None:
    model = exported()
    result, _ = simplify(model)
    assert keys(result) == ["author", "pkg.torch.version"]
    assert keys(result.graph) == ["task"]
    assert {key for node in result.graph.node for key in keys(node)} == {"layer"}
    assert keys(result.graph.input[0]) == ["unit"]
    assert (result.doc_string, result.graph.doc_string) == ("about the model", "about the graph")
    assert (result.graph.node[0].doc_string, result.graph.input[0].doc_string) == ("", "an image")
    assert result.graph.node[1].doc_string == "the first activation, see net.py"
    assert b"secret" not in result.SerializeToString()


def test_they_are_counted_in_one_change() -> None:
    model = exported()
    _, changes = simplify(model)
    [change] = [change for change in changes if "metadata" in change.what]
    nodes = len(model.graph.node)
    size = nodes * sum(
        len(k) + len(v)
        for k, v in [("namespace", ": net/conv"), ("pkg.torch.onnx.stack_trace", TRACE), ("pkg.onnxscript.rewriter", "x")]
    )
    size += (
        len("pkg.torch.export.ExportedProgram.graph_signature# inputs") + len("pkg.torch.onnx.original_node_namex") + len(TRACE)
    )
    assert change.what == f"dropped {3 * nodes + 3} entries of metadata, {size:,} bytes"


def test_a_second_run_finds_nothing() -> None:
    result, _ = simplify(exported())
    _, changes = simplify(result)
    assert [change for change in changes if change.done] == []


def test_they_stay_if_that_is_asked() -> None:
    result, _ = simplify(exported(), leftovers=False)
    assert b"secret" in result.SerializeToString()


@pytest.mark.parametrize(
    ("text", "trace"),
    [
        (TRACE, True),
        ("/home/me/net.py(12): forward\n/usr/lib/module.py(1501): _call_impl\n", True),
        ("net.py:12\nnet.py:40: in forward", True),
        ("Attention is all you need", False),
        ("Ported from net.py\nsee the paper", False),
        ("Weights as in\n" + TRACE, False),
    ],
)
def test_a_doc_string_goes_only_if_it_is_a_stack_trace(text: str, trace: bool) -> None:
    model = small_cnn()
    model.graph.node[0].doc_string = text
    result, _ = simplify(model)
    assert result.graph.node[0].doc_string == ("" if trace else text)


def test_namespace_is_somebody_elses_key_where_no_exporter_wrote_beside_it() -> None:
    model = small_cnn()
    put(model.graph.node[0], namespace="encoder")
    result, _ = simplify(model)
    assert keys(result.graph.node[0]) == ["namespace"]


def test_subgraphs_and_functions_are_cleaned_too() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["" : 20, "own" : 1]> g (float[N] x, bool c) => (float[N] y) {
        y = If (c) <then_branch = t () => (float[N] a) { a = own.f (x) }, else_branch = e () => (float[N] b) { b = Neg(x) }>
    }
    <domain: "own", opset_import: ["" : 20]> f (x) => (y) { y = Relu(x) }""")
    put(model.functions[0], pkg__torch__note="secret")
    put(model.functions[0].node[0], pkg__torch__note="secret")
    put(model.graph.node[0].attribute[1].g.node[0], pkg__torch__note="secret")
    result, _ = simplify(model)
    assert b"secret" not in result.SerializeToString()


def test_the_file_gets_smaller_and_the_input_is_not_touched(tmp_path: Path) -> None:
    source = write(exported(), tmp_path / "m.onnx")
    before = source.read_bytes()
    report = pipeline.optimize(source, tmp_path / "o.onnx", timing=False)
    assert report.passes[0].kept
    assert report.output is not None
    assert report.output.bytes < report.input.bytes
    assert source.read_bytes() == before
