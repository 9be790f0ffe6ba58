"""``fit``: what the target's provider does not take is written in operators that it takes, so that fewer partitions remain.

    each operator that stays behind:  the first of its ``RULES`` of whose new nodes none stays behind
    all of these together:            kept if there are no more partitions than before, and fewer nodes stay behind
    else one after the other:         each kept if that holds for it

``context.partition`` counts on the target: by its provider where that is here, else by a table. A rewrite is exact, or within
rounding (``activations.py`` has the one approximation); the core compares the outputs. Nothing is done to a node that the
target takes. It comes last in a recipe: what it writes out, ``fuse`` would put together again.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir
from pydantic import Field

from graphopt import shapes, walk
from graphopt.contracts import Change, Context, Pass, PassOptions
from graphopt.graphs import annotated_names, site
from graphopt.model import clone, weight_bytes
from graphopt.names import Names
from graphopt.operators import NOT_FIXED, REPLACEABLE
from graphopt.partitions import Cut

from . import activations, layout, normalize
from .place import Place, Refused

__all__ = ["Fit", "FitOptions"]

Rule = Callable[[Place], None]
Plan = dict[int, Rule]
"""The rule for a node, by the node's place in the walk of the model."""

RULES: Mapping[str, Sequence[Rule]] = {
    "Abs": (activations.absolute,),
    "AveragePool": (layout.window_2d,),
    "BatchNormalization": (normalize.batch_normalization,),
    "Conv": (layout.window_2d,),
    "Erf": (activations.expand_erf,),
    "Flatten": (layout.reshape,),
    "Gather": (layout.gather_by_slice, layout.gather_int32),
    "Gelu": (activations.gelu_by_erf, activations.gelu_by_exp),
    "Gemm": (layout.gemm,),
    "GlobalAveragePool": (layout.pool_by_mean,),
    "GroupNormalization": (normalize.group_normalization,),
    "HardSigmoid": (activations.hard_sigmoid_by_clip,),
    "HardSwish": (activations.hard_swish_by_sigmoid, activations.hard_swish_by_clip),
    "InstanceNormalization": (normalize.instance_normalization,),
    "LayerNormalization": (normalize.layer_normalization,),
    "MaxPool": (layout.window_2d,),
    "Neg": (activations.negate,),
    "Pad": (layout.pad,),
    "Reciprocal": (activations.reciprocal,),
    "ReduceMean": (layout.mean_by_pool,),
    "RMSNormalization": (normalize.rms_normalization,),
    "Softmax": (layout.softmax_last,),
    "Softplus": (activations.softplus,),
    "Split": (layout.split,),
    "Squeeze": (layout.reshape,),
    "Sum": (activations.total,),
    "Transpose": (layout.transpose_merged,),
    "Unsqueeze": (layout.reshape,),
}
"""The ways to write an operator, in the order in which they are tried."""
_APPROXIMATE = {activations.expand_erf, activations.gelu_by_exp}
_HINTS = {
    NOT_FIXED: "fix them with --set shapes.fix.NAME=SIZE",
    REPLACEABLE: "if none does, --set simplify.freeze=true",
}
_LEAST_GROWTH = 1_000_000
_GROWTH_PART = 20
_OPSET = 7  # from which on operands are broadcast
_LISTED = 3


class FitOptions(PassOptions):
    """What ``fit`` may use."""

    approximate: bool = Field(True, description="write Erf as a rational function of Exp, right to about one unit of float32")


class Fit(Pass):
    """Rewrites for a provider; see the module."""

    name = "fit"
    summary = "write in other operators what the target's provider does not take, where fewer partitions remain"
    Options = FitOptions
    options: FitOptions

    def apply(self, model: ir.Model, context: Context) -> Sequence[Change]:
        """Rewrite what helps; changes tell each node, the partitions before and after, and why other nodes stay behind."""
        partition = context.partition or (lambda _: None)
        first = cut = partition(model)
        if first is None or cut is None:
            return [Change("model", "nothing", f"what {context.target.name} takes is not known", done=False)]
        if not cut.left:
            return [Change("model", "nothing", f"{context.target.name} takes all nodes", done=False)]
        trial = _Trial(context, {} if self.options.approximate else _APPROXIMATE)
        changes: list[Change] = []
        while plan := trial.best(model, cut):
            changes += trial.carry_out(model, plan)[1]
            cut = partition(model) or cut  # by the model's own nodes: those of a trial are not in it
        if changes:
            changes.insert(0, Change("model", f"{first.told} became {cut.told}", f"on {context.target.name}"))
        return [*changes, *_left_alone(cut, trial.refused)]


