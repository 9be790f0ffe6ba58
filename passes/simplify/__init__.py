"""``simplify``: the same answers from fewer nodes. One module a step; the steps run until nothing changes any more.

    freeze       initializers that are inputs too become constants, if the user asks
    control      functions are taken apart, and If and Loop whose way is known
    constants    Constant nodes become initializers
    dead         what nobody uses goes
    duplicates   equal initializers are kept once
    fold         what does not depend on the inputs is computed ahead of time
    learn        types and shapes are inferred
    identity     nodes that change nothing go
    collapse     computed shapes become constants, or are computed once
    noop         operators that undo or continue each other go; with sink, parts and scatter
    zeros        terms of zero go
    cse          equal nodes are computed once
    annotate     stale types and shapes are mended
    leftovers    what exporters leave about their own run goes
    defaults     attributes that state what holds without them go
    peer         onnxsim instead of all of these, to compare with

Each module opens with its algebra and the conditions under which it is exact. ``graph`` holds the edits that they share,
``due`` finds where a step has to look again.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Literal

import onnx_ir as ir
from pydantic import Field

from graphopt import walk
from graphopt.contracts import Change, Context, Pass, PassOptions
from graphopt.garbage import collected_later
from graphopt.graphs import site
from graphopt.model import weight_bytes
from graphopt.shapes import are_fixed, keep, kept

from .annotate import mend_shapes
from .collapse import collapse_shapes
from .constants import lift_constants
from .control import inline_control_flow, inline_functions
from .cse import merge_equal_nodes
from .dead import remove_dead
from .defaults import drop_defaults
from .due import Watch, Where, together
from .duplicates import merge_equal_initializers
from .fold import fold_constants
from .freeze import freeze_initializers
from .graph import Work, subgraphs_of
from .growth import allowance
from .identity import remove_identities
from .learn import learn
from .leftovers import drop_leftovers
from .names import make_unambiguous
from .noop import remove_round_trips
from .peer import simplify_with_onnxsim
from .zeros import drop_zero_terms

__all__ = ["Simplify", "SimplifyOptions"]

_LEAST_GROWTH = 1_000_000
_GROWTH_PART = 20
_LISTED = 3
"""So many nodes that were left alone for the same reason are listed one by one."""


class SimplifyOptions(PassOptions):
    """What ``simplify`` does; everything is lossless."""

    engine: Literal["graphopt", "onnxsim"] = Field("graphopt", description="onnxsim: let that do it instead, to compare")
    freeze: bool = Field(False, description="take initializers off the inputs: nobody will give them another value")
    fold: bool = Field(True, description="compute ahead of time what does not depend on the inputs")
    identity: bool = Field(True, description="remove nodes that hand on their input as it is")
    symbolic: bool = Field(True, description="let shapes that are computed from dynamic dimensions collapse")
    roundtrips: bool = Field(True, description="remove operators that undo or continue each other: Transpose, Slice, Cast, ...")
    zeros: bool = Field(True, description="drop terms of 0 where nothing can tell 0 from -0")
    inline: bool = Field(True, description="take apart functions, and If and Loop whose way is known")
    cse: bool = Field(True, description="compute equal nodes once")
    dedupe: bool = Field(True, description="keep one copy of initializers that hold the same bytes")
    dead: bool = Field(True, description="remove nodes, optional outputs, initializers and functions that nobody uses")
    constants: bool = Field(True, description="make initializers of Constant nodes")
    shapes: bool = Field(False, description="write the inferred type and shape of every value into the file, for viewers")
    leftovers: bool = Field(True, description="drop stack traces, file paths and notes that torch's exporters left in metadata")
    defaults: bool = Field(True, description="drop attributes of convolutions and pools that state what holds without them")
    iterations: int = Field(20, ge=1, description="how often the steps are repeated at most; they stop when nothing changes")


@dataclass(frozen=True, eq=False)  # each is itself: their hashes are asked for thousands of times
class _Step:
    """A step, and what makes it due again besides a change of the graph."""

    run: Callable[[Work], list[Change]]
    local: bool = False
    """Whether it needs to look only close to what has changed, once it has looked everywhere with all that is known."""
    by_facts: bool = False
    """Whether it may do more when more is known of types and shapes."""
    thorough: bool = False
    """Whether it leaves nothing for itself to do."""
    infers: bool = False
    """Whether it asks inference."""
    neutral: bool = False
    """Whether inference says the same after it of all that is left."""
    once: bool = False
    """Whether it looks only at what it is given in the beginning."""


class Simplify(Pass):
    """Simplification that is right for every graph. ``passes/simplify`` has a module for each step."""

    name = "simplify"
    summary = "fold constants, merge equal nodes and weights, remove what changes nothing or is not used"
    settles = True
    Options = SimplifyOptions
    options: SimplifyOptions

    @collected_later()
    def apply(self, model: ir.Model, context: Context) -> Sequence[Change]:
        """Run the steps until none of them changes anything; last come the places that were left alone, and why.

        The bytes of all weights grow by at most ``context.growth_bytes``, or 1 MB or 5 % if that is None; not at all if an
        earlier run came to that limit.
        """
        if self.options.engine == "onnxsim":
            return simplify_with_onnxsim(model, context.exclude)
        before = kept(model)
        work, changes = self._begun(model, context)
        if self.options.freeze:
            changes += freeze_initializers(work)
        if self.options.inline:
            changes += inline_functions(work)
        changes += self._until_quiet(work)
        changes += mend_shapes(work, complete=self.options.shapes)
        if work.inferred or are_fixed(work.roots[0].nodes, work.facts):
            keep(model, work.facts, None if changes else before)
        for root in work.roots if changes else []:
            if root.graphs[1:]:
                make_unambiguous(root)
        return [*changes, *_left_alone(work)]

    def _begun(self, model: ir.Model, context: Context) -> tuple[Work, list[Change]]:
        """What the steps share, and the changes of those that look at each node once: they share one walk."""
        patterns = tuple(context.exclude)

        def excluded(name: str) -> bool:
            return bool(patterns) and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

        main = [*walk.listed(model.graph)]
        found = [*main, *chain.from_iterable(walk.listed(function.graph) for function in model.functions.values())]
        weights = weight_bytes(model, found)
        growth = max(_LEAST_GROWTH, weights // _GROWTH_PART) if context.growth_bytes is None else context.growth_bytes
        spare = allowance(model, growth)
        work = Work(model, excluded, subgraphs_of(found), weights + spare, spare, excludes=bool(patterns))
        changes = drop_leftovers(model, found) if self.options.leftovers else []
        if self.options.defaults:
            changes += drop_defaults(model, main)
        return work, changes

    def _until_quiet(self, work: Work) -> list[Change]:
        """Run the steps in turn until each has looked at all that has changed since it ran, with all that is known by then."""
        changes: list[Change] = []
        groups, watch = self._groups(), Watch(work, dead=self.options.dead)
        due: dict[_Step, Where] = {step: None for group in groups[:-1] for step in group} | {step: set() for step in groups[-1]}
        behind: set[_Step] = set()  # these have not seen the last change, of which is not known yet where it is

        def is_due(step: _Step) -> bool:
            """Whether to run a step; where the model has changed does not matter to one that looks everywhere anyway."""
            if behind and (due[step] is not None or work.symbolic is not None):
                changed = watch.changed()
                for other in behind:
                    due[other] = together(due[other], changed)
                behind.clear()
            return due[step] != set()

        for step in _in_turn(groups, is_due, self.options.iterations):
            behind.discard(step)
            work.near, due[step] = watch.in_order(due[step]) if step.local else None, set()
            done = step.run(work)
            changes += done
            if done:
                work.changed(neutral=step.neutral)
                behind.update(other for other in due if not (other.once or (step.neutral and other.infers)))
                behind.difference_update([step] if step.thorough else [])
            learnt = watch.learnt()
            for other, there in due.items():
                due[other] = together(there, learnt) if other.by_facts else there
        return changes + watch.removed

    def _groups(self) -> list[list[_Step]]:
        """The chosen steps, in the order in which each helps the next; from ``learn`` on they ask for types and shapes.

        Those of a group are repeated before others run: each makes the next one due close to what it changed, and nowhere else.
        The last group runs when the others have nothing more to do, if anything has changed.
        """
        options = self.options
        identities, dead = _Step(remove_identities, local=True, by_facts=True), partial(_Step, remove_dead, neutral=True)
        control, shapes = _Step(inline_control_flow, by_facts=True), partial(collapse_shapes, fold=options.fold)
        duplicates = _Step(merge_equal_initializers, neutral=True, thorough=True)
        groups = [
            [(options.constants, _Step(partial(lift_constants, dedupe=options.dedupe), local=True))],
            [(options.dead, dead(once=True))],
            [(options.dedupe, duplicates)],
            [(options.identity, identities)],  # a weight keeps its name, where folding would give it that of its copy
            [(options.fold, _Step(fold_constants, local=True, by_facts=True))],  # first what needs no inference: sizes, pads
            [(options.inline, control)],  # what is decided by now need not be inferred
            [(True, _Step(learn, infers=True))],
            [(options.inline, control)],
            [(options.identity, identities)],
            [
                (options.symbolic, _Step(shapes, local=True, by_facts=True)),
                (options.roundtrips, _Step(remove_round_trips, local=True, by_facts=True)),
            ],
            [(options.dedupe, duplicates)],  # collapsed shapes are often equal
            [(options.zeros, _Step(drop_zero_terms, by_facts=True))],
            [(options.cse, _Step(merge_equal_nodes))],
            [(options.dead, dead(thorough=True))],
        ]
        return [[step for chosen, step in group if chosen] for group in groups]


def _in_turn(groups: list[list[_Step]], is_due: Callable[[_Step], bool], most: int) -> Iterator[_Step]:
    """The steps that are due, until none is; all of them, and a group of several, ``most`` times at most."""
    *others, last = groups
    for _ in range(most):
        for group in others:
            for _ in range(most):
                yield from filter(is_due, group)
                if len(group) == 1 or not any(map(is_due, group)):
                    break
        if not any(map(is_due, chain(*others))):
            yield from filter(is_due, last)
            if not any(map(is_due, chain(*others))):
                break


def _left_alone(work: Work) -> list[Change]:
    """What could have been computed ahead of time and was not; where many nodes have one reason, they share a line."""
    reasons: dict[str, list[ir.Node]] = {}
    for node, why in work.declined.items():
        if node.graph is not None:
            reasons.setdefault(why, []).append(node)
    changes = []
    for why, nodes in reasons.items():
        if len(nodes) > _LISTED:
            what = f"left this {nodes[0].op_type} and {len(nodes) - 1} other nodes to the runtime"
            changes.append(Change(site(nodes[0]), what, why, done=False))
        else:
            changes += [Change(site(node), f"left {node.op_type} to the runtime", why, done=False) for node in nodes]
    return changes
