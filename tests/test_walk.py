"""The walks give what onnx-ir's own give, in the same order."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from graphopt import walk

from helpers import from_text

NESTED = """g (float[N] x, bool flag) => (float[N] y) {
    a = Neg(x)
    b = If(flag) <
        then_branch = t () => (float[N] d) {
            c = Exp(a)
            d = If(flag) <then_branch = u () => (float[N] e) { e = Abs(c) }, else_branch = v () => (float[N] f) { f = Cos(x) }>
        },
        else_branch = w () => (float[N] h) { h = Sin(a) }
    >
    y = Relu(b)
}"""


def test_nodes_and_graphs_are_those_of_all_subgraphs_outer_ones_first():
    model = ir.from_proto(from_text(NESTED))
    assert [*walk.nodes(model.graph)] == [*model.graph.all_nodes()]
    assert [*walk.graphs(model.graph)] == [model.graph, *model.graph.subgraphs()]
    assert [graph.name for graph in walk.graphs(model.graph)] == ["g", "t", "u", "v", "w"]


def test_a_node_may_be_removed_while_its_graph_is_walked():
    model = ir.from_proto(from_text("g (float[N] x) => (float[N] y) { a = Neg(x)  b = Exp(x)  y = Relu(x) }"))
    seen = []
    for node in walk.nodes(model.graph):
        seen.append(node.op_type)
        if node.op_type != "Relu":
            model.graph.remove(node, safe=True)
    assert seen == ["Neg", "Exp", "Relu"]
    assert [node.op_type for node in model.graph] == ["Relu"]


def test_the_operators_that_may_have_graphs_are_those_of_which_onnx_says_so():
    kinds = {onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS}
    schemas = [schema for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""]
    assert {s.name for s in schemas if any(a.type in kinds for a in s.attributes.values())} == walk.BRANCHING
