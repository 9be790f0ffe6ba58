"""Whole blocks: a branch that is added to another value of the same shape can be left out.

    y = x + f(x)   ->   y = x         Add, or Sum with more operands; f(x) and x of the same shape, whatever the sizes given

All that serves nothing but f goes with it, and of Relu(Relu(x)) one. What computes x, if nothing else needs it, may learn to
give x + f(x) itself (``refit``); in a network with Relu(x) + f, what is before that Relu learns to give x + f.

Gromov et al., "The unreasonable ineffectiveness of the deeper layers", 2024, leave out blocks of transformers; for residual
networks Veit et al., "Residual networks behave like ensembles of relatively shallow networks", 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir import convenience

from graphopt import sizes
from graphopt.graphs import constant, site
from graphopt.reconstruct import layers

_PRIMES = (37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83)
"""Sizes of symbolic dimensions with which shapes are compared: what is equal for these is not equal by chance."""


@dataclass(frozen=True, eq=False)
class Block:
    """The operand ``index`` of ``join`` is left out, and with it ``nodes``, which serve nothing else."""

    join: ir.Node
    index: int
    nodes: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """What the site is called."""
        return site(self.join)

    @property
    def all(self) -> tuple[ir.Node, ...]:
        """Every node that goes."""
        return (*self.nodes, self.join)

    @property
    def branch(self) -> ir.Value:
        """What the block adds."""
        value = self.join.inputs[self.index]
        assert value is not None
        return value


def blocks(model: ir.Model, macs: Mapping[ir.Node, int]) -> list[Block]:
    """The blocks of the main graph with a layer in them, in its order; where both operands could go, the dearer one."""
    symbols = {
        dim.value
        for value in model.graph.inputs
        for dim in value.shape or ()
        if isinstance(dim, ir.SymbolicDim) and dim.value is not None
    }
    known = sizes.infer(model, dict(zip(sorted(symbols), _PRIMES, strict=False)), believe=False)
    shapes = {value: one.shape.numpy() for value, one in known.items() if one.shape is not None and one.shape.is_static()}
    weighty = layers(model).keys()
    found = []
    for join in model.graph:
        if join.domain != "" or join.op_type not in {"Add", "Sum"} or join.outputs[0].is_graph_output():
            continue
        offered = [one for one in _operands(join, shapes) if not weighty.isdisjoint(one.nodes)]
        if offered:
            found.append(max(offered, key=lambda one: sum(macs.get(node, 0) for node in one.nodes)))
    return found


def _operands(join: ir.Node, shapes: Mapping[ir.Value, tuple[int, ...]]) -> Iterator[Block]:
    whole = shapes.get(join.outputs[0])
    if whole is None or len(join.inputs) < 2 or len({*join.inputs}) < len(join.inputs):
        return
    for index, value in enumerate(join.inputs):
        others = [other for place, other in enumerate(join.inputs) if place != index]
        fits = any(other is not None and constant(other) is None and shapes.get(other) == whole for other in others)
        if fits and value is not None and constant(value) is None:
            yield Block(join, index, _serving(join, value))


def _serving(join: ir.Node, branch: ir.Value) -> tuple[ir.Node, ...]:
    """The nodes that nothing needs when ``join`` no longer reads ``branch``."""
    gone: dict[ir.Node, None] = {}
    asked = [branch]
    while asked:
        value = asked.pop()
        node = value.producer()
        if node is None or node in gone or node.graph is not join.graph:
            continue
        readers = [use.node for output in node.outputs for use in output.uses() if (use.node, output) != (join, branch)]
        if any(reader not in gone for reader in readers) or any(output.is_graph_output() for output in node.outputs):
            continue  # it is asked again when the last of its readers goes
        gone[node] = None
        asked += [read for read in node.inputs if read is not None]
    return tuple(gone)


def leave_out(model: ir.Model, chosen: Sequence[Block]) -> dict[ir.Value, list[str]]:
    """Leave blocks out, in place; the values that stand for their sums, each with the branches that it may learn, by name."""
    found: dict[ir.Value, list[str]] = {}
    for block in chosen:
        if block.join.graph is None:
            continue  # it was part of another block
        name = block.branch.name or ""
        value, learns = _short(model, block) if len(block.join.inputs) == 2 else (_shorter(block), False)
        found.setdefault(value, []).extend([name] if learns else [])
        model.graph.remove([node for node in block.nodes if node.graph is not None], safe=True)
    for name, value in [*model.graph.initializers.items()]:
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del model.graph.initializers[name]
    return found


def _shorter(block: Block) -> ir.Value:
    """A Sum of the other operands."""
    left = [value for index, value in enumerate(block.join.inputs) if index != block.index]
    block.join.resize_inputs(len(left))
    for index, value in enumerate(left):
        block.join.replace_input_with(index, value)
    return block.join.outputs[0]


def _short(model: ir.Model, block: Block) -> tuple[ir.Value, bool]:
    """The other operand itself, or what is before its Relu where another one follows; and whether nothing else needs it."""
    total, left = block.join.outputs[0], block.join.inputs[1 - block.index]
    assert left is not None
    alone = {use.node for use in left.uses()} <= {block.join, *block.nodes} and not left.is_graph_output()
    convenience.replace_all_uses_with(total, left)
    model.graph.remove(block.join, safe=True)
    made = left.producer()
    if (
        alone
        and made is not None
        and _is_relu(made)
        and all(_is_relu(use.node) or use.node in block.nodes for use in left.uses())
    ):
        before = made.inputs[0]
        assert before is not None
        if len([*before.uses()]) == 1 and before.producer() is not None and not before.is_graph_output():
            convenience.replace_all_uses_with(left, before)
            model.graph.remove(made, safe=True)
            left = before
    return left, alone


def _is_relu(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type == "Relu"
