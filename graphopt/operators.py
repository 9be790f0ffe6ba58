"""Tables of the operators that a provider takes, with its limits on each: ``operators/*.yaml``.

A table says what a provider's documentation says. Where the installed onnxruntime brings its own list of the provider's
operators, that list decides which there are, and the table only knows their limits.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import registry, shapes
from .errors import UsageError
from .graphs import constant, is_overridable, operator

NOT_FIXED = "its shapes are not fixed"
REPLACEABLE = "is an initializer that a caller may replace"
_FOLDER = Path(__file__).parent / "operators"
_LISTED = re.compile(r"^\|ai\.onnx[:.](\w+)\|", re.MULTILINE)


class Limits(BaseModel):
    """What a provider asks of a node of an operator that it takes. Inputs are counted from 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    types: tuple[str, ...] | None = Field(default=None, description="element types of the first input; None: the table's")
    ranks: tuple[int, ...] = Field(default=(), description="ranks of the first input; none: any")
    constant: tuple[int, ...] = Field(default=(), description="inputs that must be constant where they are given")
    constant_or_int32: tuple[int, ...] = Field(default=(), description="inputs that must be constant, or int32")
    nonnegative: int | None = Field(default=None, description="an input that may hold no negative number where it is constant")
    vector: int | None = Field(default=None, description="an input that may not be a scalar")
    attributes: dict[str, tuple[str | int, ...]] = Field(
        default={}, description="values that an attribute may have; none: absent"
    )
    outputs: int | None = Field(default=None, description="how many outputs may be used")
    last_axis: bool = Field(default=False, description="whether its axis must be the last")
    even: bool = Field(default=False, description="whether all its outputs must be of one size")
    after: tuple[str, ...] = Field(default=(), description="operators of which it must follow one, to be fused with it")
    note: str = Field(default="", description="a limit that is not checked, for people")


class Table(BaseModel):
    """A provider's operators, with its limits on each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(description="where the table is from, with the version")
    listed: str | None = Field(default=None, description="file of the onnxruntime package that lists the operators")
    opset: int | None = Field(default=None, description="highest opset of the default domain")
    static: bool = Field(default=False, description="whether all shapes must be fixed")
    bodies: bool = Field(True, description="whether nodes in bodies of If, Loop and Scan are taken when these are not")
    max_rank: int | None = None
    types: tuple[str, ...]
    note: str = ""
    operators: dict[str, Limits | None]
    """Those of other domains than ONNX's own with their domain before them."""


def names() -> list[str]:
    """Names of the tables that ship with graphopt, sorted."""
    return registry.defined(_FOLDER)