class _Trial:
    """Tries plans on clones of the model."""

    def __init__(self, context: Context, forbidden: object) -> None:
        self.context = context
        self.forbidden = forbidden if isinstance(forbidden, set) else set()
        self.refused: dict[str, str] = {}
        """Why a node was not rewritten, by its site."""

    def best(self, model: ir.Model, cut: Cut) -> Plan:
        """The rewrites that help; ``cut`` is how the provider cuts ``model``, which is left as it is."""
        nodes = [*walk.nodes(model.graph)]
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(nodes):
            if node in cut.left and self._may_change(model, node):
                groups[node.op_type].append(index)
        parts = [part for op_type, indices in groups.items() for part in self._taken(model, op_type, indices)]
        if not parts:
            return {}
        together = {index: rule for part in parts for index, rule in part.items()}
        after = self._cut(model, together)
        if after is not None and _better(after, cut):
            return together
        chosen: Plan = {}
        for part in parts:
            after = self._cut(model, chosen | part)
            if after is not None and _better(after, cut):
                chosen, cut = chosen | part, after
            else:
                self.refused.update((site(nodes[index]), "there would be more partitions") for index in part)
        return chosen

    def _may_change(self, model: ir.Model, node: ir.Node) -> bool:
        if node.op_type not in RULES or node.domain != "" or node.op_identifier() in model.functions:
            return False
        excluded = any(fnmatch.fnmatchcase(site(node), pattern) for pattern in self.context.exclude)
        return not excluded and model.opset_imports.get("", 0) >= _OPSET

    def _taken(self, model: ir.Model, op_type: str, indices: Sequence[int]) -> list[Plan]:
        """For each node of an operator, the first rule of whose nodes none stays behind; nodes with one rule in one plan."""
        waiting, found = [*indices], []
        for rule in RULES[op_type]:
            if rule in self.forbidden or not waiting:
                continue
            trial = clone(model)
            made, _ = self.carry_out(trial, dict.fromkeys(waiting, rule))
            cut = self.context.partition(trial) if made and self.context.partition is not None else None
            if cut is None:
                continue
            plan: Plan = {index: rule for index, new in made.items() if not any(node in cut.left for node in new)}
            if not plan and sum(node in cut.left for new in made.values() for node in new) < len(made):
                plan = dict.fromkeys(made, rule)  # what stays behind serves several
            if plan:
                found.append(plan)
            waiting = [index for index in waiting if index not in plan]
        return found

    def _cut(self, model: ir.Model, plan: Plan) -> Cut | None:
        trial = clone(model)
        self.carry_out(trial, plan)
        assert self.context.partition is not None
        return self.context.partition(trial)

    def carry_out(self, model: ir.Model, plan: Plan) -> tuple[dict[int, list[ir.Node]], list[Change]]:
        """Apply rules in place; the new nodes for each old one, and a change for each."""
        nodes = [*walk.nodes(model.graph)]
        facts, names = shapes.infer(model), Names(model.graph)
        annotated, growth = annotated_names(model), self.context.growth_bytes
        left = max(_LEAST_GROWTH, weight_bytes(model) // _GROWTH_PART) if growth is None else max(growth, 0)
        made: dict[int, list[ir.Node]] = {}
        changes = []
        for index, rule in plan.items():
            node = nodes[index]
            if node.graph is None:
                continue
            name, what = site(node), node.op_type
            place = Place(node, facts, names, annotated, model.opset_imports.get("", 0), model.ir_version, left)
            try:
                place.run(rule)
            except Refused as why:
                self.refused[name] = str(why)
                continue
            left = place.growth_bytes
            made[index] = place.made
            new = ", ".join(dict.fromkeys(each.op_type for each in place.made))
            changes.append(Change(name, f"{what} written as {new}", f"{self.context.target.name} takes these"))
        return made, changes


def _better(after: Cut, before: Cut) -> bool:
    """Whether fewer nodes stay behind, in no more partitions; a model of which nothing was taken had none."""
    return len(after.left) < len(before.left) and after.partitions <= (before.partitions or after.partitions)


def _left_alone(cut: Cut, refused: Mapping[str, str]) -> list[Change]:
    """Why nodes stay behind, and why they were not rewritten; where many have one reason, they share a line."""
    reasons: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for node, why in cut.left.items():
        name = site(node)
        hint = next((f": {text}" for reason, text in _HINTS.items() if why.endswith(reason)), "")
        also = f"; not rewritten: {refused[name]}" if name in refused and refused[name] != why else ""
        reasons[node.op_type, f"{why}{hint}{also}"].append(name)
    changes = []
    for (op_type, why), names in reasons.items():
        shown = names if len(names) <= _LISTED else [f"{names[0]} and {len(names) - 1} others"]
        changes += [Change(name, f"{op_type} stays behind", why, done=False) for name in shown]
    return changes
