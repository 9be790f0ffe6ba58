"""Into how many parts a provider cuts a model, which nodes stay behind, and why: what it costs to hand data back and forth.

A provider takes some nodes and leaves the others to the CPU. Nodes that it takes and that can run in one go are one partition:

    stage(n) = max over what n reads of  stage(p) + [the provider takes p, but not n],    0 where it reads nothing computed
    partitions = the number of different stages of the nodes that it takes

Two taken nodes of one stage never depend on each other through one that is left behind, so one subgraph can hold them all; of
two stages, one waits for the other by way of the CPU. That is how onnxruntime's compiling providers group nodes. Bodies of
If, Loop and Scan are cut by themselves, or go with their node where the provider takes it and all that is in them.

What is taken is said by the provider itself where it runs here (``from_provider``), else estimated from a table of its
operators (``estimate``): ``operators/*.yaml``, from each provider's documentation. Where the installed onnxruntime brings its
own list of a provider's operators, that list decides which there are, and the table only knows their limits.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import onnx_ir as ir
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import registry, shapes, sizes, walk
from .errors import UsageError
from .graphs import constant, is_overridable, site

if TYPE_CHECKING:
    from .contracts import Partition
    from .targets import Target

NOT_FIXED = "its shapes are not fixed"
REPLACEABLE = "is an initializer that a caller may replace"
_FOLDER = Path(__file__).parent / "operators"
_LISTED = re.compile(r"^\|ai\.onnx[:.](\w+)\|", re.MULTILINE)
_CONTRIB = "com.microsoft"


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


@dataclass(frozen=True)
class Left:
    """A node that stays behind."""

    site: str
    operator: str
    why: str


@dataclass(frozen=True)
class Cut:
    """How a provider cuts a model."""

    target: str
    judged_by: Literal["provider", "table"]
    source: str
    """The provider, or where the table is from."""
    nodes: int
    """Nodes in all, those of bodies included; constants are none."""
    taken: int
    partitions: int
    left: Mapping[ir.Node, str]
    """Nodes that stay behind, and why."""
    notes: tuple[str, ...] = ()
    """Limits of operators in the model that were not checked."""

    @property
    def told(self) -> str:
        """In a few words."""
        parts = "1 partition" if self.partitions == 1 else f"{self.partitions} partitions"
        return f"{parts} with {len(self.left)} of {self.nodes} nodes left behind"

    @property
    def sites(self) -> list[Left]:
        """The nodes that stay behind, for people."""
        return [Left(site(node), _key(node), why) for node, why in self.left.items()]

    @property
    def reasons(self) -> list[tuple[str, str, int]]:
        """Operator, reason and number of the nodes that stay behind, the most frequent first."""
        counted = Counter((_key(node), why) for node, why in self.left.items())
        return [(operator, why, number) for (operator, why), number in counted.most_common()]


def tables() -> list[str]:
    """Names of the tables that ship with graphopt, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


@cache
def table(name: str) -> Table:
    """The table called ``name``, or the one in the YAML file of that path, with the operators that onnxruntime lists.

    Raises:
        UsageError: No such table, or its file is not valid.
    """
    path = _FOLDER / f"{name}.yaml"
    path = path if path.is_file() else Path(name)
    if not path.is_file():
        raise registry.unknown_name("table of operators", name, tables())
    try:
        found = Table.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
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


