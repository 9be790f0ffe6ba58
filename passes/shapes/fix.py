"""``shapes.fix``: dynamic dimensions of the inputs get a size, and everything that follows from it.

    x: float[batch, 3, height, width]     batch = 1, height = width = 224     ->     x: float[1, 3, 224, 224]

A symbol means the same wherever the graph states it, and an expression such as ``past + 1`` gets its value as soon as all of
its symbols have one. Dimensions of outputs that shape inference then knows are fixed too. No node is changed: what the sizes
make constant is for ``simplify`` to find.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, TypeGuard

import onnx_ir as ir
from pydantic import ConfigDict, Field

from graphopt import shapes, sizes
from graphopt.contracts import Change, Context, Pass, PassOptions
from graphopt.dataset.preflight import symbol
from graphopt.errors import UsageError
from graphopt.model import input_specs
from graphopt.model.weights import graphs
from graphopt.registry import unknown_name


class FixOptions(PassOptions):
    """The size of the dynamic dimension NAME: one of the model's own symbols, or INPUT:AXIS where it has none (axes from 0)."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Annotated[int, Field(strict=True, ge=1)]] = Field(init=False)


class FixShapes(Pass):
    """Gives dynamic dimensions the sizes that the options state.

    Raises (in ``apply``):
        UsageError: A name is no dynamic dimension of an input, is fixed already, or is given two sizes.
    """

    name = "shapes.fix"
    summary = "give dynamic dimensions of the inputs a size: shapes.fix.batch=1, or shapes.fix.INPUT:AXIS=1"
    Options = FixOptions
    options: FixOptions
    changes_signature = True
    added_by_set = True

    def apply(self, model: ir.Model, context: Context) -> Sequence[Change]:
        """Fix the dimensions; one change for each."""
        del context
        given = self.options.model_extra or {}
        if not given:
            return [Change(self.name, "nothing", "no sizes were given, such as --set shapes.fix.batch=1", done=False)]
        by_symbol, places = _chosen(model, given)
        for value, axis, size in places:
            assert value.shape is not None
            value.shape = ir.Shape([size if index == axis else dim for index, dim in enumerate(value.shape)])
        for value in _values(model):
            if value.shape is not None and not value.shape.is_static():
                value.shape = ir.Shape([_evaluated(dim, by_symbol) for dim in value.shape])
        _fix_outputs(model)
        return [Change(name, f"fixed at {size}", "as the options ask") for name, size in given.items()]


def _chosen(model: ir.Model, given: Mapping[str, int]) -> tuple[dict[str, int], list[tuple[ir.Value, int, int]]]:
    """Sizes by symbol; and value, axis and size of each dimension that is named by its place and has no symbol."""
    fed = {spec.name for spec in input_specs(model)}
    dims = {
        f"{v.name}:{axis}": (v, axis, dim)
        for v in model.graph.inputs
        if v.name in fed
        for axis, dim in enumerate(v.shape or ())
    }
    symbols = {name for _, _, dim in dims.values() if (name := _symbol(dim)) is not None}
    symbols |= {free for name in symbols for free in _free(name)}
    by_symbol: dict[str, int] = {}
    places: list[tuple[ir.Value, int, int]] = []
    for name, size in given.items():
        value, axis, dim = dims.get(name, (None, 0, None))
        if name not in symbols and value is None:
            dynamic = {_symbol(dim) or place for place, (_, _, dim) in dims.items() if not _is_fixed(dim)}
            raise unknown_name("dynamic dimension", name, dynamic | symbols)
        if _is_fixed(dim):
            if dim != size:
                raise UsageError(f"this dimension is {dim} already", where=f"shapes.fix.{name}={size}")
            continue
        key = name if name in symbols else _symbol(dim)
        if key is None and value is not None:
            places.append((value, axis, size))
        elif key is not None and by_symbol.setdefault(key, size) != size:
            raise UsageError(f"the dimension {key!r} is given two sizes", where=f"shapes.fix.{name}={size}")
    return by_symbol, places


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Every value with a shape that the graphs of the model state, each at least once; functions have symbols of their own."""
    bodies = {id(graph) for function in model.functions.values() for graph in (function.graph, *function.subgraphs())}
    for graph in graphs(model):
        if id(graph) not in bodies:
            yield from (*shapes.defined(graph), *graph.outputs)


def _fix_outputs(model: ir.Model) -> None:
    """Give the model's outputs the dimensions that follow from its inputs."""
    for output, shape in zip(model.graph.outputs, _output_shapes(model), strict=True):
        if output.shape is None or shape is None or len(shape) != len(output.shape):
            continue
        pairs = zip(output.shape, shape, strict=True)
        output.shape = ir.Shape([new if isinstance(new, int) and not _is_fixed(old) else old for old, new in pairs])


def _output_shapes(model: ir.Model) -> list[ir.Shape | None]:
    """The shapes of the outputs, as far as they follow from those of the inputs and from constants alone.

    When nothing is dynamic any more, shapes that the graph computes can be computed here too (``sizes``), if what it computes
    them from is no initializer that a caller may replace. What the file states of values in between is not believed.
    """
    settled = all(v.shape is not None and v.shape.is_static() and not v.is_initializer() for v in model.graph.inputs)
    known = sizes.infer(model, believe=False) if settled else shapes.infer(model)
    return [known[output].shape if output in known else None for output in model.graph.outputs]


def _is_fixed(dim: int | ir.SymbolicDim | None) -> TypeGuard[int]:
    return isinstance(dim, int) and dim >= 0


def _symbol(dim: int | ir.SymbolicDim | None) -> str | None:
    return symbol(dim.value) if isinstance(dim, ir.SymbolicDim) else None


def _free(text: str) -> frozenset[str]:
    """The symbols of an expression; none where the text is a name that is no expression, such as ``batch size``."""
    try:
        return frozenset(ir.SymbolicDim(text).free_symbols())
    except ValueError:
        return frozenset()


def _evaluated(dim: int | ir.SymbolicDim, by_symbol: Mapping[str, int]) -> int | ir.SymbolicDim:
    text = _symbol(dim)
    if text is None:
        return dim
    if text in by_symbol:
        return by_symbol[text]
    if not (free := _free(text)) or not free <= by_symbol.keys():
        return dim
    size = ir.SymbolicDim(text).evaluate(by_symbol)
    return size if isinstance(size, int) and size >= 0 else dim
