"""``shapes.opset``: bring the operators of ONNX's own domain to a newer version, by rules, and never to an older one.

An operator's definition changes at a few versions only. Between the model's version and the wanted one, each change that
concerns a node of the model is one of

    wider      the new definition takes all that the old one took, with the same meaning (``is_wider``): nothing to do
    a rule     ``upgrades.RULES`` says how a node of the old version is written in the new one
    neither    the upgrade is refused, naming the operator, the versions and the node

All is decided before anything is touched, except what a rule finds out about its node. It works on the graph itself: weights
are not read, and subgraphs, functions and external data are as good as anything else (onnx's own converter takes
none of them). A function is brought from its own version to the model's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

import onnx
import onnx_ir as ir
from onnx import defs
from pydantic import Field

from graphopt import shapes
from graphopt.contracts import Change, Context, Pass, PassOptions
from graphopt.errors import ModelError, UsageError
from graphopt.graphs import INITIALIZERS_NEED_NO_INPUT, site

from .upgrades import RULES, Refused, Site

OLDEST = 7
"""Upgrades begin here: older models mean other things by broadcasting, and runtimes no longer take them."""

Step = tuple[str, int, int]
"""An operator, its old version and its new version."""


class OpsetOptions(PassOptions):
    """The version to upgrade to."""

    version: int = Field(20, ge=OLDEST, description="version of ONNX's own operators that the model gets; never a lower one")
    at_least: bool = Field(False, description="whether a model that is newer already is left as it is")


class UpgradeOpset(Pass):
    """Upgrades the operators' version; see the module.

    Raises (in ``apply``):
        UsageError: The version is lower than the model's, or higher than the target or the installed onnx takes.
        ModelError: There is no rule for a node of the model.
    """

    name = "shapes.opset"
    summary = "bring the operators to a newer version: shapes.opset.version=20"
    Options = OpsetOptions
    options: OpsetOptions
    added_by_set = True

    def apply(self, model: ir.Model, context: Context) -> Sequence[Change]:
        """Upgrade the main graph and the functions; one change for each kind of operator that was rewritten."""
        version, option = self.options.version, f"shapes.opset.version={self.options.version}"
        newest = min(defs.onnx_opset_version(), context.target.max_opset or defs.onnx_opset_version())
        if version > newest:
            who = f"target {context.target.name!r}" if newest == context.target.max_opset else "installed onnx"
            raise UsageError(f"the {who} takes at most opset {newest}", where=option)
        if self.options.at_least and model.opset_imports.get("", version) > version:
            opset = model.opset_imports[""]
            return [Change("opset", "nothing", f"the model is at opset {opset}, which is newer than {version}", done=False)]
        roots = [(model.graph, model.opset_imports), *((f.graph, f.opset_imports) for f in model.functions.values())]
        _check_versions([imports for _, imports in roots], version, option)
        if all(imports.get("", version) == version for _, imports in roots):
            return [Change("opset", "nothing", f"the model is at opset {version} already", done=False)]
        old = model.opset_imports.get("", version)
        work = [(graph, _steps(model, graph, imports.get("", version), version)) for graph, imports in roots]
        changes = [Change("opset", f"{old} became {version}", "as the options ask"), *_raise_ir_version(model, version)]
        known = shapes.infer(model)
        rewritten: Counter[Step] = Counter()
        for graph, nodes in work:
            names = {value.name for inner in (graph, *graph.subgraphs()) for value in shapes.defined(inner) if value.name}
            for node, steps in nodes:
                rewritten.update(_upgrade(node, steps, known, names))
        for _, imports in roots:
            if "" in imports:
                imports[""] = version
        return changes + [
            Change(name, f"{count} nodes rewritten, version {a} to {b}", "the operator's definition changed")
            for (name, a, b), count in rewritten.items()
        ]


def _check_versions(versions: Sequence[Mapping[str, int]], wanted: int, option: str) -> None:
    """Raise UsageError where a version is higher than what is wanted, and ModelError where it is too old for any rule."""
    for imports in versions:
        if imports.get("", wanted) > wanted:
            hint = "Models are only upgraded: choose a version that is not lower."
            raise UsageError(f"the model is at opset {imports['']} already", where=option, hint=hint)
        if imports.get("", wanted) < OLDEST:
            raise ModelError(f"upgrades begin at opset {OLDEST}, and the model is at {imports['']}")


def _steps(model: ir.Model, graph: ir.Graph, old: int, new: int) -> list[tuple[ir.Node, list[Step]]]:
    """The nodes of a graph and its subgraphs that a change of definition concerns, each with its rules in order.

    Raises:
        ModelError: A change has no rule.
    """
    found = []
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.domain != "" or node.op_identifier() in model.functions:
            continue
        op_type, steps = node.op_type, []
        for version in range(old + 1, new + 1):
            step = (op_type, _since(op_type, version - 1), version)
            if step[1] is None or version not in _history(op_type):
                continue
            if (rule := RULES.get((op_type, version))) is not None:
                steps.append((op_type, step[1], version))
                op_type = rule.becomes or op_type
            elif not is_wider(op_type, step[1], version):
                hint = f"This node can be brought to opset {version - 1}." if version - 1 > old else None
                what = f"there is no rule that brings {op_type} from version {step[1]} to {version}"
                raise ModelError(what, where=f"node {site(node)!r}", hint=hint)
        if steps:
            found.append((node, steps))
    return found


def _upgrade(node: ir.Node, steps: Sequence[Step], known: shapes.Facts, names: set[str]) -> list[Step]:
    """Rewrite a node step by step; the steps that changed it.

    Raises:
        ModelError: A rule refused.
    """
    done, name = [], site(node)
    for step in steps:
        op_type, old, new = step
        try:
            if RULES[op_type, new].rewrite(Site(node, known, names)):
                done.append(step)
        except Refused as why:
            what = f"{op_type} cannot be brought from version {old} to {new}: {why}"
            raise ModelError(what, where=f"node {name!r}") from None
    return done


def _raise_ir_version(model: ir.Model, opset: int) -> list[Change]:
    """Give the model the lowest IR version that belongs to its opsets, if its own is lower.

    Up to version 3 every initializer had to be listed as an input and was a constant all the same; it stays one.
    """
    imports = {**model.opset_imports, "": opset}
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in imports.items()]
    lowest = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    old = model.ir_version or 0
    if old >= lowest:
        return []
    changes = [Change("ir_version", f"{old} became {lowest}", "the opset needs it")]
    listed = [value for value in model.graph.inputs if value.is_initializer()]
    if old < INITIALIZERS_NEED_NO_INPUT and listed:
        for value in listed:
            model.graph.inputs.remove(value)
        why = f"they are constants, and IR version {INITIALIZERS_NEED_NO_INPUT} would let a caller replace them"
        changes.append(Change("inputs", f"{len(listed)} initializers are no longer listed as inputs", why))
    model.ir_version = lowest
    return changes


@cache
def _history(op_type: str) -> Mapping[int, defs.OpSchema]:
    """The definitions of an operator by the version from which they hold."""
    return _schemas().get(op_type, {})


@cache
def _schemas() -> Mapping[str, Mapping[int, defs.OpSchema]]:
    found: defaultdict[str, dict[int, defs.OpSchema]] = defaultdict(dict)
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "":
            found[schema.name][schema.since_version] = schema
    return found


def _since(op_type: str, version: int) -> int | None:
    """The version of the definition that holds at an opset; None if the operator did not exist."""
    return max((since for since in _history(op_type) if since <= version), default=None)


@cache
def is_wider(op_type: str, old: int, new: int) -> bool:
    """Whether the new definition takes whatever the old one took.

    All parameters are at their places under their names, no type is gone, no attribute is gone or has another default, and
    nothing that is new must be given. Changes of meaning that do not show there have rules.
    """
    before, after = _history(op_type)[old], _history(op_type)[new]
    if after.deprecated:
        return False
    for formal, later in ((before.inputs, after.inputs), (before.outputs, after.outputs)):
        if [p.name for p in formal] != [p.name for p in later[: len(formal)]]:
            return False
        if any(not set(p.types) <= set(q.types) or _required(q) > _required(p) for p, q in zip(formal, later, strict=False)):
            return False
        if any(_required(p) for p in later[len(formal) :]):
            return False
    kept = all(
        name in after.attributes
        and after.attributes[name].type == attribute.type
        and after.attributes[name].default_value == attribute.default_value
        for name, attribute in before.attributes.items()
    )
    return kept and not any(after.attributes[name].required for name in after.attributes.keys() - before.attributes.keys())


def _required(parameter: defs.OpSchema.FormalParameter) -> bool:
    return parameter.option == defs.OpSchema.FormalParameterOption.Single
