"""Remove nodes that hand on their input as it is.

    y = f(x) with y = x   ->   every use of y becomes a use of x

``f`` is one of

    Identity
    Cast, CastLike          to the type that x has (known by inference, not by what the file states)
    Dropout                 in inference mode, its mask not used; from opset 7 on that is the default
    Transpose               by (0, 1, 2, ...)
    Pad                     by nothing
    Reshape, Flatten, Expand, Tile   to the dimensions that x has, all of them fixed
    Concat, Sum, Mean, Max, Min      of one input

Where y is an output of a graph, x takes over y's name, type and place: only if x is made by a node of the same graph and is
no output itself. Otherwise (x an input, an initializer, a value of an outer graph, or an output) the node is needed and stays.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant, site

from .graph import Root, Work, can_replace, remove, replace

_FIRST_INFERENCE_DROPOUT = 7


def remove_identities(work: Work) -> list[Change]:
    """Remove every node that changes nothing."""
    changes = []
    for root in work.roots:
        for node in work.operators(root, _RULES):
            if not node.inputs or node.inputs[0] is None:
                continue
            why = _RULES[node.op_type](work, root, node)
            if why is None or not can_replace(node.outputs[0], node.inputs[0]):
                continue
            changes.append(Change(site(node), f"removed {node.op_type}", why))
            replace(node.outputs[0], node.inputs[0])
            remove([node])
    return changes


def _identity(_work: Work, _root: Root, _node: ir.Node) -> str | None:
    return "it hands on its input"


def _cast(work: Work, _root: Root, node: ir.Node) -> str | None:
    to, has = node.attributes.get("to"), work.dtype(node.inputs[0])
    if to is None or to.is_ref() or to.type != ir.AttributeType.INT or has is None or to.as_int() != has.value:
        return None
    return f"its input is {has.name.lower()} already"


def _cast_like(work: Work, _root: Root, node: ir.Node) -> str | None:
    has = work.dtype(node.inputs[0])
    return None if has is None or has != work.dtype(node.inputs[1]) else f"its input is {has.name.lower()} already"


def _dropout(_work: Work, root: Root, node: ir.Node) -> str | None:
    if root.opset < _FIRST_INFERENCE_DROPOUT or any(mask.is_graph_output() or mask.uses() for mask in node.outputs[1:]):
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        training = constant(node.inputs[2])
        if training is None or training.numpy().any():
            return None
    return "it drops nothing in inference"


def _transpose(_work: Work, _root: Root, node: ir.Node) -> str | None:
    perm = node.attributes.get("perm")
    if perm is None or perm.is_ref() or list(perm.as_ints()) != [*range(len(perm.as_ints()))]:
        return None
    return "it keeps the order of the axes"


def _pad(_work: Work, _root: Root, node: ir.Node) -> str | None:
    attribute = node.attributes.get("pads")
    if attribute is not None:
        return None if attribute.is_ref() or any(attribute.as_ints()) else "it pads by nothing"
    pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if pads is None or pads.numpy().any() else "it pads by nothing"


def _reshape(work: Work, _root: Root, node: ir.Node) -> str | None:
    dims = work.dims(node.inputs[0])
    return None if dims is None or dims != work.dims(node.outputs[0]) else "its output has the shape of its input"


def _of_one(_work: Work, _root: Root, node: ir.Node) -> str | None:
    return "it has one input" if len(node.inputs) == 1 else None


_RULES: dict[str, Callable[[Work, Root, ir.Node], str | None]] = {
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _of_one,
    "Dropout": _dropout,
    "Expand": _reshape,
    "Flatten": _reshape,
    "Identity": _identity,
    "Max": _of_one,
    "Mean": _of_one,
    "Min": _of_one,
    "Pad": _pad,
    "Reshape": _reshape,
    "Sum": _of_one,
    "Tile": _reshape,
    "Transpose": _transpose,
}
"""Each tells why a node's first output equals its first input; None if that is not known."""
