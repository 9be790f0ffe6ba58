"""What each form and rank of a layer saves by the clock.

The whole model is profiled twice for each form, with every layer at a rank in the middle and at the smallest; a layer's other
ranks are on the line through both, as two small operators have a price that no rank takes away. Weights are zeros: nothing is
decomposed for it.

A runtime puts what follows a convolution or a matrix product into its kernel (an activation, an addition, a bias) and names the
kernel after the last of them, or anew. So a kernel that multiplies belongs to the node of its name or of the value that it
computes, and if that is no linear layer, to the nearest one before it that no other kernel computes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from graphopt import model as models
from graphopt.contracts import Context, NodeTime, Plan, Setting, Site
from graphopt.names import Names

from .forms import Sizes, option_of, zeros
from .layers import layers
from .write import write

_LINEAR = frozenset({"Conv", "Gemm", "MatMul", "Gather"})
_MULTIPLIES = ("Conv", "Gemm", "MatMul", "Gather")
_STEPS = 24
"""Nodes before a kernel's own that are looked at."""


def saved_milliseconds(model: ir.Model, sites: Sequence[Site], context: Context) -> Mapping[tuple[Site, Setting], float] | None:
    """What each setting saves by the clock; None when nothing is timed."""
    if context.profile is None or not sites:
        return None
    before = _milliseconds(context.profile(model), model)
    by_name = {layer.name: layer for layer in layers(model)}
    saved = {(site, setting): -math.inf for site in sites for setting in site.settings}
    for kind in sorted({option_of(setting).kind for site in sites for setting in site.settings}):
        offered = {site: [s for s in site.settings if option_of(s).kind == kind] for site in sites}
        middle = {site: some[len(some) // 2] for site, some in offered.items() if some}
        smallest = {site: some[-1] for site, some in offered.items() if some}
        slow, fast = (_times(model, plan, context) for plan in (middle, smallest))
        for site in middle:
            sizes = Sizes.of(by_name[site.name])
            now = sum(before.get(node, 0.0) for node in site.nodes)
            large, small = (sizes.cost(option_of(plan[site])) for plan in (middle, smallest))
            for setting in offered[site]:
                spent = _line((large, slow[site]), (small, fast[site]), sizes.cost(option_of(setting)))
                saved[site, setting] = now - spent
    return saved


def _times(model: ir.Model, plan: Plan, context: Context) -> Mapping[Site, float]:
    """Milliseconds of each site with this plan."""
    assert context.profile is not None
    candidate = models.clone(model)
    by_name = {layer.name: layer for layer in layers(candidate)}
    names, made = Names(candidate.graph), {}
    for site, setting in plan.items():
        layer, option = by_name[site.name], option_of(setting)
        made[site] = write(layer, option, zeros(Sizes.of(layer), option), None, names)
    times = _milliseconds(context.profile(candidate), candidate)
    return {site: sum(times.get(node, 0.0) for node in nodes) for site, nodes in made.items()}


def _line(middle: tuple[int, float], smallest: tuple[int, float], cost: int) -> float:
    """The time at a cost, on the line through two that were measured, which never falls; in proportion to one."""
    (more, slow), (less, fast) = middle, smallest
    if more == less:
        return slow * cost / more
    return slow + max((slow - fast) / (more - less), 0.0) * (cost - more)


def _milliseconds(profile: Sequence[NodeTime], model: ir.Model) -> Mapping[str, float]:
    """Time of each linear layer of the main graph that has a kernel, by its node's name."""
    by_name = {node.name: node for node in model.graph}
    by_name |= {output.name: node for node in model.graph for output in node.outputs if output.name}
    found: defaultdict[str, float] = defaultdict(float)
    late: list[tuple[ir.Node, float]] = []
    for kernel in profile:
        if not any(part in kernel.op_type for part in _MULTIPLIES):
            continue
        names = (kernel.origin, kernel.name, kernel.name.removeprefix("fused "))
        node = next((by_name[name] for name in names if name in by_name), None)
        if node is None:
            continue
        if node.op_type in _LINEAR:
            found[node.name or ""] += kernel.milliseconds
        else:
            late.append((node, kernel.milliseconds))
    named = set(found)
    for node, spent in late:
        owner = next((one for one in _before(node) if one.op_type in _LINEAR and one.name not in named), None)
        if owner is not None:
            found[owner.name or ""] += spent
            named.add(owner.name or "")
    return found


def _before(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes before one, the nearest first; not beyond linear layers."""
    waiting, seen = [node], {node}
    for _ in range(_STEPS):
        if not waiting:
            return
        inputs = [value.producer() for value in waiting.pop(0).inputs if value is not None]
        for one in inputs:
            if one is not None and one not in seen:
                seen.add(one)
                yield one
                if one.op_type not in _LINEAR:
                    waiting.append(one)
