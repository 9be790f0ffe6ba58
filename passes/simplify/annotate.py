"""Mend types and shapes that the file states for values inside the graph, or write all that are known.

    stated     x: float[1, 8]     inferred     x: float[N, 8]     ->     x: float[N, 8]

Runtimes plan memory by stated shapes, so a stale one is worse than none. An inferred dimension wins over a stated one; a
stated dimension of which inference knows nothing is left as it is. Inputs and outputs of the model are never touched.
"""

from __future__ import annotations

from itertools import chain

import onnx_ir as ir

from graphopt.contracts import Change

from .graph import Work


def mend_shapes(work: Work, *, complete: bool) -> list[Change]:
    """Mend stated types and shapes; with ``complete``, add the missing ones too. One change tells how many of each."""
    root, outputs = work.roots[0], {*work.model.graph.outputs}
    mended = added = 0
    inner = (value for graph in root.graphs[1:] for value in graph.inputs)
    for value in chain(inner, *(node.outputs for node in root.nodes)):
        known = work.facts.get(value)
        if known is None or value in outputs or value.is_initializer():
            continue
        if value.type is None and value.shape is None:
            if complete:
                value.type, value.shape = known.type, known.shape
                added += 1
            continue
        if value.type == known.type and _agree(value.shape, known.shape, complete=complete):
            continue
        value.type, value.shape = known.type, _merged(value.shape, known.shape, complete=complete)
        mended += 1
    name = work.model.graph.name or "graph"
    changes = []
    if mended:
        changes.append(Change(name, f"mended the stated types or shapes of {mended} values", "inference proves them otherwise"))
    if added:
        changes.append(Change(name, f"wrote types and shapes of {added} values", "the option shapes asks for them"))
    return changes


def _agree(stated: ir.Shape | None, inferred: ir.Shape | None, *, complete: bool) -> bool:
    """Whether inference knows nothing that is not stated, and nothing else."""
    if stated is None or inferred is None:
        return inferred is None or not complete
    old, new = stated.dims, inferred.dims
    return old == new or (len(old) == len(new) and all(_is_unknown(b) or a == b for a, b in zip(old, new, strict=True)))


def _merged(stated: ir.Shape | None, inferred: ir.Shape | None, *, complete: bool) -> ir.Shape | None:
    """The stated shape with every dimension that inference knows; an absent one stays absent unless ``complete``."""
    if inferred is None or (stated is None and not complete):
        return stated
    if stated is None or len(stated) != len(inferred):
        return inferred
    return ir.Shape([old if _is_unknown(new) else new for old, new in zip(stated, inferred, strict=True)])


def _is_unknown(dim: int | ir.SymbolicDim) -> bool:
    return not isinstance(dim, int) and dim.value is None  # as most are ints: to ask for the other class takes longer
