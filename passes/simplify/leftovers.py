"""Drop what torch's exporters leave in a file about their own run.

    metadata     pkg.torch.*, pkg.onnxscript.*    of graphs, functions, nodes and values; a node's ``namespace`` beside one
    doc strings  that are stack traces            of nodes and values: ``/home/me/model.py(12): forward``

They are 5 to 10 % of a small file, and hold the author's folder names and source lines. No runtime reads them. The model's own
metadata, and what a person wrote (the doc strings of the model and its graphs, every doc string that is no trace), stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, MutableMapping
from itertools import chain

import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.model.weights import Listed

_PREFIXES = ("pkg.torch.", "pkg.onnxscript.")
_BESIDE = "namespace"
"""A node's module, written by the same exporter beside the keys above; without these it may be somebody else's key."""
_TRACE_LINE = re.compile(r'^\s*(File ".+", line \d+|\S.*\.py\(\d+\): |.*\.py:\d+(:|$))')
"""A line of a stack trace: Python's own form and the two of torch's older exporter."""


def drop_leftovers(model: ir.Model, found: Listed) -> list[Change]:
    """Drop the leftovers of a model in all its graphs; one change tells how many there were and how many bytes of text."""
    sizes: list[int] = []
    for graph, nodes in found:
        sizes += _drop_metadata(graph.metadata_props)
        values = chain(graph.inputs, graph.initializers.data.values(), *(node.outputs for node in nodes))
        owners: Iterable[ir.Node | ir.Value] = chain(nodes, values)
        for owner in owners:
            if owner.metadata_props:
                sizes += _drop_metadata(owner.metadata_props)
            if owner.doc_string:
                sizes += _drop_trace(owner)
    for function in model.functions.values():
        sizes += _drop_metadata(function.metadata_props)
    if not sizes:
        return []
    what = f"dropped {len(sizes):,} entries of metadata, {sum(sizes):,} bytes"
    return [Change(model.graph.name or "graph", what, "the exporter left them: its own notes, stack traces and file paths")]


def _drop_metadata(props: MutableMapping[str, str]) -> Iterator[int]:
    """Drop an owner's entries; the bytes of each."""
    keys = [key for key in props if key.startswith(_PREFIXES)]
    if keys and _BESIDE in props:
        keys.append(_BESIDE)
    for key in keys:
        yield len(key.encode()) + len(props.pop(key).encode())


def _drop_trace(owner: ir.Node | ir.Value) -> Iterator[int]:
    """Drop a doc string in which each line, or each second one (Python's form shows the source between), is a trace's."""
    lines = [line for line in (owner.doc_string or "").splitlines() if line.strip()]
    traced = sum(bool(_TRACE_LINE.match(line)) for line in lines)
    if lines and _TRACE_LINE.match(lines[0]) and 2 * traced >= len(lines):
        yield len((owner.doc_string or "").encode())
        owner.doc_string = None