@cache
def load(name: str) -> Table:
    """The table called ``name``, or the one in the YAML file of that path, with the operators that onnxruntime lists.

    Raises:
        UsageError: No such table, or its file is not valid.
    """
    path, text = registry.definition("table of operators", name, _FOLDER)
    try:
        found = Table.model_validate(registry.from_yaml(text))
    except yaml.YAMLError as error:
        raise UsageError(f"not valid YAML: {error}", where=str(path)) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"not a table of operators: {'.'.join(map(str, first['loc']))}: {first['msg']}", where=name) from None
    listed = _listed(found.listed) if found.listed else None
    if listed is None:
        return found
    operators = {key: limits for key, limits in found.operators.items() if "." in key or key.lower() in listed}
    known = {key.lower() for key in operators}
    schemas = {schema.name.lower(): schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    operators |= {schemas[name]: None for name in listed if name not in known and name in schemas}
    return found.model_copy(update={"operators": operators})


def _listed(file: str) -> frozenset[str] | None:
    """The operators in a list of the installed onnxruntime, in lower case: the lists do not agree with ONNX on that."""
    spec = importlib.util.find_spec("onnxruntime")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / file
        if path.is_file():
            return frozenset(name.lower() for name in _LISTED.findall(path.read_text(encoding="utf-8")))
    return None


@dataclass(frozen=True)
class Judge:
    """Says why a provider does not take a node, by its table."""

    table: Table
    facts: shapes.Facts
    model: ir.Model

    def why_not(self, node: ir.Node) -> str | None:
        """None where it is taken."""
        key = operator(node)
        if node.op_identifier() in self.model.functions:
            return "it is a function of the model"
        if key not in self.table.operators:
            return "the provider has no such operator"
        limits = self.table.operators[key] or Limits()
        opset = self.model.opset_imports.get("", 0)
        if self.table.opset is not None and opset > self.table.opset and node.domain == "":
            return f"the model's opset is {opset}, and the provider takes up to {self.table.opset}"
        asked = (self._types, self._shapes, self._constants, self._attributes, self._structure)
        return next((why for ask in asked if (why := ask(node, limits)) is not None), None)

    def _types(self, node: ir.Node, limits: Limits) -> str | None:
        allowed = self.table.types if limits.types is None else limits.types
        value = next((value for value in node.inputs if value is not None), None)
        name = None if value is None else self._dtype(value)
        return None if name is None or name in allowed else f"its type is {name}"

    def _shapes(self, node: ir.Node, limits: Limits) -> str | None:
        if self.table.static:
            for value in node.inputs:
                shape = None if value is None else self._shape(value)
                if value is not None and (shape is None or not shape.is_static()):
                    return NOT_FIXED
        inputs = [value for value in node.inputs if value is not None]
        ranks = [len(shape) for value in (*inputs, *node.outputs) if (shape := self._shape(value)) is not None]
        if self.table.max_rank is not None and max(ranks, default=0) > self.table.max_rank:
            return f"a tensor has {max(ranks)} dimensions, and the provider takes up to {self.table.max_rank}"
        first = self._shape(inputs[0]) if inputs else None
        if limits.ranks and first is not None and len(first) not in limits.ranks:
            return f"its input has {len(first)} dimensions, not {_either(limits.ranks)}"
        if limits.vector is not None and _given(node, limits.vector) is not None:
            shape = self._shape(node.inputs[limits.vector])
            if shape is not None and len(shape) == 0:
                return f"its {_ordinal(limits.vector)} input is a scalar"
        return None

    def _constants(self, node: ir.Node, limits: Limits) -> str | None:
        for index in limits.constant:
            if (value := _given(node, index)) is not None and not self._is_fixed(value):
                return f"its {_ordinal(index)} input {REPLACEABLE if is_overridable(value) else 'is not constant'}"
        for index in limits.constant_or_int32:
            value = _given(node, index)
            if value is not None and not self._is_fixed(value) and self._dtype(value) != "int32":
                return f"its {_ordinal(index)} input is {self._dtype(value)} and not constant"
        if limits.nonnegative is not None:
            tensor = constant(_given(node, limits.nonnegative))
            if tensor is not None and tensor.size and np.min(tensor.numpy()) < 0:
                return f"its {_ordinal(limits.nonnegative)} input has negative numbers"
        return None

    def _is_fixed(self, value: ir.Value) -> bool:
        """Whether it is constant, or what a DequantizeLinear that is taken too makes of constants, as of a weight."""
        producer = value.producer()
        if producer is None or producer.op_type != "DequantizeLinear" or self.why_not(producer) is not None:
            return constant(value) is not None
        return all(each is None or constant(each) is not None for each in producer.inputs)

    def _attributes(self, node: ir.Node, limits: Limits) -> str | None:
        for name, allowed in limits.attributes.items():
            found = node.attributes.get(name)
            value = _default(node, name, self.model) if found is None or found.is_ref() else found.value
            value = value.decode() if isinstance(value, bytes) else value
            if (value is not None or allowed) and value not in allowed:
                return f"its {name} is {value}"
        return None

    def _structure(self, node: ir.Node, limits: Limits) -> str | None:
        used = [output for output in node.outputs if output.uses() or output.is_graph_output()]
        if limits.outputs is not None and len(used) > limits.outputs:
            return f"{len(used)} of its outputs are used"
        shape = self._shape(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
        if limits.last_axis and shape is not None:
            axis = node.attributes.get_int("axis", -1 if self.model.opset_imports.get("", 0) >= 13 else 1)
            if axis % max(len(shape), 1) != len(shape) - 1:
                return "its axis is not the last"
        if limits.even:
            parts = [self._shape(output) for output in node.outputs]
            if any(part is not None and part != parts[0] for part in parts):
                return "its outputs are not of one size"
        if limits.after:
            producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
            if producer is None or operator(producer) not in limits.after or self.why_not(producer) is not None:
                return f"it follows no {_either(limits.after)}"
        return None

    def _shape(self, value: ir.Value | None) -> ir.Shape | None:
        """What follows from the model's inputs; else what the file states, which a provider believes."""
        if value is None:
            return None
        tensor = constant(value)
        if tensor is not None:
            return ir.Shape(tensor.shape.numpy())
        known = self.facts.get(value)
        if known is not None and known.shape is not None and (known.shape.is_static() or value.shape is None):
            return known.shape
        return value.shape

    def _dtype(self, value: ir.Value) -> str | None:
        known = self.facts.get(value)
        dtype = known.type.dtype if known is not None and isinstance(known.type, ir.TensorType) else value.dtype
        return None if dtype is None else str(np.dtype(dtype.numpy()))


def _given(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _default(node: ir.Node, name: str, model: ir.Model) -> object:
    """An attribute's value where a node does not state it, by ONNX's own definition of the operator."""
    try:
        schema = onnx.defs.get_schema(node.op_type, model.opset_imports.get(node.domain, 1), node.domain)
        default = schema.attributes[name].default_value
    except (onnx.defs.SchemaError, KeyError):
        return None
    return onnx.helper.get_attribute_value(default) if default.name else None


def _either(values: Sequence[object]) -> str:
    return " or ".join(map(str, values))


def _ordinal(index: int) -> str:
    names = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
    return names[index] if index < len(names) else f"{index + 1}th"
