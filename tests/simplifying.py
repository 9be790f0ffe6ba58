"""Run the pass ``simplify`` by itself, and check what must hold for every model that goes through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from graphopt import targets
from graphopt.contracts import Change, Context, Silent
from graphopt.model import count_nodes
from graphopt.passes.simplify import Simplify, SimplifyOptions

from helpers import assert_same_outputs


def context(growth_bytes: int | None = None, exclude: Sequence[str] = ()) -> Context:
    def no_session(_model: ir.Model) -> None:
        raise AssertionError("simplify opens no session")

    return Context(
        target=targets.load("cpu"),
        open_session=no_session,
        data=None,
        rng=np.random.default_rng(0),
        progress=Silent(),
        exclude=exclude,
        growth_bytes=growth_bytes,
    )


def simplify(
    proto: onnx.ModelProto, *, growth_bytes: int | None = None, exclude: Sequence[str] = (), **options: object
) -> tuple[onnx.ModelProto, list[Change]]:
    """The simplified model and the changes. ``proto`` stays as it is."""
    before = proto.SerializeToString()
    model = ir.from_proto(onnx.ModelProto.FromString(before))
    changes = Simplify(SimplifyOptions(**options)).apply(model, context(growth_bytes, exclude))
    return ir.to_proto(model), [*changes]


def simplified(proto: onnx.ModelProto, *feeds: Mapping[str, np.ndarray], **kwargs: object) -> onnx.ModelProto:
    """Simplify, and assert what holds for every model; ``feeds`` must give the same outputs."""
    onnx.checker.check_model(proto, full_check=True)
    result, _ = simplify(proto, **kwargs)
    onnx.checker.check_model(result, full_check=True)
    assert [*result.graph.input] == [*proto.graph.input]
    assert [*result.graph.output] == [*proto.graph.output]
    assert count_nodes(ir.from_proto(result)) <= count_nodes(ir.from_proto(proto))
    again, changes = simplify(result, **kwargs)
    assert [change for change in changes if change.done] == []
    assert again == result
    for feed in feeds:
        assert_same_outputs(proto, result, feed)
    return result


def operators(proto: onnx.ModelProto) -> list[str]:
    """The operators of the main graph, Constant left out, in order."""
    return [node.op_type for node in proto.graph.node if node.op_type != "Constant"]
