"""Two models compared piece by piece, between what makes a jump of a rounding: quantizers, Round, ArgMax, comparisons.

    f(x) = p2(q(p1(x)))        p1, p2 continuous, q a jump        f'(x) = p2'(q(p1'(x)))

The original runs, and what its jumps were given and what they decided is kept. In the other model each jump of the same name is
taken out: what it was given is an output, and behind it the original's decision is fed. Then nothing is blown up, and

    p1'(x) = p1(x)    and    p2'(q(p1(x))) = f(x)    but for rounding

hold for an exact rewrite and for no other, however far f itself moves by rounding alone (``noise.py``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from . import evaluate, model
from .contracts import Session, TensorSpec
from .dataset import Dataset
from .errors import GraphoptError

_QUANTIZERS = {"QuantizeLinear", "DynamicQuantizeLinear"}
_COMPARISONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_JUMPS = _QUANTIZERS | _COMPARISONS | {"ArgMax", "ArgMin", "Ceil", "Floor", "Round", "Sign", "TopK"}


@dataclass(frozen=True)
class Pieces:
    """What comparing piece by piece showed."""

    jumps: int
    """How many jumps were taken out."""
    problems: list[str]
    """What differs by more than rounding; empty when nothing does."""

    def __str__(self) -> str:
        """What was found, in words."""
        found = "; ".join(self.problems) or "all values agree"
        return f"given the original's decisions at {self.jumps} quantizers and other jumps, {found}"


def compare(original: Path, candidate: Path, open_: Callable[[Path], Session], data: Dataset) -> Pieces | None:
    """Compare two models piece by piece.

    Args:
        original: A model.
        candidate: What was made of it.
        open_: Opens a model.
        data: What to run both on.

    Returns:
        None where it cannot be done: the candidate has no jumps, or one that the original does not have.
    """
    first, second = model.load(original), model.load(candidate)
    kept, taken = _jumps(first), _jumps(second)
    if not taken or not all(name in kept and _alike(kept[name], jump) for name, jump in taken.items()):
        return None
    decisions = {output.name or "" for jump in taken.values() for output in jump.outputs if output.name}
    for name in taken:
        _show(first, kept[name], name)
        first.graph.outputs.extend(output for output in kept[name].outputs if output.name and not output.is_graph_output())
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        try:
            with open_(_saved(first, folder, "first")) as before:
                types = {spec.name: spec for spec in before.outputs}
                for name, jump in taken.items():
                    _show(second, jump, name)
                    _take_out(second, jump, types)
                with open_(_saved(second, folder, "second")) as after:
                    return Pieces(len(taken), _problems(before, after, decisions, data))
        except GraphoptError:  # one of them cannot be run in pieces
            return None


def _problems(before: Session, after: Session, decisions: set[str], data: Dataset) -> list[str]:
    differences, samples = evaluate.Differences(), 0
    for batch in data.batches():
        values = before.run(batch.feed)
        found = after.run({**batch.feed, **{name: values.pop(name) for name in decisions}})
        differences.update(values, found)
        samples += batch.samples
    return evaluate.problems(evaluate.Evaluation(samples, differences.result(), None, differences.mismatches), after.outputs)


def _jumps(loaded: ir.Model) -> dict[str, ir.Node]:
    """The jumps of the main graph, by the name of the first output that they have."""
    jumps = (node for node in loaded.graph if node.domain == "" and _is_jump(node))
    return {next(output.name for output in node.outputs if output.name): node for node in jumps}


def _is_jump(node: ir.Node) -> bool:
    given = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
    if given is not None and not given.is_floating_point():
        return False
    to = node.attributes.get_int("to") if node.op_type == "Cast" else None
    return node.op_type in _JUMPS or (to is not None and not ir.DataType(to).is_floating_point())


def _alike(a: ir.Node, b: ir.Node) -> bool:
    """Whether two jumps decide alike, given the same."""
    settings = [{attribute.name: attribute.value for attribute in node.attributes.values()} for node in (a, b)]
    there = [[value is not None and bool(value.name) for value in (*node.inputs, *node.outputs)] for node in (a, b)]
    return a.op_type == b.op_type and settings[0] == settings[1] and there[0] == there[1]


def _show(loaded: ir.Model, jump: ir.Node, name: str) -> None:
    """Make outputs of what a jump is given."""
    for index, value in enumerate(jump.inputs):
        if value is not None:
            shown = ir.node("Identity", [value])
            shown.outputs[0].name = f"{name}, input {index}"
            loaded.graph.append(shown)
            loaded.graph.outputs.append(shown.outputs[0])


def _take_out(loaded: ir.Model, jump: ir.Node, types: Mapping[str, TensorSpec]) -> None:
    """Make inputs of what a jump decides."""
    for output in jump.outputs:
        if output.name:
            fed = ir.Value(name=output.name, type=ir.TensorType(ir.DataType.from_numpy(types[output.name].dtype)))
            output.replace_all_uses_with(fed, replace_graph_outputs=True)
            loaded.graph.inputs.append(fed)
    loaded.graph.remove(jump, safe=True)
    kept = [value for value in loaded.graph.outputs if not value.is_graph_input()]
    loaded.graph.outputs[:] = kept


def _saved(loaded: ir.Model, folder: str, name: str) -> Path:
    return model.save(loaded, Path(folder) / f"{name}.onnx", durable=False).path