def estimate(model: ir.Model, target: Target, dims: Mapping[str, int] | None = None) -> Cut | None:
    """How the target's provider would cut the model, by the table of its operators; None where there is no table.

    Args:
        model: Any model, sorted.
        target: The target.
        dims: Sizes of symbolic dimensions, as if they were fixed; a first dimension that is not among them gets size 1 then.

    Raises:
        UsageError: The target names a table that there is not.
    """
    if target.operators is None:
        return None
    found = table(target.operators)
    facts = sizes.infer(model, dims) if dims else shapes.infer(model)
    judge = _Judge(found, facts, model)
    left: dict[ir.Node, str] = {}
    partitions = _cut(model.graph, judge.why_not, left, bodies=found.bodies)
    present = {_key(node) for node in walk.nodes(model.graph)}
    noted = [
        (key, limits.note) for key, limits in found.operators.items() if limits is not None and limits.note and key in present
    ]
    nodes = sum(1 for node in walk.nodes(model.graph) if not _is_constant(node))
    return Cut(
        target=target.name,
        judged_by="table",
        source=found.source,
        nodes=nodes,
        taken=nodes - len(left),
        partitions=partitions,
        left=left,
        notes=(*([found.note] if found.note else []), *(f"{key}: {note}" for key, note in noted)),
    )


def from_provider(model: ir.Model, target: Target, assigned: Partition) -> Cut:
    """How the provider, which runs here, cuts the model.

    It names the nodes that it left; why, it does not say: where there is a table, that is asked. A node of the model that the
    runtime has replaced before it asked the provider counts as taken.

    Args:
        model: The model.
        target: The target.
        assigned: What the runtime said when it loaded the model.
    """
    behind = {name: provider for name, _, provider in assigned.left_behind}
    guess = estimate(model, target)

    def why_not(node: ir.Node) -> str | None:
        if (provider := behind.get(node.name or "")) is None:
            return None
        return (guess and guess.left.get(node)) or f"the provider left it to {provider}"

    left: dict[ir.Node, str] = {}
    partitions = _cut(model.graph, why_not, left, bodies=True) if assigned.parts is None else assigned.parts
    nodes = sum(assigned.nodes.values())
    return Cut(
        target=target.name,
        judged_by="provider",
        source=target.provider,
        nodes=nodes,
        taken=assigned.nodes.get(target.provider, 0),
        partitions=partitions if assigned.nodes.get(target.provider) else 0,
        left=left,
    )


def change(before: Cut | None, after: Cut | None) -> list[str]:
    """A sentence on what became of the partitions; none where they are not known."""
    if before is None or after is None:
        return []
    who = "its provider" if after.judged_by == "provider" else "a table of its operators"
    return [f"On {after.target}: {before.told} became {after.told}, by {who}."]


def _cut(graph: ir.Graph, why_not: Callable[[ir.Node], str | None], left: dict[ir.Node, str], *, bodies: bool) -> int:
    """Fill in what stays behind, and count the partitions; the nodes of a graph come in order of execution."""
    stages: dict[ir.Node, int] = {}
    partitions = 0
    for node in graph:
        if _is_constant(node):
            continue
        why = why_not(node)
        if why is not None:
            left[node] = why
        stages[node] = max((stages[p] + (p not in left and why is not None) for p in _reads(node) if p in stages), default=0)
        for body in walk.subgraphs(node):
            behind: dict[ir.Node, str] = {}
            if why is None or bodies:
                parts = _cut(body, why_not, behind, bodies=bodies)
                partitions += parts if why is not None or behind else 0
            else:
                inner = (each for each in walk.nodes(body) if not _is_constant(each))
                behind = {each: f"it is in a body of the {node.op_type} {site(node)!r}" for each in inner}
            left.update(behind)
    return partitions + len({stage for node, stage in stages.items() if node not in left})


def _reads(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes that give what a node reads, what its bodies capture included."""
    inner = (each for body in walk.subgraphs(node) for each in walk.nodes(body))
    for each in (node, *inner):
        for value in each.inputs:
            producer = None if value is None else value.producer()
            if producer is not None:
                yield producer


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and node.domain == ""


def _key(node: ir.Node) -> str:
    return node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}"


# ----------------------------------------------------------------------------------------------------------- the table's word


@dataclass(frozen=True)
class _Judge:
    """Says why a provider does not take a node, by its table."""

    table: Table
    facts: shapes.Facts
    model: ir.Model

    def why_not(self, node: ir.Node) -> str | None:
        """None where it is taken."""
        key = _key(node)
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
            if producer is None or _key(producer) not in limits.after or self.why_not(producer) is not None:
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
